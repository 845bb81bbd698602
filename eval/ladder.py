"""Compare recipes step by step: each one's scores, and its paired difference to the one before.

Pure: the same ledger rows give the same text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dit8.eval.run import Interval
from dit8.eval.scorers import get_scorer
from dit8.eval.stats import mean_interval, paired_interval
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError


@dataclass(frozen=True)
class Rung:
    """One recipe's mean of one scorer and its difference to the recipe before it."""

    recipe: str
    scorer: str
    mean: Interval
    step: Interval | None  # this recipe - the one before, over the same pictures; None: the first


def climb(rows: pd.DataFrame, recipes: Sequence[str], scorers: Sequence[str]) -> list[Rung]:
    """Compute the ladder from the ledger's rows of one model, variant, dtype and backend.

    Raises:
        UserError: a recipe has no rows, or rows of several runs.
    """
    rungs = []
    for scorer in scorers:
        before: dict[SampleKey, float] | None = None
        for recipe in recipes:
            values = _values(rows, recipe, scorer)
            step = None if before is None else paired_interval(values, before)
            rungs.append(Rung(recipe, scorer, mean_interval(values), step))
            before = values
    return rungs


def render_ladder(title: str, rungs: Sequence[Rung]) -> str:
    """Render as a markdown table below a title line."""
    lines = [f"{title}\n", "| scorer | recipe | n | mean [95 %] | change by this step [95 %] |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for rung in rungs:
        scorer = get_scorer(rung.scorer)
        arrow = "↑" if scorer.higher_is_better else "↓"
        step = "" if rung.step is None else _text(rung.step, "+.3g")
        lines.append(
            f"| {rung.scorer} {arrow} | {rung.recipe} | {rung.mean.n} "
            f"| {_text(rung.mean, '.4g')} | {step} |"
        )
    return "\n".join(lines) + "\n"


def _values(rows: pd.DataFrame, recipe: str, scorer: str) -> dict[SampleKey, float]:
    mine = rows[(rows["recipe"] == recipe) & (rows["scorer"] == scorer)]
    runs = sorted(mine["run_id"].unique())
    if len(runs) != 1:
        raise UserError(
            f"ladder: recipe {recipe} must have the rows of one run for {scorer}, got "
            f"{len(runs)} runs {', '.join(runs)}; run scripts/evaluate.py recipe={recipe}, or name "
            "dtype and backend"
        )
    keys = zip(mine["prompt_id"], mine["seed"], strict=True)
    return {(p, int(s)): float(v) for (p, s), v in zip(keys, mine["value"], strict=True)}


def _text(interval: Interval, spec: str) -> str:
    text = f"{interval.estimate:{spec}} [{interval.low:{spec}}, {interval.high:{spec}}]"
    return text if interval.method == "bca" else f"{text} ({interval.method})"
