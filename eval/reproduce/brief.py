"""The columns of three tables that the pages in docs show: what a reader compares first.

A whole table has a column for everything that the papers report and for everything that somebody
with the gated weights can fill. Here each column has a short head of its own, which still says
whether its figures were measured or reported, and on what.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dit8.eval.reproduce import bench
from dit8.eval.reproduce.headline import WIDTH
from dit8.eval.reproduce.render import render_cells, title
from dit8.eval.reproduce.runs import MINI
from dit8.eval.reproduce.table import KEY, MEASURED, REPORTED, Table, remarks

CARD = "RTX 3090, by the papers"
FULL = "full size, random weights"


@dataclass(frozen=True)
class Pick:
    """Choose a column by label, kind and place, and give it a head."""

    head: str
    label: str
    kind: str = MEASURED
    where: str = bench.WHERE


PICKS: Mapping[int, Sequence[Pick]] = {
    1: (
        Pick("image on an H200, s", "image"),
        Pick("CFG step, ms", "CFG step"),
        Pick("times bf16 of its run", bench.BESIDE_BF16),
        Pick("peak, GB", "peak"),
        Pick("reported: image on an RTX 3090, s", "image", REPORTED, CARD),
    ),
    2: (
        Pick("H200: fused GEMM, times bf16", "fused GEMM, both M", where="H200"),
        Pick("with quantization", "quantize + fused GEMM, both M", where="H200"),
        Pick("unfused", "quantize + unfused, both M", where="H200"),
        Pick("fake quantization", "fake quantization, both M", where="H200"),
        Pick("reported: fused GEMM on an RTX 3090", "fused GEMM", REPORTED, CARD),
    ),
    7: (
        Pick("size, GB", "size", where=FULL),
        Pick("peak at 1024 px on an H200, GB", "peak at 1024 px"),
        Pick("mini, not Ideogram 4: latent error ↓", "latent error ↓", where=MINI.label),
        Pick("mini: texts exact ↑", "texts exact ↑", where=MINI.label),
        Pick("reported: published files, GB", "size", REPORTED, "published files"),
    ),
}


def render_brief(table: Table) -> str:
    """Render the chosen columns with their remarks, and where the whole table is.

    Raises:
        KeyError: a table that PICKS does not have.
        ValueError: a pick without its column.
    """
    picks = PICKS[table.number]
    names = [index for index, column in enumerate(table.columns) if column.kind == KEY]
    chosen = [*names, *(_find(table, pick) for pick in picks)]
    part = replace(
        table,
        columns=tuple(table.columns[index] for index in chosen),
        rows=tuple(tuple(row[index] for index in chosen) for row in table.rows),
    )
    heads = [table.columns[index].label for index in names] + [pick.head for pick in picks]
    page = f"table{table.number}_{table.slug}.md"
    source = textwrap.fill(
        f"From [table {table.number}](results/tables/{page}), which has every column, says how it "
        "was measured and what fills its empty cells.",
        WIDTH - len("../"),  # a page in docs adds it
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(
        [
            f"# {title(table)}\n",
            *render_cells(part, heads, remarks(part)),
            f"{source}\n",
        ]
    )


def _find(table: Table, pick: Pick) -> int:
    for index, column in enumerate(table.columns):
        if (column.label, column.kind, column.where) == (pick.label, pick.kind, pick.where):
            return index
    raise ValueError(f"render_brief: table {table.number} has no column for {pick}")
