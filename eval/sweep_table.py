"""Lay the cells of a sweep out in one table, a line each, named by what they vary.

Means and paired differences are those of each cell's own document. Cells of one sweep may have
different references (another number of steps has another one), so a difference is always to the
reference drawn under the same setting.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dit8.eval.scorers import get_scorer


def render_sweep(documents: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Render the scores of a sweep as a Markdown table.

    Args:
        documents: label and document of every cell that has scores, see
            `eval.table.score_document`.

    Returns:
        a column a scorer: the mean, and in brackets its paired difference to the reference with
        its 95 % interval where the scorer does not already compare with it; "" without scores.
    """
    names = sorted({name for _, document in documents for name in document["scores"]})
    if not names:
        return ""
    arrows = {True: "↑", False: "↓"}
    heads = [f"{name} {arrows[get_scorer(name).higher_is_better]}" for name in names]
    lines = [["cell", "run", *heads], ["---"] * (2 + len(heads))]
    for label, document in documents:
        cells = [_cell(document, name) for name in names]
        lines.append([label, document["run_id"], *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(document: Mapping[str, Any], scorer: str) -> str:
    score, pair = document["scores"].get(scorer), document["paired"].get(scorer)
    if score is None:
        return "—"
    mean = f"{score['mean']:.4g}"
    if pair is None:
        return mean
    return f"{mean} (Δ {pair['delta']:+.3g} [{pair['low']:+.3g}, {pair['high']:+.3g}])"
