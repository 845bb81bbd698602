"""Say what this machine can run: hardware, packages, weights, variants, scorers.

    python scripts/doctor.py
    python scripts/doctor.py --json                               # the last line only

Takes a few seconds, changes nothing, and ends with 0 whatever it finds. Prints one JSON document
last.
"""

import argparse
import importlib.util
import json
import sys

if sys.version_info < (3, 11):  # noqa: UP036 (the imports below need 3.11)
    detail = f"{sys.version.split()[0]}, expected 3.11, 3.12 or 3.13"
    print(json.dumps({"packages": {"python": {"ok": False, "detail": detail}}}))
    sys.exit(0)

try:
    from dit8.conf.paths import ROOT
except ModuleNotFoundError:
    print("doctor: package dit8 is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.doctor import Row, examine, report

MARKS = {True: "yes", False: "no", None: ""}


def show(rows: list[Row]) -> None:
    """Print the rows as a table, plainly where rich is not installed."""
    if importlib.util.find_spec("rich") is None:
        for row in rows:
            print(f"{row.section:9} {row.name:24} {MARKS[row.ok]:3} {row.detail}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("section", "what", "", "detail")
    for number, row in enumerate(rows):
        is_first = number == 0 or rows[number - 1].section != row.section
        is_last = number + 1 == len(rows) or rows[number + 1].section != row.section
        section = row.section if is_first else ""
        table.add_row(section, row.name, MARKS[row.ok], row.detail, end_section=is_last)
    Console(width=100).print(table, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = examine(ROOT)
    if not arguments.json:
        show(rows)
    print(json.dumps(report(rows)))


if __name__ == "__main__":
    main()
