"""Measure the noise floor: how far a change that cannot matter moves each score.

The same weights computed in bfloat16 instead of float32, or with another attention backend, give
other pictures and other scores, though nothing was lost. A difference between two variants that is
no larger than that one is no evidence about their weights. The order of a batch alone moves
nothing here, since the noise of a picture depends on its prompt id and seed only, and would give a
floor of zero.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dit8.eval.exact_match import delta_interval
from dit8.eval.run import Interval
from dit8.eval.scorers import get_scorer
from dit8.eval.stats import mean_interval, prompt_differences
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError

WEIGHTS = ("model", "variant", "recipe", "prompt_set")  # what a harmless change leaves alone
ARITHMETIC = ("engine", "dtype", "backend")


@dataclass(frozen=True)
class NoiseFloor:
    """Hold how far a harmless change moves one score.

    Args:
        scorer: its name.
        change: what was changed, such as "dtype bfloat16 instead of float32".
        shift: 95 % interval of the paired difference changed - unchanged; for a scorer that
            compares with the reference's picture the interval of its mean, the unchanged
            pictures being the reference.
        mean_absolute: mean over prompts of the absolute difference (of the absolute score).
    """

    scorer: str
    change: str
    shift: Interval
    mean_absolute: float

    @property
    def half_width(self) -> float:
        """Return half the length of the interval, in the unit of the score."""
        return (self.shift.high - self.shift.low) / 2


def noise_floor(
    rows: pd.DataFrame, unchanged: str, changed: str, *, change: str = ""
) -> dict[str, NoiseFloor]:
    """Compare two runs of the same weights, scorer by scorer.

    Args:
        rows: of results/scores.csv.
        unchanged, changed: run ids; relative scores are those of `changed`, which must have been
            measured against `unchanged`.
        change: says what differs where the ledger does not, such as "attention backend math".

    Returns:
        scorer -> floor, for every scorer that both runs have (relative ones: that `changed` has).

    Raises:
        UserError: a run without rows, runs of different weights or prompts, runs that do not
            differ and no `change` given, a missing partner, fewer than three prompts.
    """
    a, b = _run(rows, changed), _run(rows, unchanged)
    for column in WEIGHTS:
        if _only(a, column) != _only(b, column):
            raise UserError(
                f"noise_floor: runs {unchanged} and {changed} must be of one {column}, got "
                f"{_only(b, column)} and {_only(a, column)}; a change of that kind is no noise"
            )
    what = change or ", ".join(
        f"{column} {_only(a, column)} instead of {_only(b, column)}"
        for column in ARITHMETIC
        if _only(a, column) != _only(b, column)
    )
    if unchanged == changed or not what:
        raise UserError(
            f"noise_floor: runs {unchanged} and {changed} must differ in {', '.join(ARITHMETIC)}, "
            "got the same; say what was changed, or take another run"
        )
    floors = {}
    for name, group in a.groupby("scorer", sort=True):
        values, partner = _values(group), _values(b[b["scorer"] == name])
        scorer = get_scorer(name)
        if scorer.needs_reference:
            absolute = [abs(value) for value in values.values()]
            floors[name] = NoiseFloor(name, what, mean_interval(values), float(np.mean(absolute)))
        elif partner:
            shift = delta_interval(scorer.bounds, values, partner)
            size = float(np.mean(np.abs(prompt_differences(values, partner))))
            floors[name] = NoiseFloor(name, what, shift, size)
    return floors


def _run(rows: pd.DataFrame, run_id: str) -> pd.DataFrame:
    found = rows[rows["run_id"] == run_id]
    if found.empty:
        raise UserError(f"noise_floor: run {run_id} has no rows in the ledger; score it first")
    return found


def _only(rows: pd.DataFrame, column: str) -> str:
    return str(rows[column].iloc[0])


def _values(rows: pd.DataFrame) -> dict[SampleKey, float]:
    return rows.set_index(["prompt_id", "seed"])["value"].to_dict()
