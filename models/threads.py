"""Use the cores that nobody else uses.

torch's threads meet at a barrier after every operation, thousands of times an image of a small
model. A thread whose core is given to another process holds all of them up, while they spin. The
mini on two cores, seconds for two steps, median of 15 images idle and 6 beside one busy process:

    threads                         idle    busy
    2, spinning (OpenMP's default)  0.44    1.84    (up to 11 times the idle time on other machines)
    2, OMP_WAIT_POLICY=PASSIVE      0.61    0.80
    1                               0.78    0.71

So threads spin, and there are as many as free cores, counted anew between steps. Sums of another
number of threads may be taken in another order, as on another machine: latents were seen to stay
equal bit for bit, decoded pixels to differ by one level.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STAT = Path("/proc/stat")  # Linux; elsewhere nothing is changed
LEAST_SECONDS = 0.2  # between two looks: the kernel counts in ticks of 0.01 s
SLIGHT = 0.25  # cores that others may use without a thread of ours making room


@dataclass(frozen=True)
class Look:
    """What had been used up at a moment, in seconds."""

    clock: float
    own: float  # CPU time of this process, all threads
    busy: float  # of all cores that this process may use


def usable_cores() -> int:
    """Count the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only; respects a container's CPU set
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_seconds(stat: str, cores: set[int], ticks: int) -> float:
    """Sum the time that cores were not idle, from the text of /proc/stat (man 5 proc).

    Args:
        stat: the text; lines `cpu<i> user nice system idle iowait irq softirq steal ...`.
        cores: numbers of those that count.
        ticks: a second has.
    """
    total = 0
    for line in stat.splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, counts)
            total += user + nice + system + irq + softirq + steal
    return total / ticks


def fitting_threads(others: float, cores: int, most: int) -> int:
    """Return as many threads as cores are free, at least 1 and at most `most`.

    Args:
        others: cores that other processes keep busy, a fraction of them included.
        cores: that this process may use.
        most: threads on an idle machine.
    """
    return max(1, min(most, cores - math.ceil(others - SLIGHT)))


class Threads:
    """Set torch's number of threads by what other processes leave; one of this kind a process."""

    def __init__(self) -> None:
        self._last: Look | None = None
        self._most = 0

    def share(self, device: "torch.device") -> None:
        """Look at the machine and adjust; called between steps, from the thread that computes.

        The first call only looks. Nothing happens on a GPU, nor where OMP_NUM_THREADS is set: that
        is the user's word.
        """
        if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ or not STAT.exists():
            return
        import torch

        now = self._look()
        last = self._last
        if last is None:
            self._last, self._most = now, torch.get_num_threads()
            return
        elapsed = now.clock - last.clock
        if elapsed < LEAST_SECONDS:
            return
        others = (now.busy - last.busy - (now.own - last.own)) / elapsed
        wanted = fitting_threads(others, usable_cores(), self._most)
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
        self._last = now

    def _look(self) -> Look:
        stat = STAT.read_text(encoding="ascii")
        busy = busy_seconds(stat, os.sched_getaffinity(0), os.sysconf("SC_CLK_TCK"))
        return Look(time.monotonic(), time.process_time(), busy)


THREADS = Threads()
