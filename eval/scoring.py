"""Score a run's pictures and keep the rows: what scripts/evaluate.py and scripts/score.py share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from eval.ledger import SCORES, read_table, score_rows, upsert
from eval.runs import Run
from eval.scorers import get_scorer
from eval.scorers.ocr import OcrScorer

TIMINGS = ("seconds",)  # scores that differ when a picture is drawn again


def score_run(
    run: Run,
    reference: Run | None,
    scorers: Sequence[str],
    ledger: Path,
    *,
    readers: int = 1,
    overwrite: bool = False,
) -> None:
    """Compute every score that the ledger lacks for this run and insert the rows.

    Args:
        run: with all its pictures.
        reference: the run that relative scores compare with; None for the reference itself, which
            gets no relative scores.
        scorers: names, see `eval.scorers`.
        ledger: results/scores.csv.
        readers: processes that read text.
        overwrite: score again and replace rows that differ.

    Raises:
        UserError: an unknown scorer, a missing partner, a damaged picture, a row that differs.
    """
    wanted = [get_scorer(name) for name in scorers]
    rows = read_table(ledger, SCORES)
    done = rows[rows["run_id"] == run.key.run_id].groupby("scorer").size().to_dict()
    for scorer in wanted:
        if scorer.needs_reference and reference is None:
            continue
        timing = scorer.name in TIMINGS
        if done.get(scorer.name) == len(run.samples) and not (overwrite or timing):
            continue
        if isinstance(scorer, OcrScorer):
            scorer = replace(scorer, workers=readers)
        values = scorer.score(run.samples, None if reference is None else reference.samples)
        new = score_rows(run.key, run.samples, scorer.name, values)
        upsert(ledger, SCORES, new, overwrite=overwrite or timing)


def rows_of(ledger: Path, run_ids: Sequence[str], scorers: Sequence[str]) -> pd.DataFrame:
    """Read the rows of some runs and scorers."""
    rows = read_table(ledger, SCORES)
    return rows[rows["run_id"].isin(run_ids) & rows["scorer"].isin(scorers)]
