"""Score a run's pictures and keep the rows: what scripts/evaluate.py and scripts/score.py share.

A scorer that cannot run here, or that fails, is named and skipped; the others go on. It leaves no
row at all, never the rows of some pictures. A missing partner stops everything: it means that the
two runs do not belong together.
"""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dit8.eval.ledger import SCORES, read_table, score_rows, upsert
from dit8.eval.pairing import pair_samples
from dit8.eval.runs import Run
from dit8.eval.scorer_record import (
    FAILED,
    MEASURED,
    NOT_MEASURED,
    Entries,
    describe_scorer,
    differing,
    read_entries,
    write_entry,
)
from dit8.eval.scorer_settings import DEFAULTS, Settings, configure_all
from dit8.eval.scorers import Scorer
from dit8.eval.scorers.ocr import OcrScorer
from dit8.models.types import Sample
from dit8.quant.errors import UserError

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
