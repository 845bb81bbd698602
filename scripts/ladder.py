"""Tabulate a ladder of recipes from the ledger: what each step changes, with paired intervals.

    python scripts/ladder.py mini_planted                         # from the committed rows
    python scripts/ladder.py mini_planted --recipes naive smoothquant
    python scripts/evaluate.py -m model=mini_planted variant=fused_int8 n=100 \\
        recipe=naive,smooth_only,smoothquant                      # your own rows, and their table:
    python scripts/ladder.py mini_planted --results outputs/results

Writes <results>/tables/ladder_<model>.md. Prints one JSON document last.
"""

import argparse
import json
import sys

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"ladder: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.ledger import SCORES, read_table
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

RECIPES = ("naive", "smooth_only", "smoothquant")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model")
    made.add_argument("--variant", default="fused_int8")
    made.add_argument("--recipes", nargs="+", default=RECIPES)
    made.add_argument("--prompts", default="mini_hard")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--backend")
    made.add_argument("--results", default="results")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.ladder import climb, render_ladder

SCORERS = ("latent_error", "psnr", "ocr_exact", "ocr_ned")


def ladder(arguments: argparse.Namespace) -> dict:
    """Filter the ledger, compute the ladder, write the table."""
    rows = read_table(from_root(arguments.results) / "scores.csv", SCORES)
    wanted = {
        "model": arguments.model,
        "variant": arguments.variant,
        "dtype": arguments.dtype,
        "prompt_set": arguments.prompts,
    }
    if arguments.backend is not None:
        wanted["backend"] = arguments.backend
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    backends = sorted(rows["backend"].unique())
    if len(backends) != 1:
        raise UserError(
            f"ladder: rows with {wanted} must come from one backend, got "
            f"{', '.join(backends) or 'no rows'}; run scripts/evaluate.py, or name --backend"
        )
    planted = " (outliers planted)" if "planted" in arguments.model else ""
    title = (
        f"Model {arguments.model}{planted}, variant {arguments.variant}, prompts "
        f"{arguments.prompts}, {arguments.dtype}, {backends[0]}"
    )
    rungs = climb(rows, arguments.recipes, SCORERS)
    text = render_ladder(title, rungs)
    path = from_root(arguments.results) / "tables" / f"ladder_{arguments.model}.md"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    print(text)
    return {"table": shorten(path), "backend": backends[0], "recipes": list(arguments.recipes)}


def main() -> None:
    with one_sentence("ladder"):
        print(json.dumps(ladder(parser().parse_args())))


if __name__ == "__main__":
    main()
