"""Score a run's pictures and keep the rows: what scripts/evaluate.py and scripts/score.py share.

A scorer that cannot run here, or that fails, is named and skipped; the others go on. It leaves no
row at all, never the rows of some pictures. A missing partner stops everything: it means that the
two runs do not belong together.

A scorer is a frozen dataclass, and a user's setting (which weights, which text, how many processes)
replaces one of its fields. Settings are checked before the first picture is drawn, because a
mistyped one would otherwise show hours later.

What the scores of a run are is in its record, <results>/runs/<run_id>.json, under "scorers", an
entry per scorer. A ledger row is a number under a scorer's name; what the name means (direction,
unit, range, what is done to the picture, which weights with which hash, which text) is settings and
files on the machine that scored, so it is kept beside the rows. It also protects them: rows made
under one definition are neither extended nor shown under another.
"""

import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dit8.eval.ledger import (
    SCORERS,
    SCORES,
    change_record,
    read_record,
    read_table,
    score_rows,
    upsert,
)
from dit8.eval.run import Run, pair_samples
from dit8.eval.score_text import MODES
from dit8.eval.scorers import Scorer, get_scorer
from dit8.eval.scorers.ocr import OcrScorer
from dit8.models.types import Sample
from dit8.quant.errors import UserError

SETTABLE = ("backbone", "checkpoint", "sha256", "score_text", "device")  # fields of some scorers


@dataclass(frozen=True)
class Settings:
    """How to score.

    Args:
        readers: processes that read text.
        score_text: what text every text-image score compares a picture with, a key of
            eval.score_text.MODES; None: each scorer's own.
        options: scorer -> field -> value, for the fields in SETTABLE.
        overwrite: score again and replace rows that differ.
    """

    readers: int = 1
    score_text: str | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    overwrite: bool = False


DEFAULTS = Settings()


def configure(name: str, settings: Settings) -> Scorer:
    """Return a scorer with the user's settings.

    Raises:
        UserError: no such scorer, or a setting that it does not have.
    """
    scorer = get_scorer(name)
    own = {entry.name for entry in fields(scorer)}
    change: dict[str, Any] = {}
    if "workers" in own:
        change["workers"] = settings.readers
    if "score_text" in own and settings.score_text is not None:
        change["score_text"] = settings.score_text
    possible = [key for key in SETTABLE if key in own]
    for key, value in settings.options.get(name, {}).items():
        if key not in possible:
            raise UserError(
                f"scorer {name} has no setting {key!r}, expected one of "
                f"{', '.join(possible) or '(none)'}; correct or drop it"
            )
        change[key] = value
    _check_text(change.get("score_text"))
    return replace(scorer, **change)


def configure_all(names: Sequence[str], settings: Settings) -> list[Scorer]:
    """Return scorers with the user's settings; also refuses settings that nobody would use.

    Raises:
        UserError: see `configure`, or settings of a scorer that is not named.
    """
    if unused := sorted(settings.options.keys() - set(names)):
        raise UserError(
            f"settings are given for scorer {unused[0]}, expected one of {', '.join(names)}; add "
            "it to the scorers or drop them"
        )
    _check_text(settings.score_text)
    return [configure(name, settings) for name in names]


def parse_options(assignments: Sequence[str]) -> dict[str, dict[str, str]]:
    """Turn "clipscore.backbone=ViT-L-14" and the like into options.

    Raises:
        UserError: not of that form.
    """
    options: dict[str, dict[str, str]] = {}
    for text in assignments:
        where, equals, value = text.partition("=")
        name, dot, key = where.partition(".")
        if not (equals and dot and name and key and value):
            raise UserError(
                f"a scorer's setting must look like clipscore.backbone=ViT-L-14, got {text!r}"
            )
        options.setdefault(name, {})[key] = value
    return options


def _check_text(mode: str | None) -> None:
    if mode is not None and mode not in MODES:
        raise UserError(
            f"score_text must be one of {', '.join(MODES)}, got {mode!r}; correct the name"
        )


MEASURED, NOT_MEASURED, FAILED = "measured", "not measured", "failed"
ENVIRONMENT = "environment"  # key of an identity that holds versions: recorded, not compared

Entries = dict[str, dict[str, Any]]


