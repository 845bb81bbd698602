"""Write the papers' nine tables from committed rows, or make the rows that a table needs.

    python scripts/reproduce.py                                   # all nine, in seconds, no GPU
    python scripts/reproduce.py --table 3                         # one of them
    python scripts/reproduce.py --run table=5 model=mini hardware=cpu n=8  # first its rows
    python scripts/reproduce.py --run table=1 model=ideogram4 hardware=cuda_24gb plan=true

Reads <results> and conf/gpus, writes <results>/tables/table<number>_<slug>.md, .tex and .csv, and
from all nine <results>/FINDINGS.md, which says which of the papers' claims hold here; with them
<results>/tables/short.md, headline.md, verdict_line.md and brief_*.md, what README.md and the pages
in docs show (scripts/fill_readme.py puts them there), and <results>/readme/chart.svg.
Measured and reported figures stand in separate columns; an empty cell says why it is empty and
which command fills it. With --run it says beforehand how long it takes and how much disk
(plan=true only says it), and docs/reproduce.md tells the whole way. Prints one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from eval.limits import examine
from eval.limits_table import answer
from eval.margins import load_margins
from eval.reproduce import (
    chart,
    findings_page,
    headline,
    quality_claims,
    short,
    speed_claims,
    verdict_line,
)
from eval.reproduce.brief import PICKS, render_brief
from eval.reproduce.finding import find
from eval.reproduce.table import Table, tally
from eval.reproduce.tables import BUILDERS, build_tables, write_tables
from quant.atomic import write_atomically
from quant.errors import UserError
from scripts import limits
from scripts.cli import from_root, one_sentence, terse

CHART = "readme/chart.svg"
CLAIMS = (*speed_claims.CLAIMS, *quality_claims.CLAIMS)


def reproduce(results: Path, number: int | None) -> dict[str, Any]:
    """Write one table or all; returns the document that is printed last."""
    tables = build_tables(results, BUILDERS if number is None else (number,))
    paths = write_tables(tables, results / "tables")
    if number is None:
        paths.append(write_findings(results, {table.number: table for table in tables}))
        paths += write_for_readme(results, tables)
    for table in tables:
        counts = tally([table])
        filled = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        print(f"table {table.number}, {table.title}: {filled}")
    return {"files": [terse(path) for path in paths], "cells": tally(tables)}


def write_findings(results: Path, tables: Mapping[int, Table]) -> Path:
    """Write <results>/FINDINGS.md from all tables and the mini's settings; returns the file."""
    options = limits.parse([f"results={results / 'limits'}", f"ledger={results}"])
    settings = answer(examine(limits.read_runs(options), load_margins()))
    text = findings_page.render(find(CLAIMS, tables, results), settings)
    page = results / "FINDINGS.md"
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    return page


def write_for_readme(results: Path, tables: Sequence[Table]) -> list[Path]:
    """Write what README.md and docs show below <results>; returns the files."""
    by_number = {table.number: table for table in tables}
    texts = {
        "short": short.build(results, by_number[7]),
        "headline": headline.build(results),
        "verdict_line": verdict_line.build(results),
    }
    texts |= {f"brief_{one.slug}": render_brief(one) for one in tables if one.number in PICKS}
    pages = [results / "tables" / f"{name}.md" for name in texts] + [results / CHART]
    drawn = chart.draw(chart.points(results, by_number[5], by_number[6]))
    for page, text in zip(pages, (*texts.values(), drawn), strict=True):
        write_atomically(page, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    return pages


def main() -> None:
    with one_sentence("reproduce"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--table", type=int, help="1 to 9; default: all")
        parser.add_argument("--results", help="folder of the committed rows; default: results")
        parser.add_argument(
            "--run", nargs="+", metavar="KEY=VALUE", help="make the rows first: table=N model=..."
        )
        arguments = parser.parse_args()
        if arguments.run is not None:
            if arguments.table is not None or arguments.results is not None:
                raise UserError(
                    "--run must have its table and results as words, got --table or --results "
                    "beside it; write --run table=3 results=FOLDER"
                )
            from scripts.table_runs import run_table  # brings in all that draws and scores

            print(json.dumps(run_table(arguments.run)))
            return
        print(json.dumps(reproduce(from_root(arguments.results or "results"), arguments.table)))


if __name__ == "__main__":
    main()
