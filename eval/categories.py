"""Split scores by the kind of content: which kinds of picture a variant reads better or worse in.

Pure: the same rows give the same text. A category is a property of the prompt, so that both
variants of a paired difference have the same prompts in it. Fifteen categories are fifteen chances
to find a difference where there is none: a table by category says where to look, and a verdict
comes from all prompts together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dit8.eval.exact_match import delta_interval
from dit8.eval.run import Interval
from dit8.eval.scorers import SCORERS, get_scorer
from dit8.eval.scorers.ocr import OcrScorer
from dit8.eval.stats import MIN_PROMPTS, mean_interval
from dit8.eval.table import align, format_interval, values_by_key
from dit8.models.types import Sample, SampleKey


@dataclass(frozen=True)
class CategoryRow:
    """Hold one score of one variant in one category.

    Args:
        prompts: number of prompts with a value.
        mean: over these; None with fewer than three prompts, which give no interval.
        delta: variant - reference, paired; None for the reference and where `mean` is.
    """

    scorer: str
    category: str
    variant: str
    prompts: int
    mean: Interval | None
    delta: Interval | None


def categories_of(samples: Iterable[Sample]) -> dict[str, str]:
    """Return prompt id -> category, for prompts that have one."""
    return {
        sample.prompt.id: sample.prompt.category for sample in samples if sample.prompt.category
    }


def split_by_category(
    values: Mapping[SampleKey, float], categories: Mapping[str, str]
) -> dict[str, dict[SampleKey, float]]:
    """Return category -> the values of its prompts, by name; prompts without one are left out."""
    split: dict[str, dict[SampleKey, float]] = {name: {} for name in sorted(categories.values())}
    for key, value in values.items():
        if key[0] in categories:
            split[categories[key[0]]][key] = value
    return {name: own for name, own in split.items() if own}


def summarize_categories(
    scores: pd.DataFrame, categories: Mapping[str, str], *, reference: str
) -> list[CategoryRow]:
    """Average the reading scores per category and compare with the reference variant.

    Args:
        scores: rows of results/scores.csv, of one run per variant, all of one dtype.
        categories: prompt id -> category, see `categories_of`.
        reference: variant the others are compared with.

    Returns:
        Rows ordered by scorer, category, then variant with the reference first; none without
        categories.

    Raises:
        UserError: a partner is missing.
    """
    rows = []
    reading = [name for name, scorer in SCORERS.items() if isinstance(scorer, OcrScorer)]
    for scorer, group in scores[scores["scorer"].isin(reading)].groupby("scorer", sort=True):
        split = {
            variant: split_by_category(values_by_key(own), categories)
            for variant, own in group.groupby("variant", sort=True)
        }
        for category in sorted({name for own in split.values() for name in own}):
            base = split.get(reference, {}).get(category, {})
            for variant in sorted(split, key=lambda name: (name != reference, name)):
                values = split[variant].get(category, {})
                rows.append(_row(scorer, category, variant, values, base, variant == reference))
    return rows


def render_categories(rows: Sequence[CategoryRow], reference: str) -> str:
    """Render the rows as a markdown table below a title; "" where there are none."""
    if not rows:
        return ""
    lines = [["scorer", "category", "variant", "n", "mean [95 %]", f"Δ to {reference} [95 %]"]]
    for row in rows:
        arrow = "↑" if get_scorer(row.scorer).higher_is_better else "↓"
        mean = "too few prompts" if row.mean is None else format_interval(row.mean, ".4g")
        delta = "" if row.delta is None else format_interval(row.delta, "+.4g")
        names = [f"{row.scorer} {arrow}", row.category, row.variant, str(row.prompts)]
        lines.append([*names, mean, delta])
    return f"Reading by category\n\n{align(lines)}"


def _row(
    scorer: str,
    category: str,
    variant: str,
    values: Mapping[SampleKey, float],
    base: Mapping[SampleKey, float],
    is_reference: bool,
) -> CategoryRow:
    prompts = len({prompt_id for prompt_id, _ in values})
    if prompts < MIN_PROMPTS:
        return CategoryRow(scorer, category, variant, prompts, None, None)
    delta = None if is_reference else delta_interval(get_scorer(scorer).bounds, values, base)
    return CategoryRow(scorer, category, variant, prompts, mean_interval(values), delta)
