"""Turn a full GPU into a sentence, and give back what is free."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dit8.quant.errors import UserError


@contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Say what did not fit and what to lower.

    Args:
        what: needs the memory; begins the sentence.
        remedy: ends it.

    Raises:
        UserError: instead of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{what} needs more GPU memory than is free; {remedy}") from error


def release_memory(device: torch.device) -> None:
    """Give freed memory back to the driver, so that what comes next finds it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far.

    From /proc where there is one: to `getrusage` it is that of the process that started this one,
    too, from before the program was exchanged.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
