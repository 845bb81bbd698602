"""Compare two variants prompt by prompt, from the rows that the ledger has.

    python scripts/compare.py fused_int8 int8 --engine dit8       # is the fused kernel as good?
    python scripts/evaluate.py -m variant=int8,fused_int8 engine=dit8    # makes the rows

Every score is paired by prompt and seed, also those that compare with a reference picture: the
difference is then of two distances to the same reference. Writes
<results>/tables/<variant>_against_<other>_<model>.md. Prints one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json

import pandas as pd

from eval.exact_match import delta_interval
from eval.ledger import SCORES, read_table
from eval.records import SampleKey
from eval.scorers import get_scorer
from eval.scoring import TIMINGS
from eval.stats import mean_interval
from eval.table import format_interval, values_by_key
from quant.atomic import write_atomically
from quant.errors import UserError
from scripts.cli import from_root, one_sentence, terse


def values_of(rows: pd.DataFrame, variant: str, scorer: str) -> dict[SampleKey, float]:
    """Return value per (prompt id, seed) of one variant's one run.

    Raises:
        UserError: no rows, or rows of several runs.
    """
    found = rows[(rows["variant"] == variant) & (rows["scorer"] == scorer)]
    runs = sorted(found["run_id"].unique())
    if len(runs) != 1:
        raise UserError(
            f"compare: {scorer} of variant {variant} must come from one run, got "
            f"{', '.join(runs) or 'none'}; run scripts/evaluate.py, or narrow the choice with "
            "--engine, --dtype or --prompts"
        )
    return values_by_key(found)


def compare(rows: pd.DataFrame, variant: str, other: str) -> str:
    """Tabulate both variants' means and their paired difference for every score both have.

    Raises:
        UserError: no score that both have, or what `values_of` raises.
    """
    scorers = [set(rows[rows["variant"] == name]["scorer"]) for name in (variant, other)]
    shared = sorted(scorers[0] & scorers[1] - set(TIMINGS))
    if not shared:
        raise UserError(
            f"compare: variants {variant} and {other} must have a score in common, got "
            f"{sorted(scorers[0])} and {sorted(scorers[1])}; run scripts/evaluate.py for both"
        )
    lines = [["score", "unit", "n", variant, other, f"{variant} - {other} [95 %]"]]
    for name in shared:
        scorer = get_scorer(name)
        mine, theirs = (values_of(rows, v, name) for v in (variant, other))
        delta = delta_interval(scorer.bounds, mine, theirs)
        means = (format_interval(mean_interval(values), ".4g") for values in (mine, theirs))
        arrow = "↑" if scorer.higher_is_better else "↓"
        shown = format_interval(delta, "+.3g")
        lines.append([f"{name} {arrow}", scorer.unit, str(delta.n), *means, shown])
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    with one_sentence("compare"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("variant")
        parser.add_argument("other")
        parser.add_argument("--model", default="mini")
        parser.add_argument("--prompts", default="mini_hard")
        parser.add_argument("--dtype", default="float32")
        parser.add_argument("--engine", default="stock")
        parser.add_argument("--results", default="results")
        arguments = parser.parse_args()
        results = from_root(arguments.results)
        rows = read_table(results / "scores.csv", SCORES)
        wanted = {"model": arguments.model, "prompt_set": arguments.prompts}
        wanted |= {"dtype": arguments.dtype, "engine": arguments.engine}
        for column, value in wanted.items():
            rows = rows[rows[column] == value]
        table = compare(rows, arguments.variant, arguments.other)
        chosen = rows[rows["variant"].isin([arguments.variant, arguments.other])]
        backends = ", ".join(
            f"{v} {b}"
            for v, b in sorted(set(zip(chosen["variant"], chosen["backend"], strict=True)))
        )
        title = (
            f"Model {arguments.model}, prompts {arguments.prompts}, {arguments.dtype}, "
            f"engine {arguments.engine}, backends: {backends}"
        )
        name = f"{arguments.variant}_against_{arguments.other}_{arguments.model}.md"
        page, text = results / "tables" / name, f"{title}\n\n{table}"
        write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
        print(text)
        print(json.dumps({"table": terse(page)}))


if __name__ == "__main__":
    main()
