"""Turn ledger rows into a table: means per variant, paired differences to a reference.

Pure: the same rows give the same text. One table speaks of one model and one prompt set, and a
variant is compared with the reference at the same dtype only, since bf16 arithmetic alone moves
a picture as much as INT8 weights do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dit8.eval.exact_match import delta_interval
from dit8.eval.run import Interval
from dit8.eval.scorers import get_scorer
from dit8.eval.stats import mean_interval
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError


@dataclass(frozen=True)
class SummaryRow:
    """Hold one line of the table: a variant's mean of one scorer and its paired difference.

    Args:
        reference: name of the variant that `delta` is measured from.
        samples: number of pictures; `mean.n` is the number of prompts.
        delta: variant - reference by (prompt id, seed); None for the reference itself and for
            scorers that already measure against it.
    """

    model: str
    prompt_set: str
    variant: str
    reference: str
    dtype: str
    backend: str
    scorer: str
    samples: int
    mean: Interval
    delta: Interval | None


def summarize(scores: pd.DataFrame, *, reference: str) -> list[SummaryRow]:
    """Average each scorer per variant and compare with the reference variant.

    Args:
        scores: rows of results/scores.csv, one run per variant and dtype.
        reference: variant the others are compared with, at their own dtype.

    Returns:
        Rows ordered by scorer, dtype, then variant with the reference first.

    Raises:
        UserError: no rows, several models or prompt sets, two runs of one variant, a missing
            reference or partner, fewer than three prompts.
    """
    if scores.empty:
        raise UserError("table: no rows to summarize; evaluate a variant first")
    for column in ("model", "prompt_set"):
        _check_single(scores, column)
    summary = []
    for (scorer, dtype), group in scores.groupby(["scorer", "dtype"], sort=True):
        by_variant = {variant: rows for variant, rows in group.groupby("variant", sort=True)}
        is_relative = get_scorer(scorer).needs_reference
        if not is_relative and reference not in by_variant:
            raise UserError(
                f"table: reference variant {reference!r} has no {scorer} rows at dtype {dtype},"
                f" got {sorted(by_variant)}; evaluate the reference at that dtype"
            )
        for variant in sorted(by_variant, key=lambda name: (name != reference, name)):
            rows = by_variant[variant]
            _check_single(rows, "run_id", f" for variant {variant!r} at dtype {dtype}")
            values = values_by_key(rows)
            delta = None
            if variant != reference and not is_relative:
                partner = values_by_key(by_variant[reference])
                delta = delta_interval(get_scorer(scorer).bounds, values, partner)
            shared = {name: rows[name].iloc[0] for name in ("model", "prompt_set", "backend")}
            summary.append(
                SummaryRow(
                    variant=variant,
                    reference=reference,
                    dtype=dtype,
                    scorer=scorer,
                    samples=len(values),
                    mean=mean_interval(values),
                    delta=delta,
                    **shared,
                )
            )
    return summary


def render_markdown(summary: Sequence[SummaryRow]) -> str:
    """Render the summary of one model and prompt set as a markdown table with aligned columns.

    An interval not obtained by BCa is marked by its method. Ends with a newline.

    Raises:
        ValueError: the summary is empty.
    """
    if not summary:
        raise ValueError("render_markdown: summary must hold at least one row, got none")
    first = summary[0]
    header = ["scorer", "unit", "range", "variant", "dtype", "backend", "n", "mean [95 %]"]
    header.append(f"Δ to {first.reference} [95 %]")
    lines = [header]
    for row in summary:
        scorer = get_scorer(row.scorer)
        arrow = "↑" if scorer.higher_is_better else "↓"
        delta = "" if row.delta is None else format_interval(row.delta, "+.4g")
        lines.append(
            [f"{row.scorer} {arrow}", scorer.unit, format_range(scorer.bounds)]
            + [row.variant, row.dtype, row.backend]
            + [str(row.samples), format_interval(row.mean, ".4g"), delta]
        )
    return f"Model {first.model}, prompts {first.prompt_set}\n\n{align(lines)}"


def align(lines: Sequence[Sequence[str]]) -> str:
    """Return a markdown table with aligned columns; the first line is the header."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    cells = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in ruled]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def score_document(summary: Sequence[SummaryRow], variant: str, dtype: str) -> dict[str, Any]:
    """Return {"scores": {name: mean, low, high}, "paired": {name: delta, low, high}}."""
    rows = [row for row in summary if (row.variant, row.dtype) == (variant, dtype)]
    document: dict[str, Any] = {"scores": {}, "paired": {}}
    for row in rows:
        mean = row.mean
        document["scores"][row.scorer] = {
            "mean": mean.estimate,
            "low": mean.low,
            "high": mean.high,
        }
        if row.delta is not None:
            delta = row.delta
            document["paired"][row.scorer] = {
                "delta": delta.estimate,
                "low": delta.low,
                "high": delta.high,
            }
    return document


def values_by_key(rows: pd.DataFrame) -> dict[SampleKey, float]:
    """Return the values of one run and scorer by (prompt id, seed)."""
    keys = zip(rows["prompt_id"], rows["seed"], strict=True)
    return {
        (prompt_id, int(seed)): float(value)
        for (prompt_id, seed), value in zip(keys, rows["value"], strict=True)
    }


def format_interval(interval: Interval, spec: str) -> str:
    """Write estimate and interval, with the method where it is not BCa."""
    text = f"{interval.estimate:{spec}} [{interval.low:{spec}}, {interval.high:{spec}}]"
    return text if interval.method == "bca" else f"{text} ({interval.method})"


def format_range(bounds: tuple[float, float]) -> str:
    """Write the values possible: "0 to 100", or "≥ 0" where there is no highest one."""
    low, high = bounds
    return f"{low:g} to {high:g}" if math.isfinite(high) else f"≥ {low:g}"


def _check_single(rows: pd.DataFrame, column: str, what: str = "") -> None:
    found = sorted(rows[column].unique())
    if len(found) > 1:
        raise UserError(
            f"table: rows of several {column} values{what}: {', '.join(found)}; expected one,"
            " make one table for each"
        )
