"""Put the committed tables into README.md and docs/*.md, between their markers.

    python scripts/fill_readme.py

A demo is published where the committed one is:

    python scripts/demo.py 8 results/demo && cp results/demo/table.md results/tables/demo.md

A line `<!-- table: PATH -->` is followed by that file's content, up to a line `<!-- end -->`. A
title there becomes bold text, because it would stand above the page's own. Paths, and the links
inside such files, count from the repository's root; on a page in docs they are written from there.
"""

import os
import re
import sys
from pathlib import Path

try:
    from dit8.conf.paths import ROOT, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"fill_readme: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

TITLE = re.compile(r"^# (?P<words>.+)$", re.MULTILINE)
BLOCK = re.compile(r"<!-- table: (?P<path>\S+) -->\n.*?<!-- end -->", re.DOTALL)
LINK = re.compile(r"\]\((?P<path>[\w./-]+)\)")  # to a file, not to the web or within the page


def pages() -> list[Path]:
    """Return the pages that have blocks, README.md first."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in found if BLOCK.search(page.read_text(encoding="utf-8"))]


def fill(text: str, page: Path = ROOT / "README.md") -> str:
    """Return a page's text with every block replaced by its file.

    Raises:
        UserError: a named file is missing.
    """

    def replace(match: re.Match) -> str:
        path = ROOT / match["path"]
        if not path.is_file():
            raise UserError(
                f"{shorten(page)} names {match['path']}, which does not exist; make it first"
            )
        table = TITLE.sub(r"**\g<words>**", path.read_text(encoding="utf-8").strip())
        table = LINK.sub(lambda link: f"]({_from(page, link['path'])})", table)
        return f"<!-- table: {match['path']} -->\n\n{table}\n\n<!-- end -->"

    return BLOCK.sub(replace, text)


def _from(page: Path, path: str) -> str:
    return Path(os.path.relpath(ROOT / path, page.parent)).as_posix()


def main() -> None:
    with one_sentence("fill_readme"):
        filled = {page: fill(page.read_text(encoding="utf-8"), page) for page in pages()}
        for page, text in filled.items():
            write_atomically(page, lambda path, text=text: path.write_text(text, encoding="utf-8"))
            print(shorten(page))


if __name__ == "__main__":
    main()
