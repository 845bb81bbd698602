"""Gather what a report speaks of: runs with their pictures, their rows, their records.

One report speaks of one model and one prompt set, and of variants that were compared with one
reference run. A further run of the reference's own variant, drawn with another dtype, attention or
engine, is no variant to judge but the harmless change that the noise floor is measured with.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dit8.eval.ledger import LATENCY, SCORES, read_table
from dit8.eval.report.harmless import is_harmless
from dit8.eval.run import RECORD, Run, RunKey, name_keys, read_run
from dit8.eval.score import Entries, applicable, read_entries
from dit8.eval.scorers import get_scorer
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError

SHARED = ("variant", "model", "prompt_set")  # by the reference and a run of its noise floor
DISTINGUISHING = ("recipe", "engine", "dtype", "backend")  # told where a variant occurs twice


@dataclass(frozen=True)
class Measured:
    """Hold one run and what the ledgers know of it.

    Args:
        run: identity and pictures.
        label: unique in the report: the variant, and what sets it apart where it occurs twice.
        scores: scorer -> value per (prompt id, seed), each for all pictures.
        latency: stage -> {"n", "p20_ms", "p50_ms", "p80_ms"}.
        record: <results>/runs/<run_id>.json, empty where there is none.
        scorers: what was recorded of each score, see `eval.score`.
    """

    run: Run
    label: str
    scores: Mapping[str, Mapping[SampleKey, float]]
    latency: Mapping[str, Mapping[str, float]]
    record: Mapping[str, Any]
    scorers: Entries

    @property
    def key(self) -> RunKey:
        return self.run.key


@dataclass(frozen=True)
class Evaluation:
    """Hold the reference, the variants compared with it, and the runs of the noise floor.

    Args:
        rows: of all these runs in results/scores.csv.
    """

    reference: Measured
    variants: tuple[Measured, ...]
    harmless: tuple[Measured, ...]
    rows: pd.DataFrame

    @property
    def columns(self) -> tuple[Measured, ...]:
        """Return the reference and the variants, in the order they are shown."""
        return (self.reference, *self.variants)

    @property
    def everything(self) -> tuple[Measured, ...]:
        return (*self.columns, *self.harmless)


def load(folders: Sequence[Path], results: Path) -> Evaluation:
    """Read runs, their rows in the ledgers and their records.

    Args:
        folders: of runs, in the order they shall be shown; the reference may be left out where
            its folder lies beside the others.
        results: folder of scores.csv, latency.csv and runs/.

    Raises:
        UserError: a run twice, several references, models or prompt sets, a picture without its
            partner, a scorer whose rows do not cover all pictures, no rows at all.
    """
    runs = [read_run(folder) for folder in folders]
    twice = [run_id for run_id, count in Counter(r.key.run_id for r in runs).items() if count > 1]
    if twice:
        raise UserError(f"report: run {twice[0]} is given twice, expected each once; leave one out")
    if not runs:
        raise UserError("report: got no runs, expected at least one; pass folders of runs")
    reference = _reference(runs, [Path(folder).parent for folder in folders])
    others = [run for run in runs if run.key.run_id != reference.key.run_id]
    _check_comparable(reference, others)
    shown = [run.key for run in others if run.reference is not None]
    labels = _labels([reference.key, *(run.key for run in others)]) | _labels(
        [reference.key, *shown]
    )
    rows = read_table(results / "scores.csv", SCORES)
    latency = read_table(results / "latency.csv", LATENCY)
    measured = [_measured(run, labels, rows, latency, results) for run in (reference, *others)]
    return Evaluation(
        measured[0],
        tuple(m for m in measured[1:] if m.run.reference is not None),
        tuple(m for m in measured[1:] if m.run.reference is None),
        rows[rows["run_id"].isin(labels)],
    )


def compared_with(reference: Path, results: Path) -> list[Path]:
    """Find the reference, what was compared with it, and what can give its noise floor.

    Args:
        reference: folder of the reference; its siblings are looked at.
        results: folder of the ledgers.

    Returns:
        the reference's folder, then the others by variant and run id: finished runs with rows. A
        run that is still being drawn is left out: it is not there yet, rather than missing.

    Raises:
        UserError: the reference is no finished run.
    """
    key = read_run(reference).key
    own = _read_json(results / "runs" / f"{key.run_id}.json").get("identity", {})
    scored = set(read_table(results / "scores.csv", SCORES)["run_id"])
    found = []
    for path in reference.resolve().parent.glob(f"*/{RECORD}"):
        about = _read_json(path)
        other = about.get("key", {})
        run_id, compared = other.get("run_id"), about.get("reference")
        identity = _read_json(results / "runs" / f"{run_id}.json").get("identity", {})
        same = all(other.get(name) == getattr(key, name) for name in SHARED)
        is_floor = compared is None and same and is_harmless(own, identity)
        if run_id in scored and (compared == key.run_id or is_floor):
            drawn = {picture.name for picture in path.parent.glob("*.png")}
            if all(f"{p['id']}_{p['seed']}.png" in drawn for p in about["prompts"]):
                found.append((is_floor, other["variant"], path.parent))
    return [reference, *(folder for _, _, folder in sorted(found))]


def _reference(runs: Sequence[Run], beside: Iterable[Path]) -> Run:
    """Find the one run that the others are compared with, among them or in a folder beside."""
    wanted = sorted({run.reference for run in runs if run.reference is not None})
    if len(wanted) > 1:
        raise UserError(
            f"report: the runs are compared with {len(wanted)} references, {', '.join(wanted)}; "
            "expected one, make one report for each"
        )
    if not wanted:
        if len({run.key.variant for run in runs}) == 1:
            return runs[0]  # alone, or with runs of its noise floor
        raise UserError(
            f"report: none of the {len(runs)} runs is compared with another, expected variants of "
            "one reference; pass the runs of the variants too"
        )
    given = {run.key.run_id: run for run in runs}
    if wanted[0] in given:
        return given[wanted[0]]
    for folder in beside:
        if (folder / wanted[0]).is_dir():
            return read_run(folder / wanted[0])
    raise UserError(
        f"report: the reference, run {wanted[0]}, is neither given nor beside the other runs; "
        "pass its folder too"
    )


def _check_comparable(reference: Run, others: Sequence[Run]) -> None:
    expected = {sample.key for sample in reference.samples}
    for run in others:
        name = run.key.run_id
        for column in ("model", "prompt_set"):
            got, wanted = getattr(run.key, column), getattr(reference.key, column)
            if got != wanted:
                raise UserError(
                    f"report: run {name} has {column} {got}, expected {wanted} as in reference "
                    f"{reference.key.run_id}; make one report for each"
                )
        if run.reference is None and run.key.variant != reference.key.variant:
            raise UserError(
                f"report: run {name} of {run.key.variant} is compared with no run, expected "
                f"reference {reference.key.run_id}; evaluate it at the reference's dtype, or leave "
                "it out"
            )
        found = {sample.key for sample in run.samples}
        if odd := expected ^ found:
            raise UserError(
                f"report: {len(odd)} pictures of run {name} and reference {reference.key.run_id} "
                f"have no partner, {name_keys(odd)}; evaluate both on the same prompts"
            )


def _labels(keys: Sequence[RunKey]) -> dict[str, str]:
    """Name every run by its variant and, where that is not unique, by the columns that differ."""
    labels = {}
    for key in keys:
        same = [other for other in keys if other.variant == key.variant]
        differing = [c for c in DISTINGUISHING if len({getattr(other, c) for other in same}) > 1]
        parts = [getattr(key, column) for column in differing]
        labels[key.run_id] = f"{key.variant} ({', '.join(parts)})" if parts else key.variant
    for label, count in Counter(labels.values()).items():
        if count > 1:  # they differ in the sampler, the checkpoint or the batch
            for key in (key for key in keys if labels[key.run_id] == label):
                labels[key.run_id] += f" {key.run_id[:6]}"
    return labels


def _measured(
    run: Run,
    labels: Mapping[str, str],
    rows: pd.DataFrame,
    latency: pd.DataFrame,
    results: Path,
) -> Measured:
    run_id = run.key.run_id
    mine = rows[rows["run_id"] == run_id]
    if mine.empty:
        raise UserError(
            f"report: {results / 'scores.csv'} has no rows of run {run_id} ({run.key.variant}); "
            "score it with scripts/score.py"
        )
    stages = latency[latency["run_id"] == run_id].set_index("stage")
    return Measured(
        run,
        labels[run_id],
        {scorer: _values(run, scorer, group) for scorer, group in mine.groupby("scorer")},
        {
            str(stage): {name: float(row[name]) for name in LATENCY.values}
            for stage, row in stages.iterrows()
        },
        _read_json(results / "runs" / f"{run_id}.json"),
        read_entries(results / "runs", run_id),
    )


def _values(run: Run, scorer: str, rows: pd.DataFrame) -> dict[SampleKey, float]:
    keys = zip(rows["prompt_id"], rows["seed"], strict=True)
    values = {
        (prompt_id, int(seed)): float(value)
        for (prompt_id, seed), value in zip(keys, rows["value"], strict=True)
    }
    expected = {sample.key for sample in applicable(get_scorer(scorer), run.samples)}
    if missing := expected - values.keys():
        raise UserError(
            f"report: scorer {scorer} has no value for {len(missing)} of {len(expected)} pictures "
            f"of run {run.key.run_id}, {name_keys(missing)}; score the run again"
        )
    return {sample.key: values[sample.key] for sample in run.samples if sample.key in values}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"report: {path} is not valid JSON ({error}); restore it from version control"
        ) from error
