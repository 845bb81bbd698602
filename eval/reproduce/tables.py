"""The nine tables, and writing them: <results>/tables/table<number>_<slug>.md, .tex and .csv.

From rows that are there, without a GPU or a network; the same rows give the same bytes. The
papers' figures are the committed ones, whosever rows stand beside them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from dit8.eval.reproduce import (
    ablation,
    breakdown,
    deployment,
    fidelity,
    frontier,
    gemm,
    quality,
    speed,
    text,
)
from dit8.eval.reproduce.paper import FOLDER as PAPERS
from dit8.eval.reproduce.render import render_csv, render_latex, render_markdown
from dit8.eval.reproduce.table import Table
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

BUILDERS: Mapping[int, Callable[[Path], Table]] = {
    1: speed.build,
    2: gemm.build,
    3: quality.build,
    4: text.build,
    5: fidelity.build,
    6: ablation.build,
    7: frontier.build,
    8: deployment.build,
    9: breakdown.build,
}
RENDERERS: Mapping[str, Callable[[Table], str]] = {
    "md": render_markdown,
    "tex": render_latex,
    "csv": render_csv,
}


def build_tables(results: Path, numbers: Iterable[int] = tuple(BUILDERS)) -> list[Table]:
    """Build tables by number, all by default.

    Raises:
        UserError: no table has that number, or its rows cannot be read.
    """
    tables = []
    for number in numbers:
        if number not in BUILDERS:
            known = ", ".join(map(str, BUILDERS))
            raise UserError(f"table must be one of {known}, got {number}; correct it")
        tables.append(_placed(BUILDERS[number](results), results))
    return tables


def _placed(table: Table, results: Path) -> Table:
    """Name the folder that the rows came from in the table's sources."""
    root = PAPERS.parents[1]
    name = str(results.relative_to(root) if results.is_relative_to(root) else results)
    sources = (
        source if source.startswith("results/paper/") else re.sub("^results/", f"{name}/", source)
        for source in table.sources
    )
    return replace(table, sources=tuple(sources), results=name)


def write_tables(tables: Iterable[Table], folder: Path) -> list[Path]:
    """Write every table in every form; returns the files."""
    paths = []
    for table in tables:
        for suffix, render in RENDERERS.items():
            path, content = folder / f"{table.stem}.{suffix}", render(table)
            write_atomically(path, lambda p, c=content: p.write_text(c, encoding="utf-8"))
            paths.append(path)
    return paths
