"""Put the committed tables into README.md, between their markers.

    python scripts/fill_readme.py

A demo is published where the committed one is:

    python scripts/demo.py 8 results/demo && cp results/demo/table.md results/tables/demo.md

A line `<!-- table: PATH -->` is followed by that file's content, up to a line `<!-- end -->`. A
title there becomes bold text: it would stand above the README's own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import re

from quant.atomic import write_atomically
from quant.errors import UserError
from scripts.cli import ROOT, one_sentence

TITLE = re.compile(r"^# (?P<words>.+)$", re.MULTILINE)
BLOCK = re.compile(r"<!-- table: (?P<path>\S+) -->\n.*?<!-- end -->", re.DOTALL)


def fill(text: str) -> str:
    """Return the text with every block replaced by its file.

    Raises:
        UserError: a named file is missing.
    """

    def replace(match: re.Match) -> str:
        path = ROOT / match["path"]
        if not path.is_file():
            raise UserError(f"README.md names {match['path']}, which does not exist; make it first")
        table = TITLE.sub(r"**\g<words>**", path.read_text(encoding="utf-8").strip())
        return f"<!-- table: {match['path']} -->\n\n{table}\n\n<!-- end -->"

    return BLOCK.sub(replace, text)


def main() -> None:
    with one_sentence("fill_readme"):
        readme = ROOT / "README.md"
        text = fill(readme.read_text(encoding="utf-8"))
        write_atomically(readme, lambda path: path.write_text(text, encoding="utf-8"))
        print("README.md")


if __name__ == "__main__":
    main()
