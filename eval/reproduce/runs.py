"""Choose the runs of the ledger that a table is made of, by a rule from their keys.

A place says which rows count: model, prompt set, arithmetic, engine, backends, sampler and size. Of
several runs of one variant and recipe there, those count that have the pictures (prompts and seeds)
and the sampler of the reference's run, and of these the newest by `started` in results/runs. The
reference itself is the run with the most pictures, then the newest; where only scores against it
are in the ledger, any variant's run with the most pictures takes its part. Nothing is chosen by its
scores.

A ledger of one's own may have no row of a place. Then the place moves to where it has most rows:
another prompt set or the other kind of device, see `place_in`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dit8.eval.ledger import SCORES, read_table
from dit8.eval.reproduce.table import Cell, empty
from dit8.eval.table import values_by_key
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError

RAW = "-raw"  # what a prompt set is called when its captions were drawn as plain sentences
# variants of the papers, in the order of the tables -> recipe
VARIANTS = {
    "bf16": "none",
    "fp8": "none",
    "int8": "smoothquant",
    "fused_int8": "smoothquant",
    "q8_0": "none",
    "nf4": "none",
    "q4_k": "none",
}
INT8 = ("int8", "fused_int8")  # those that a recipe is for
GPU, CPU = ("torch-cuda", "triton"), ("torch-cpu", "cpu-reference")  # backends of a kind of device
PAPERS_REFERENCE = "fp8"  # the highest-precision checkpoint that was published


@dataclass(frozen=True)
class Place:
    """Say which rows of the ledger a column is made of.

    Args:
        label: what the tables call it.
        reference: variant whose pictures decide which runs count.
        size_px: side of the pictures.
        hardware: for the command that fills its cells.
        lacking: why its cells are empty.
        sampler, steps, guidance: of its pictures, as their records have them.
        unpublished: variants that no public weights are for.
        oversized: variants that exceed a card of 24 GB, by their measured peak.
    """

    label: str
    model: str
    prompt_set: str
    dtype: str
    engine: str
    reference: str
    size_px: int
    hardware: str
    lacking: str
    sampler: str
    steps: int
    guidance: float
    unpublished: tuple[str, ...] = ()
    oversized: tuple[str, ...] = ()
    backends: tuple[str, ...] = GPU

    def command(self, table: int) -> str:
        """Return the command that executes what a table needs of this place."""
        return (
            f"python scripts/reproduce.py --run table={table} model={self.model} "
            f"hardware={self.hardware}"
        )

    def at(self, size_px: int) -> "Place":
        """Return the same place with pictures of another size."""
        return replace(self, size_px=size_px)

    def draws(self, sampler: Mapping[str, Any]) -> bool:
        """Tell whether a record's sampler is the one of this place."""
        names = ("name", "steps", "guidance", "size_px")
        own = (self.sampler, self.steps, self.guidance, self.size_px)
        return tuple(sampler.get(name) for name in names) == own

    @property
    def rule(self) -> str:
        """Say the choice in words."""
        return (
            f"{self.label}: model {self.model}, prompts {self.prompt_set}, {self.size_px} px, "
            f"sampler {self.sampler} with {self.steps} steps and guidance {self.guidance:g}, "
            f"{self.dtype}, engine {self.engine}, backend {' or '.join(self.backends)}, reference "
            f"{self.reference}"
        )


MINI = Place(
    *("mini (not Ideogram 4)", "mini", "mini_hard", "float32", "stock", "bf16", 256, "cuda"),
    *("not measured", "default_20", 20, 3.0),
)
REAL = Place(
    *("Ideogram 4", "ideogram4", "bench300", "bfloat16", "dit8", "fp8", 1024, "cuda_24gb"),
    *("needs the gated weights", "quality_48", 48, 7.0),
    unpublished=("bf16",),
    oversized=("int8",),
)
PLACES = (MINI, REAL)


@dataclass(frozen=True)
class Run:
    """Hold what the ledger has of one run.

    Args:
        values: scorer -> value per (prompt id, seed).
        sampler, gpu: of its record.
    """

    run_id: str
    values: Mapping[str, Mapping[SampleKey, float]]
    started: str
    sampler: Mapping[str, Any]
    gpu: str | None

    @property
    def pictures(self) -> frozenset[SampleKey]:
        return frozenset(key for values in self.values.values() for key in values)


def lacking_cell(place: Place, variant: str, table: int, reason: str = "") -> Cell:
    """Return the empty cell of a variant that was not measured in a place.

    Args:
        reason: in place of the place's own.
    """
    if variant in place.unpublished:
        return empty(f"does not apply: no public {variant} weights")
    if variant in place.oversized:
        larger = replace(place, hardware="cuda")
        return empty(f"{place.lacking} and a card of more than 24 GB", larger.command(table))
    return empty(reason or place.lacking, place.command(table))


def rule(results: Path) -> str:
    """Say which rows of a ledger the tables are made of."""
    mini, real = (place_in(results, place).rule for place in PLACES)
    return (
        f"Rows of the ledger: {mini}; {real}. Of several runs of a variant the newest that "
        "has the pictures and the sampler of the reference's."
    )


