"""Draw the pictures of a job: alone, with several devices, or one shard of them.

Whoever draws a run holds a lock in the run's folder, so that the jobs of a sweep that all need the
reference wait for the first instead of drawing it again. Shards hold that lock together, and each
its own: who draws the whole waits for them, and they for it, but not for each other. Several parts
leave their durations in the folder; whoever finds all pictures there merges them into the ledger.

Several devices are several processes of this machine, one a GPU, each of which draws a shard
(eval/shards.py) into the same folder. A process that dies loses the batch it was at; the others
finish theirs, and the same command draws what is missing. One that cannot draw sends its sentence
through a pipe before it ends. Each holds a pipeline of its own in main memory while it loads.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing.connection import Connection

import torch
from tqdm import tqdm

from dit8.conf.paths import ROOT, from_root
from dit8.eval.job import Job
from dit8.eval.ledger import LATENCY, read_record, upsert, was_only_scored, write_run
from dit8.eval.provenance import describe
from dit8.eval.run import write_run_record
from dit8.eval.shards import WHOLE, Part, Shard, leave, merge
from dit8.eval.stats import latency_percentiles
from dit8.kernels.backend import KernelError
from dit8.models.artifacts import checkpoint_sha256
from dit8.models.engine.sampling import open_engine
from dit8.models.generate import generate
from dit8.models.pipeline import build_variant, resolve_device
from dit8.models.text_cache import Companions
from dit8.models.threads import usable_cores
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.checkpoint.stored import checkpoint_files
from dit8.quant.errors import UserError
from dit8.quant.files import locked

LOOK_SECONDS = 0.2
MISTAKE, BUG = "mistake", "bug"
MOST_LETTERS = 4000  # a pipe holds 64 KiB, and nobody reads it before the process has ended
STOP_SECONDS = 30  # a process that is told to stop cleans up in less


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
        with _ctrl_c_waits():
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


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Let Ctrl-C wait, and keep it from whoever starts here: they are stopped by SIGTERM.

    The server that forks would print a traceback if it came while its Python starts.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


_COMPANIONS = Companions()  # of this process


def draw(job: Job, reference: str | None) -> None:
    """Generate the pictures that are missing and keep record and latency of the run."""
    write_run_record(job.folder, job.key, job.prompts, reference)
    if _is_drawn(job):
        return
    with _alone(job, WHOLE):
        if _is_drawn(job):  # by the process that was waited for
            return
        own = _draw_missing(job, WHOLE) if job.missing(WHOLE) else Part()
        whole, parts = merge(own, job.folder)
        _keep(job, whole)
        for part in parts:
            part.unlink()


def draw_shard(job: Job, reference: str | None) -> None:
    """Generate what is missing of the job's own shard; the run's record is left to `draw`."""
    write_run_record(job.folder, job.key, job.prompts, reference)
    with _alone(job, job.shard):
        if job.missing(job.shard):
            drawn = _draw_missing(job, job.shard)
            if drawn != Part():  # several devices leave a part each
                leave(drawn, job.shard, job.folder)


def branch_bytes(job: Job) -> int | None:
    """Count the bytes of both branches' weights as the variant keeps them on disk.

    None for weights that are rounded after loading, which no file holds.
    """
    if job.variant.format == "rounded":
        return None
    files = checkpoint_files(job.checkpoint or job.model.folder, BRANCHES)
    return sum(file.stat().st_size for file in files)


def _is_drawn(job: Job) -> bool:
    # A run stopped after its last picture still lacks its record.
    return not job.missing(WHOLE) and not was_only_scored(read_record(job.record))


@contextmanager
def _alone(job: Job, shard: Shard) -> Iterator[None]:
    """Hold the lock of a run or of one shard of it, waiting for who has it."""

    def waiting() -> None:
        print(
            f"waiting for another process that draws {job.key.variant} {job.key.run_id}",
            file=sys.stderr,
        )

    with locked(job.folder / "drawing", waiting, shared=not shard.is_whole):
        if shard.is_whole:
            yield
            return
        with locked(job.folder / f"drawing-{shard.index}-of-{shard.count}", waiting):
            yield


def _keep(job: Job, drawn: Part) -> None:
    """Write latency and record of a run whose pictures are all there."""
    key, results, timing = job.key, from_root(job.config.results), drawn.timing
    stages = {"image": timing.image_ms, "step": timing.step_ms}
    latency = [
        asdict(key) | {"stage": stage} | latency_percentiles(durations)
        for stage, durations in stages.items()
        if durations
    ]
    upsert(results / "latency.csv", LATENCY, latency, overwrite=True)
    record = {
        "run": asdict(key),
        "identity": job.identity,
        "config": asdict(job.config),
        "checkpoint_sha256": checkpoint_sha256(job.checkpoint),
        "model_sha256": job.model.sha256,
        "prompts": [[p.id, p.seed] for p in job.prompts],
        "seeds": "noise: sha256('<prompt id>/<seed>'), see models/types.py",
        "started": drawn.started or _now(),
        "seconds": round(drawn.seconds, 3),  # of all processes together
        "pictures_made": len(timing.image_ms),
        "branch_bytes": branch_bytes(job),
        **describe(ROOT),
    }
    if drawn.gpus:  # of those who drew, perhaps on other machines; several kinds: all of them
        record["hardware"] = record["hardware"] | {"gpu": ", ".join(drawn.gpus)}
    write_run(results / "runs", key.run_id, record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _draw_missing(job: Job, shard: Shard) -> Part:
    """Draw a shard here, or split it between devices; returns what was not left in the folder."""
    total = len(shard.of(job.prompts, job.batch))
    label = f"{job.key.variant} {job.key.run_id}"
    devices = job.config.hardware.devices
    with tqdm(total=total, desc=label, unit="image") as bar:
        if devices == 1:
            return _generate(job, shard, bar.update)
        draw_on_devices(
            functools.partial(_draw_part, job),
            [part for part in shard.split(devices) if part.of(job.prompts, job.batch)],
            resolve_device(job.config.hardware.device),
            lambda: bar.update(total - job.missing(shard) - bar.n),
        )
    return Part()


def _draw_part(job: Job, shard: Shard) -> None:
    """Draw a shard in a process of its own."""
    if job.missing(shard):
        leave(_generate(job, shard, lambda _: leave_with_parent()), shard, job.folder)


def _generate(job: Job, shard: Shard, progress: Callable[[int], object]) -> Part:
    started, start = _now(), time.monotonic()
    config, device = job.config, resolve_device(job.config.hardware.device)
    staged = config.hardware.staged
    files = job.identity["model"]["files_sha256"]
    shared = (files, config.model.companion_dtype, str(device))
    pipeline = build_variant(
        job.variant,
        job.model.folder,
        job.checkpoint,
        model_key=job.model.key,
        dtype=config.dtype,
        companion_dtype=config.model.companion_dtype,
        device=torch.device("cpu") if staged else device,
        components={} if staged else _COMPANIONS.components(shared),
    )
    if not staged:  # there these components come and go
        _COMPANIONS.attach(shared, pipeline)
    _, timing = generate(
        pipeline,
        shard.of(job.drawn, job.batch),
        job.sampler,
        job.folder,
        batch=job.batch,
        metadata=asdict(job.key),
        progress=progress,
        engine=open_engine(config.engine, pipeline, device, staged=staged),
        spared=_COMPANIONS.spared,
    )
    gpus = (torch.cuda.get_device_name(device),) if device.type == "cuda" else ()
    return Part(timing, started, time.monotonic() - start, gpus)
