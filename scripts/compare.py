"""Compare two variants, or two ways to prompt, prompt by prompt, from the ledger's rows.

    python scripts/compare.py fused_int8 int8 --engine dit8       # is the fused kernel as good?
    python scripts/evaluate.py -m variant=int8,fused_int8 engine=dit8    # makes the rows
    python scripts/compare.py bf16 bf16 --backend torch-cpu --other-prompts mini_hard-raw
    python scripts/evaluate.py -m prompt_style=json,raw hardware=cpu     # makes the rows

Every score is paired by prompt and seed, also those that compare with a reference picture: the
difference is then of two distances to the same reference. Writes
<results>/tables/<variant>_against_<other>_<model>.md. Prints one JSON document last.
"""

import argparse
import json
import sys
from collections.abc import Mapping

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"compare: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import pandas as pd

from dit8.eval.exact_match import delta_interval
from dit8.eval.ledger import SCORES, read_table
from dit8.eval.newest import newest_runs
from dit8.eval.stats import mean_interval
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("variant")
    made.add_argument("other")
    made.add_argument("--model", default="mini")
    made.add_argument("--prompts", default="mini_hard")
    made.add_argument("--other-prompts", help="of the second variant; default: the same")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--engine", default="stock")
    made.add_argument("--backend", help="of both variants; default: whichever each has")
    made.add_argument("--results", default="results")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.score import TIMINGS
from dit8.eval.scorers import get_scorer
from dit8.eval.table import format_interval, values_by_key


def values_of(rows: pd.DataFrame, label: str, scorer: str) -> dict[SampleKey, float]:
    """Return value per (prompt id, seed) of an arm's one run.

    Raises:
        UserError: no rows, or rows of several runs.
    """
    found = rows[rows["scorer"] == scorer]
    runs = sorted(found["run_id"].unique())
    if len(runs) != 1:
        raise UserError(
            f"compare: {scorer} of {label} must come from one run, got "
            f"{', '.join(runs) or 'none'}; run scripts/evaluate.py, or narrow the choice with "
            "--engine, --dtype, --backend or --prompts"
        )
    return values_by_key(found)


def compare(arms: Mapping[str, pd.DataFrame]) -> str:
    """Tabulate the means of two arms and their paired difference for every score both have.

    Args:
        arms: label -> rows of the ledger, in the order of the difference.

    Raises:
        UserError: no score that both have, or what `values_of` raises.
    """
    label, other = arms
    scorers = [set(rows["scorer"]) for rows in arms.values()]
    shared = sorted(scorers[0] & scorers[1] - set(TIMINGS))
    if not shared:
        raise UserError(
            f"compare: {label} and {other} must have a score in common, got "
            f"{sorted(scorers[0])} and {sorted(scorers[1])}; run scripts/evaluate.py for both"
        )
    lines = [["score", "unit", "n", label, other, f"{label} - {other} [95 %]"]]
    for name in shared:
        scorer = get_scorer(name)
        mine, theirs = (values_of(rows, arm, name) for arm, rows in arms.items())
        delta = delta_interval(scorer.bounds, mine, theirs)
        means = (format_interval(mean_interval(values), ".4g") for values in (mine, theirs))
        arrow = "↑" if scorer.higher_is_better else "↓"
        shown = format_interval(delta, "+.3g")
        lines.append([f"{name} {arrow}", scorer.unit, str(delta.n), *means, shown])
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def arms_of(arguments: argparse.Namespace, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of the two arms by label: the variant, and the prompts where they differ.

    Raises:
        UserError: both arms are the same.
    """
    for column in ("model", "dtype", "engine", "backend"):
        if (wanted := getattr(arguments, column)) is not None:
            rows = rows[rows[column] == wanted]
    prompts = [arguments.prompts, arguments.other_prompts or arguments.prompts]
    variants = [arguments.variant, arguments.other]
    labels = variants
    if prompts[0] != prompts[1]:
        labels = [f"{v} {p}" for v, p in zip(variants, prompts, strict=True)]
    if labels[0] == labels[1]:
        raise UserError(
            f"compare: the two must differ, got {labels[0]} twice; name another variant, or "
            "other prompts with --other-prompts"
        )
    return {
        label: rows[(rows["variant"] == variant) & (rows["prompt_set"] == prompt_set)]
        for label, variant, prompt_set in zip(labels, variants, prompts, strict=True)
    }


def main() -> None:
    with one_sentence("compare"):
        arguments = parser().parse_args()
        results = from_root(arguments.results)
        rows = newest_runs(read_table(results / "scores.csv", SCORES), results / "runs")
        arms = arms_of(arguments, rows)
        table = compare(arms)
        backends = ", ".join(
            f"{label} {backend}"
            for label, rows in arms.items()
            for backend in sorted(rows["backend"].unique())
        )
        prompts = arguments.prompts
        if arguments.other_prompts:
            prompts += f" and {arguments.other_prompts}"
        title = (
            f"Model {arguments.model}, prompts {prompts}, {arguments.dtype}, "
            f"engine {arguments.engine}, backends: {backends}"
        )
        name = "_against_".join(label.replace(" ", "_") for label in arms)
        page, text = results / "tables" / f"{name}_{arguments.model}.md", f"{title}\n\n{table}"
        write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
        print(text)
        print(json.dumps({"table": shorten(page)}))


if __name__ == "__main__":
    main()