def place_in(results: Path, place: Place) -> Place:
    """Return the place itself if the ledger has rows of it, else where its rows are instead.

    Those are of the same model, arithmetic, engine and sampler. Of prompt sets (raw captions
    included) and kinds of device the pair with the most pictures counts, of equals the last by
    name; a ledger without any leaves the place as it is.
    """
    rows = read_scores(results)
    for column in ("model", "dtype", "engine"):
        rows = rows[rows[column] == getattr(place, column)]
    sets = rows["prompt_set"].str.removesuffix(RAW)
    if ((sets == place.prompt_set) & rows["backend"].isin(place.backends)).any():
        return place
    found = []
    for backends in (GPU, CPU):
        for prompt_set in set(sets):
            own = rows[(sets == prompt_set) & rows["backend"].isin(backends)]
            runs = [_run(results, str(name), run) for name, run in own.groupby("run_id")]
            count = sum(len(run.pictures) for run in runs if place.draws(run.sampler))
            found += [(count, prompt_set, backends)] if count else []
    _, prompt_set, backends = max(found, default=(0, place.prompt_set, place.backends))
    return replace(place, prompt_set=prompt_set, backends=backends)


def read_scores(results: Path) -> pd.DataFrame:
    """Read <results>/scores.csv, once for all tables as long as it does not change."""
    path = results / "scores.csv"
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    return _read_scores(path, stamp)


def choose_runs(
    results: Path, place: Place, scorers: Sequence[str], *, is_raw: bool = False
) -> dict[str, Run]:
    """Choose a run for every variant of VARIANTS, see the module.

    Args:
        results: folder of the ledger.
        scorers: those of the table; runs without any of them do not count.
        is_raw: the runs whose captions were drawn as plain sentences.

    Returns:
        variant -> run, for those that were measured.
    """
    rows = _rows_of(results, place, scorers, is_raw)
    found = {
        variant: _runs_of(results, place, rows, (variant,), recipe)
        for variant, recipe in VARIANTS.items()
    }
    return _newest(found, found[place.reference])


def choose_recipes(
    results: Path, place: Place, scorers: Sequence[str], recipes: Sequence[str]
) -> dict[str, Run]:
    """Choose a run of int8, fused or not, for every recipe; those measured, as `choose_runs`."""
    rows = _rows_of(results, place, scorers, False)
    found = {name: _runs_of(results, place, rows, INT8, name) for name in recipes}
    return _newest(found, _runs_of(results, place, rows, (place.reference,), "none"))


def _newest(found: Mapping[str, Sequence[Run]], reference: Sequence[Run]) -> dict[str, Run]:
    """Keep the newest run of every name that has the pictures and the sampler of the reference."""

    def order(run: Run) -> tuple[int, str, str]:
        return len(run.pictures), run.started, run.run_id

    everything = [run for runs in found.values() for run in runs]
    base = max(reference or everything, key=order, default=None)
    if base is None:
        return {}
    same = {
        name: [run for run in runs if _is_comparable(run, base)] for name, runs in found.items()
    }
    return {name: max(runs, key=order) for name, runs in same.items() if runs}


def _is_comparable(run: Run, base: Run) -> bool:
    """Tell whether two runs have one sampler and the same pictures.

    By the scorers that both have, since a score of texts leaves out captions without any.
    """
    shared = run.values.keys() & base.values.keys()
    same = all(run.values[name].keys() == base.values[name].keys() for name in shared)
    return run.sampler == base.sampler and same and run.pictures >= base.pictures


def _runs_of(
    results: Path, place: Place, rows: pd.DataFrame, variants: Sequence[str], recipe: str
) -> list[Run]:
    mine = rows[rows["variant"].isin(variants) & (rows["recipe"] == recipe)]
    runs = [_run(results, str(run_id), own) for run_id, own in mine.groupby("run_id")]
    return [run for run in runs if place.draws(run.sampler)]


def _rows_of(results: Path, place: Place, scorers: Sequence[str], is_raw: bool) -> pd.DataFrame:
    rows = read_scores(results)
    wanted = {
        "model": place.model,
        "prompt_set": place.prompt_set + (RAW if is_raw else ""),
        "dtype": place.dtype,
        "engine": place.engine,
    }
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows[rows["backend"].isin(place.backends) & rows["scorer"].isin(scorers)]


def _run(results: Path, run_id: str, rows: pd.DataFrame) -> Run:
    path = results / "runs" / f"{run_id}.json"
    values = {str(name): values_by_key(own) for name, own in rows.groupby("scorer")}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sampler = dict(record["identity"]["sampler"])
        run = Run(run_id, values, str(record["started"]), sampler, record["hardware"]["gpu"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} must say when run {run_id} started, where and with which sampler, "
            f"got {type(error).__name__}; restore it, or remove the run's rows from the ledger"
        ) from error
    return run


@functools.lru_cache(maxsize=2)
def _read_scores(path: Path, stamp: int) -> pd.DataFrame:
    return read_table(path, SCORES)
