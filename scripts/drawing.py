"""Draw the pictures of a cell: alone, with several devices, or one shard of them.

Whoever draws a run holds a lock in the run's folder, so that the jobs of a sweep that all need the
reference wait for the first instead of drawing it again. Shards hold that lock together, and each
its own: who draws the whole waits for them, and they for it, but not for each other. Several parts
leave their durations in the folder; whoever finds all pictures there merges them into the ledger.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime

import torch
from tqdm import tqdm

from dit8.conf.paths import ROOT, from_root
from dit8.eval.ledger import LATENCY, upsert, write_run
from dit8.eval.provenance import describe
from dit8.eval.run import write_run_record
from dit8.eval.stats import latency_percentiles
from dit8.models.engine.engine import open_engine
from dit8.models.generate import generate
from dit8.models.pipeline import build_variant, resolve_device
from dit8.models.text_cache import Companions
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.checkpoint.stored import checkpoint_files
from dit8.quant.files import locked
from dit8.scripts.cell import Cell
from dit8.scripts.conversion import checkpoint_sha256
from dit8.scripts.devices import draw_on_devices, leave_with_parent
from dit8.scripts.parts import Part, leave, merge
from dit8.scripts.sharding import WHOLE, Shard

_COMPANIONS = Companions()  # of this process


def draw(cell: Cell, reference: str | None) -> None:
    """Generate the pictures that are missing and keep record and latency of the run."""
    write_run_record(cell.folder, cell.key, cell.prompts, reference)
    if _is_drawn(cell):
        return
    with _alone(cell, WHOLE):
        if _is_drawn(cell):  # by the process that was waited for
            return
        own = _draw_missing(cell, WHOLE) if cell.missing(WHOLE) else Part()
        whole, parts = merge(own, cell.folder)
        _keep(cell, whole)
        for part in parts:
            part.unlink()


def draw_shard(cell: Cell, reference: str | None) -> None:
    """Generate what is missing of the cell's own shard; the run's record is left to `draw`."""
    write_run_record(cell.folder, cell.key, cell.prompts, reference)
    with _alone(cell, cell.shard):
        if cell.missing(cell.shard):
            drawn = _draw_missing(cell, cell.shard)
            if drawn != Part():  # several devices leave a part each
                leave(drawn, cell.shard, cell.folder)


def branch_bytes(cell: Cell) -> int | None:
    """Count the bytes of both branches' weights as the variant keeps them on disk.

    None for weights that are rounded after loading, which no file holds.
    """
    if cell.variant.format == "rounded":
        return None
    files = checkpoint_files(cell.checkpoint or cell.model.folder, BRANCHES)
    return sum(file.stat().st_size for file in files)


def _is_drawn(cell: Cell) -> bool:
    # A run stopped after its last picture still lacks its record.
    return not cell.missing(WHOLE) and cell.record.exists()


@contextmanager
def _alone(cell: Cell, shard: Shard) -> Iterator[None]:
    """Hold the lock of a run or of one shard of it, waiting for who has it."""

    def waiting() -> None:
        print(
            f"waiting for another process that draws {cell.key.variant} {cell.key.run_id}",
            file=sys.stderr,
        )

    with locked(cell.folder / "drawing", waiting, shared=not shard.is_whole):
        if shard.is_whole:
            yield
            return
        with locked(cell.folder / f"drawing-{shard.index}-of-{shard.count}", waiting):
            yield


def _keep(cell: Cell, drawn: Part) -> None:
    """Write latency and record of a run whose pictures are all there."""
    key, results, timing = cell.key, from_root(cell.config.results), drawn.timing
    stages = {"image": timing.image_ms, "step": timing.step_ms}
    latency = [
        asdict(key) | {"stage": stage} | latency_percentiles(durations)
        for stage, durations in stages.items()
        if durations
    ]
    upsert(results / "latency.csv", LATENCY, latency, overwrite=True)
    record = {
        "run": asdict(key),
        "identity": cell.identity,
        "config": asdict(cell.config),
        "checkpoint_sha256": checkpoint_sha256(cell.checkpoint),
        "model_sha256": cell.model.sha256,
        "prompts": [[p.id, p.seed] for p in cell.prompts],
        "seeds": "noise: sha256('<prompt id>/<seed>'), see models/types.py",
        "started": drawn.started or _now(),
        "seconds": round(drawn.seconds, 3),  # of all processes together
        "pictures_made": len(timing.image_ms),
        "branch_bytes": branch_bytes(cell),
        **describe(ROOT),
    }
    if drawn.gpus:  # of those who drew, perhaps on other machines; several kinds: all of them
        record["hardware"] = record["hardware"] | {"gpu": ", ".join(drawn.gpus)}
    write_run(results / "runs", key.run_id, record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _draw_missing(cell: Cell, shard: Shard) -> Part:
    """Draw a shard here, or split it between devices; returns what was not left in the folder."""
    total = len(shard.of(cell.prompts, cell.batch))
    label = f"{cell.key.variant} {cell.key.run_id}"
    devices = cell.config.hardware.devices
    with tqdm(total=total, desc=label, unit="image") as bar:
        if devices == 1:
            return _generate(cell, shard, bar.update)
        draw_on_devices(
            functools.partial(_work, cell),
            [part for part in shard.split(devices) if part.of(cell.prompts, cell.batch)],
            resolve_device(cell.config.hardware.device),
            lambda: bar.update(total - cell.missing(shard) - bar.n),
        )
    return Part()


def _work(cell: Cell, shard: Shard) -> None:
    """Draw a shard in a process of its own."""
    if cell.missing(shard):
        leave(_generate(cell, shard, lambda _: leave_with_parent()), shard, cell.folder)


def _generate(cell: Cell, shard: Shard, progress: Callable[[int], object]) -> Part:
    started, start = _now(), time.monotonic()
    config, device = cell.config, resolve_device(cell.config.hardware.device)
    staged = config.hardware.staged
    files = cell.identity["model"]["files_sha256"]
    shared = (files, config.model.companion_dtype, str(device))
    pipeline = build_variant(
        cell.variant,
        cell.model.folder,
        cell.checkpoint,
        model_key=cell.model.key,
        dtype=config.dtype,
        companion_dtype=config.model.companion_dtype,
        device=torch.device("cpu") if staged else device,
        components={} if staged else _COMPANIONS.components(shared),
    )
    if not staged:  # there these components come and go
        _COMPANIONS.attach(shared, pipeline)
    _, timing = generate(
        pipeline,
        shard.of(cell.drawn, cell.batch),
        cell.sampler,
        cell.folder,
        batch=cell.batch,
        metadata=asdict(cell.key),
        progress=progress,
        engine=open_engine(config.engine, pipeline, device, staged=staged),
        spared=_COMPANIONS.spared,
    )
    gpus = (torch.cuda.get_device_name(device),) if device.type == "cuda" else ()
    return Part(timing, started, time.monotonic() - start, gpus)
