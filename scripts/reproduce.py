"""Write the papers' nine tables from rows that are there, or make the rows that a table needs.

    python scripts/reproduce.py                                   # all nine, in seconds, no GPU
    python scripts/reproduce.py --table 3                         # one of them
    python scripts/reproduce.py results=outputs/results           # all nine from your own rows
    python scripts/reproduce.py --run table=5 model=mini hardware=cpu n=8  # first its rows
    python scripts/reproduce.py --run table=1 model=ideogram4 hardware=cuda_24gb plan=true

Reads the rows of <results>, by default the committed ones, and conf/gpus and results/paper, the
papers' figures. Writes <results>/tables/table<number>_<slug>.md, .tex and .csv. From all nine
committed ones it also writes results/FINDINGS.md, which says which of the papers' claims hold here,
and what README.md and the pages in docs show: results/readme/chart.svg and results/tables/short.md,
headline.md, verdict_line.md and brief_*.md (scripts/fill_readme.py puts them there). Measured and
reported figures stand in separate columns; an empty cell says why it is empty and which command
fills it. With --run the rows go to outputs/results, from which the tables are then made
(results=FOLDER: another folder, results=results: the committed rows). It says beforehand how long
it takes and how much disk (plan=true only says it), and docs/reproduce.md tells the whole way.
Prints one JSON document last.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from dit8.conf.paths import ROOT, from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"reproduce: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.margins import load_margins
from dit8.eval.reproduce.table import Table, tally
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--table", type=int, help="1 to 9; default: all")
    made.add_argument("--run", action="store_true", help="make the rows first: table=N ...")
    made.add_argument("words", nargs="*", metavar="KEY=VALUE", help="results=FOLDER, ...")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.limits import examine
from dit8.eval.limits_table import answer
from dit8.eval.reproduce import (
    chart,
    findings_page,
    headline,
    quality_claims,
    short,
    speed_claims,
    verdict_line,
)
from dit8.eval.reproduce.brief import PICKS, render_brief
from dit8.eval.reproduce.finding import find
from dit8.eval.reproduce.tables import BUILDERS, build_tables, write_tables
from dit8.scripts import limits

COMMITTED = ROOT / "results"
MEASURED = ("scores.csv", "bench", "convert")  # of these a folder of rows has some
CHART = "readme/chart.svg"
CLAIMS = (*speed_claims.CLAIMS, *quality_claims.CLAIMS)


def reproduce(results: Path, number: int | None) -> dict[str, Any]:
    """Write one table or all; returns the document that is printed last.

    Raises:
        UserError: a folder without rows, or rows that cannot be read.
    """
    if not any((results / name).exists() for name in MEASURED):
        raise UserError(
            f"results must be a folder with rows ({', '.join(MEASURED)}), got "
            f"{shorten(results)} without any; make some with scripts/evaluate.py or make demo, or "
            "leave results= out for the committed rows"
        )
    tables = build_tables(results, BUILDERS if number is None else (number,))
    paths = write_tables(tables, results / "tables")
    if number is None and results == COMMITTED:
        paths.append(write_findings(results, {table.number: table for table in tables}))
        paths += write_for_readme(results, tables)
    for table in tables:
        counts = tally([table])
        filled = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        print(f"table {table.number}, {table.title}: {filled}")
    return {"files": [shorten(path) for path in paths], "cells": tally(tables)}


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
        arguments = parser().parse_args()
        if arguments.run:
            if arguments.table is not None:
                raise UserError(
                    f"--run must have its table as a word, got --table {arguments.table} beside "
                    "it; write --run table=3"
                )
            from dit8.scripts.table_runs import run_table  # brings in all that draws and scores

            print(json.dumps(run_table(arguments.words)))
            return
        print(json.dumps(reproduce(folder_of(arguments.words), arguments.table)))


def folder_of(words: Sequence[str]) -> Path:
    """Read the one word that the tables take, results=FOLDER; default: the committed rows.

    Raises:
        UserError: another word, or more of them.
    """
    key, _, folder = "".join(words[:1] or ("results=results",)).partition("=")
    if len(words) > 1 or key != "results" or not folder:
        raise UserError(
            f"without --run the one word must be results=FOLDER, got {' '.join(words)}; correct "
            "it, write --table 3 for one table, or add --run to make rows"
        )
    return from_root(folder)


if __name__ == "__main__":
    main()
