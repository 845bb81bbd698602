"""Draw one run with several processes of this machine, one a GPU.

Each process draws a shard of the run (scripts/sharding.py) into the same folder. A process that
dies loses the batch it was at; the others finish theirs, and the same command draws what is
missing. One that cannot draw sends its sentence through a pipe before it ends. Each holds a
pipeline of its own in main memory while it loads.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import torch
from tqdm import tqdm

from dit8.kernels.backend import KernelError
from dit8.models.threads import usable_cores
from dit8.quant.errors import UserError
from dit8.scripts.sharding import Shard

LOOK_SECONDS = 0.2
MISTAKE, BUG = "mistake", "bug"
MOST_LETTERS = 4000  # a pipe holds 64 KiB, and nobody reads it before the process has ended
STOP_SECONDS = 30  # a process that is told to stop cleans up in less


def check_devices(devices: int, device: torch.device) -> None:
    """Refuse a number of devices that this machine does not have.

    Raises:
        UserError: fewer than one, or more than the GPUs that torch sees.
    """
    if devices < 1:
        raise UserError(f"hardware.devices must be at least 1, got {devices}; use 1")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(
            f"hardware.devices must be at most {found}, the GPUs that torch sees here, got "
            f"{devices}; lower it or look at CUDA_VISIBLE_DEVICES"
        )


def draw_on_devices(
    work: Callable[[Shard], None],
    shards: Sequence[Shard],
    device: torch.device,
    progress: Callable[[], None],
) -> None:
    """Draw every shard in a process of its own and wait for all of them.

    Args:
        work: draws one shard; must be picklable, since the processes start from nothing.
        shards: one a device.
        device: cuda gives process i the GPU i; on cpu the processes divide the cores.
        progress: called now and then while they draw.

    Raises:
        UserError: names every process that did not end well, with what it said, once the others
            have ended.
        RuntimeError: the same, where one of them met a bug, whose traceback it has printed.
    """
    # Not a fork of this process: it has used CUDA or threads, which the new one could not. The
    # server that forks imports the script once; every spawned process would take ten seconds.
    context = multiprocessing.get_context("forkserver")
    pipes = [context.Pipe(duplex=False) for _ in shards]
    processes = [
        context.Process(target=_work, args=(work, shard, index, len(shards), device.type, end))
        for index, (shard, (_, end)) in enumerate(zip(shards, pipes, strict=True))
    ]
    try:
        for process, (_, end) in zip(processes, pipes, strict=True):
            process.start()
            end.close()  # the process has its own, and its death shows as the end of the pipe
        while any(process.is_alive() for process in processes):
            time.sleep(LOOK_SECONDS)
            progress()
    finally:
        started = [process for process in processes if process.pid is not None]
        for process in started:
            process.terminate()  # nothing to those that have ended
        for process in started:
            process.join(STOP_SECONDS)
            process.kill()
            process.join()
    progress()
    bad = [
        (f"{index} ({device.type} {index}, shard {shard}, {_how(process.exitcode)})", _said(pipe))
        for index, (process, shard, (pipe, _)) in enumerate(
            zip(processes, shards, pipes, strict=True)
        )
        if process.exitcode != 0
    ]
    if bad:
        names = " and worker ".join(name for name, _ in bad)
        told = [said for _, said in bad if said is not None]
        # Several processes make the same mistake. Only who was killed may do better next time.
        why = "; ".join(dict.fromkeys(sentence for _, sentence in told))
        rest = why or "those of the others are kept, the same command draws the rest"
        sentence = f"worker {names} of {len(shards)} did not finish its pictures; {rest}"
        raise (RuntimeError if any(kind == BUG for kind, _ in told) else UserError)(sentence)


def leave_with_parent() -> None:
    """End this worker if the process that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit("worker: the process that started it is gone")


def _work(
    work: Callable[[Shard], None],
    shard: Shard,
    index: int,
    workers: int,
    device: str,
    pipe: Connection,
) -> None:
    """Run in the new process: choose the device, draw, and say what went wrong through the pipe."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    if device == "cuda":
        torch.cuda.set_device(index)
    elif "OMP_NUM_THREADS" not in os.environ:  # what the user has set stays
        torch.set_num_threads(max(1, usable_cores() // workers))
    try:
        work(shard)
    except (UserError, KernelError) as error:
        _tell(pipe, MISTAKE, str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        _tell(pipe, BUG, f"{type(error).__name__}: {error}")
        sys.exit(1)


def _tell(pipe: Connection, kind: str, text: str) -> None:
    pipe.send((kind, " ".join(text.split())[:MOST_LETTERS]))


def _said(pipe: Connection) -> tuple[str, str] | None:
    """Return what a process that has ended said: MISTAKE or BUG and a sentence; None: nothing."""
    try:
        return pipe.recv() if pipe.poll() else None
    except EOFError:
        return None


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit {code}"
