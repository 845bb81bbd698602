"""Say of every variant in the ledger which of its differences are real.

    python scripts/verdicts.py                           # the mini, from the committed rows
    python scripts/verdicts.py --model mini_planted --backend cpu-reference torch-cpu
    python scripts/evaluate.py -m variant=bf16,fp8,q8_0,q4_k,int8,fused_int8    # makes the rows

Each variant is compared with the reference prompt by prompt, by every score that judges a picture
alone, against the margins of conf/margins.yaml: eval/verdict.py has the procedure. The noise floor
is what the reference's own weights show in bfloat16 arithmetic. Writes
<results>/tables/verdicts_<model>.md. Prints one JSON document last.
"""

import argparse
import json
import sys
from collections.abc import Mapping

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"verdicts: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import pandas as pd

from dit8.eval.ledger import SCORES, read_table
from dit8.eval.margins import Margin, load_margins
from dit8.eval.newest import newest_runs
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default="mini")
    made.add_argument("--prompts", default="mini_hard")
    made.add_argument("--reference", default="bf16")
    made.add_argument("--recipe", default="smoothquant")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--engine", default="stock")
    made.add_argument("--backend", nargs="+", default=["torch-cuda", "triton"])
    made.add_argument("--results", default="results")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.noise_floor import noise_floor
from dit8.eval.table import align, format_interval, values_by_key
from dit8.eval.verdict import Comparison, compare, conclude

FLOOR_DTYPE = "bfloat16"
LIMITS = {
    "mini": "The mini draws posters of 256 px. What follows says whether a variant keeps what this "
    "model does; it says nothing about Ideogram 4, photographs, or how people would judge."
}


def runs_of(rows: pd.DataFrame, variant: str) -> dict[str, Mapping[SampleKey, float]]:
    """Return scorer -> value per (prompt id, seed) of a variant's one run.

    Raises:
        UserError: rows of several runs.
    """
    mine = rows[rows["variant"] == variant]
    runs = sorted(mine["run_id"].unique())
    if len(runs) != 1:
        raise UserError(
            f"verdicts: variant {variant} must have one run, got {', '.join(runs) or 'none'}; "
            "narrow the choice with --recipe, --engine or --backend"
        )
    return {name: values_by_key(group) for name, group in mine.groupby("scorer")}


def floors_of(rows: pd.DataFrame, everything: pd.DataFrame, reference: str) -> dict[str, float]:
    """Return the noise floor of every score, in its unit; empty where no run gives one.

    Args:
        rows: those that are compared.
        everything: with the reference's run in another arithmetic.
        reference: variant.
    """
    (unchanged,) = rows[rows["variant"] == reference]["run_id"].unique()
    same = everything[(everything["variant"] == reference) & (everything["dtype"] == FLOOR_DTYPE)]
    found = sorted(same["run_id"].unique())
    if not found:
        return {}
    both = everything[everything["run_id"].isin([unchanged, found[-1]])]
    return {
        name: floor.half_width for name, floor in noise_floor(both, unchanged, found[-1]).items()
    }


def judge(
    rows: pd.DataFrame,
    reference: str,
    margins: Mapping[str, Margin],
    floors: Mapping[str, float],
) -> dict[str, list[Comparison]]:
    """Compare every variant of the rows with the reference; variant -> comparisons."""
    base = runs_of(rows, reference)
    variants = sorted(set(rows["variant"]) - {reference})
    return {name: compare(runs_of(rows, name), base, margins, floors=floors) for name in variants}


def render(
    title: str,
    reference: str,
    found: Mapping[str, list[Comparison]],
    floors: Mapping[str, float],
    limits: str,
) -> str:
    """Lay out the verdicts: a sentence for each variant, then every comparison."""
    sentences = [conclude(name, reference, each).sentence for name, each in found.items()]
    lines = [["variant", "score", "n", "difference [95 %]", "noise floor", "margin"]]
    lines[0] += ["p, differs", "p, equivalent", "prompts for 80 % power", "verdict"]
    for name, comparisons in found.items():
        for one in comparisons:
            margin = "" if one.margin is None else f"{one.margin.value:g}"
            tost = "" if one.p_tost is None else f"{one.p_tost:.3g}"
            needed = "" if one.needed is None else str(one.needed)
            shown = format_interval(one.delta, "+.4g")
            noise = f"{floors[one.scorer]:.2g}" if one.scorer in floors else ""
            lines.append([name, one.scorer, str(one.delta.n), shown, noise, margin])
            lines[-1] += [f"{one.p_difference:.3g}", tost, needed, one.verdict.kind]
    parts = [title, *filter(None, [limits]), "".join(f"- {text}\n" for text in sentences).rstrip()]
    return "\n\n".join([*parts, align(lines)])


def verdicts(arguments: argparse.Namespace) -> dict:
    """Filter the ledger, judge, write the page."""
    results = from_root(arguments.results)
    everything = newest_runs(read_table(results / "scores.csv", SCORES), results / "runs")
    wanted = {"model": arguments.model, "prompt_set": arguments.prompts}
    wanted["engine"] = arguments.engine
    for column, value in wanted.items():
        everything = everything[everything[column] == value]
    everything = everything[everything["backend"].isin(arguments.backend)]
    rows = everything[everything["dtype"] == arguments.dtype]
    rows = rows[rows["recipe"].isin(["none", arguments.recipe])]
    if arguments.reference not in set(rows["variant"]):
        raise UserError(
            f"verdicts: the ledger must have rows of {arguments.reference} with {wanted}, dtype "
            f"{arguments.dtype} and backend {' or '.join(arguments.backend)}, got none; run "
            "scripts/evaluate.py, or correct the choice"
        )
    floors = floors_of(rows, everything, arguments.reference)
    found = judge(rows, arguments.reference, load_margins(), floors)
    title = (
        f"Model {arguments.model}, prompts {arguments.prompts}, {arguments.dtype}, engine "
        f"{arguments.engine}, {', '.join(sorted(rows['backend'].unique()))}; recipe "
        f"{arguments.recipe}; against {arguments.reference}"
    )
    limits = LIMITS.get(arguments.model.split("_")[0], "")
    text = render(title, arguments.reference, found, floors, limits)
    page = results / "tables" / f"verdicts_{arguments.model}.md"
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    print(text)
    kinds = {name: conclude(name, "", each).kind for name, each in found.items()}
    return {"table": shorten(page), "verdicts": kinds}


def main() -> None:
    with one_sentence("verdicts"):
        print(json.dumps(verdicts(parser().parse_args())))


if __name__ == "__main__":
    main()