def describe_scorer(scorer: Scorer) -> dict[str, Any]:
    """Return what a scorer's values mean, JSON-ready; no weights are looked at.

    A bound at infinity becomes null.
    """
    return {
        "direction": "higher is better" if scorer.higher_is_better else "lower is better",
        "unit": scorer.unit,
        "range": [bound if math.isfinite(bound) else None for bound in scorer.bounds],
        "preprocessing": scorer.preprocessing,
        "needs_reference": scorer.needs_reference,
    }


def read_entries(folder: Path, run_id: str) -> Entries:
    """Read what scored a run; nothing yet: empty. `folder` is <results>/runs.

    Older versions wrote <run_id>.scorers.json beside the record; what is there still counts.

    Raises:
        UserError: a file is damaged.
    """
    older = read_record(folder / f"{run_id}.scorers.json")
    return older | read_record(folder / f"{run_id}.json").get(SCORERS, {})


def write_entry(folder: Path, run_id: str, name: str, entry: Mapping[str, Any]) -> None:
    """Put one scorer's entry into the record of a run; the others stay.

    An entry of a scorer that was measured is replaced by another measurement only: its rows are
    still in the ledger. Nothing is written where nothing changes.

    Raises:
        UserError: no write permission, or the file is damaged.
    """

    def put(record: dict[str, Any]) -> dict[str, Any]:
        entries = read_entries(folder, run_id)
        before = entries.get(name)
        if before is None or before["status"] != MEASURED or entry["status"] == MEASURED:
            entries[name] = dict(entry)
        return record | {SCORERS: entries}

    change_record(folder, run_id, put)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say in what two identities of a scorer differ, versions aside; None: in nothing.

    Returns:
        such as "score_text was 'idea', is 'caption_json'", for the first key that differs.
    """
    for key in sorted(before.keys() | now.keys()):
        if key != ENVIRONMENT and before.get(key) != now.get(key):
            return f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
    return None


TIMINGS = ("seconds",)  # scores that differ when a picture is drawn again
# a value may leave its range by rounding: 1 + 2 ** -52 of a structural similarity, for example
ROUNDING = 1e-9


@dataclass(frozen=True)
class Outcome:
    """What became of one scorer on one run.

    Args:
        status: MEASURED (now or before), NOT_MEASURED or FAILED.
        reason: a sentence where it was not measured or failed.
    """

    scorer: str
    status: str
    reason: str = ""


def score_run(
    run: Run,
    reference: Run | None,
    scorers: Sequence[str],
    ledger: Path,
    settings: Settings = DEFAULTS,
) -> list[Outcome]:
    """Compute every score that the ledger lacks for this run and insert the rows.

    Args:
        run: with all its pictures.
        reference: the run that relative scores compare with; None for the reference itself, which
            gets no relative scores.
        scorers: names, see `eval.scorers`.
        ledger: results/scores.csv; what the scores are is recorded in runs/ beside it.
        settings: how to score.

    Returns:
        what became of each scorer, relative ones of a reference aside, in the order given.

    Raises:
        UserError: an unknown scorer or setting, a missing partner, a ledger that cannot be read.
    """
    wanted = configure_all(scorers, settings)
    if reference is None:
        wanted = [scorer for scorer in wanted if not scorer.needs_reference]
    for scorer in wanted:
        if scorer.needs_reference:
            pair_samples(run.samples, reference.samples, scorer.name)
    rows = read_table(ledger, SCORES)
    done = rows[rows["run_id"] == run.key.run_id].groupby("scorer").size().to_dict()
    outcomes = []
    for scorer in wanted:
        partners = reference.samples if scorer.needs_reference else None
        outcomes.append(_score_one(scorer, run, partners, ledger, done, settings.overwrite))
    return outcomes


def _score_one(
    scorer: Scorer,
    run: Run,
    partners: Sequence[Sample] | None,
    ledger: Path,
    done: Mapping[str, int],
    overwrite: bool,
) -> Outcome:
    name, run_id, folder = scorer.name, run.key.run_id, ledger.parent / "runs"
    samples = applicable(scorer, run.samples)
    timing = name in TIMINGS
    try:
        obstacle = scorer.obstacle()
        if not samples:
            obstacle = "not measured: no prompt of this set expects a text; choose other prompts"
        if done.get(name) and not overwrite:
            _check_definition(scorer, obstacle, run_id, read_entries(folder, run_id))
            if done[name] == len(samples) and not timing:
                return Outcome(name, MEASURED)
        if obstacle is not None:
            outcome = Outcome(name, NOT_MEASURED, obstacle.removeprefix("not measured: "))
        else:
            values = scorer.score(samples, partners)
            check_values(scorer, samples, values)
            entry = describe_scorer(scorer) | {"identity": scorer.identity()}
            if hasattr(scorer, "text_record"):
                entry["text"] = scorer.text_record(samples)
            new = score_rows(run.key, samples, name, values)
            upsert(ledger, SCORES, new, overwrite=overwrite or timing)
            entry["pictures"] = len(samples)
            outcome = Outcome(name, MEASURED)
    except UserError as error:
        outcome = Outcome(name, FAILED, str(error))
    except Exception as error:  # whatever it is, the other scorers' hours must not be lost to it
        traceback.print_exc()
        outcome = Outcome(name, FAILED, f"{name}: {type(error).__name__}: {error}")
    if outcome.status != MEASURED:
        entry = describe_scorer(scorer) | {"reason": outcome.reason}
    write_entry(folder, run_id, name, entry | {"status": outcome.status})
    return outcome


def applicable(scorer: Scorer, samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that a scorer has a value for: reading needs an expected text."""
    if isinstance(scorer, OcrScorer):
        return [sample for sample in samples if sample.texts]
    return list(samples)


def check_values(scorer: Scorer, samples: Sequence[Sample], values: np.ndarray) -> None:
    """Refuse values that are not one finite number in the scorer's range per sample.

    Raises:
        UserError: names the first sample with such a value.
        ValueError: another number of values.
    """
    if np.shape(values) != (len(samples),):
        raise ValueError(f"{scorer.name}: {len(samples)} values expected, got {np.shape(values)}")
    low, high = scorer.bounds
    for sample, value in zip(samples, values, strict=True):
        if not np.isfinite(value) or not low - ROUNDING <= value <= high + ROUNDING:
            prompt_id, seed = sample.key
            raise UserError(
                f"{scorer.name}: prompt {prompt_id} (seed {seed}) got {value:g}, "
                f"expected a number in [{low:g}, {high:g}]; look at {sample.image_path}"
            )


def _check_definition(scorer: Scorer, obstacle: str | None, run_id: str, entries: Entries) -> None:
    """Refuse to mix rows of two definitions; rows without a record are older than it."""
    before = entries.get(scorer.name, {}).get("identity")
    if before is None:
        return
    if obstacle is None:
        now = scorer.identity()
    elif hasattr(scorer, "score_text"):  # told without the weights
        now = before | {"score_text": scorer.score_text}
    else:
        return
    if difference := differing(before, now):
        raise UserError(
            f"{scorer.name}: the rows of run {run_id} were made with another definition "
            f"({difference}); keep that one, or pass overwrite to replace the rows"
        )


def outcome_document(*scored: Sequence[Outcome]) -> dict[str, dict[str, str]]:
    """Return {"not_measured": {scorer: reason}, "failed": {scorer: reason}} of one or more runs."""
    outcomes = [outcome for run in scored for outcome in run]
    return {
        key: {o.scorer: o.reason for o in outcomes if o.status == status}
        for key, status in (("not_measured", NOT_MEASURED), ("failed", FAILED))
    }


def measured_everywhere(names: Sequence[str], *scored: Sequence[Outcome]) -> list[str]:
    """Return the scorers that no run lacks, in order: only these can be compared."""
    lost = {o.scorer for run in scored for o in run if o.status != MEASURED}
    return [name for name in names if name not in lost]


def rows_of(ledger: Path, run_ids: Sequence[str], scorers: Sequence[str]) -> pd.DataFrame:
    """Read the rows of some runs and scorers."""
    rows = read_table(ledger, SCORES)
    return rows[rows["run_id"].isin(run_ids) & rows["scorer"].isin(scorers)]


def say_what_is_lacking(document: Mapping[str, Any]) -> None:
    """Tell on stderr which scorers were not measured or failed, a line each."""
    for key in ("not_measured", "failed"):
        for name, reason in document[key].items():
            print(f"{name} {key.replace('_', ' ')}: {reason}", file=sys.stderr)
