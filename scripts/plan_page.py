"""Put what the plans for an RTX 3090 print into docs/reproduce.md, between their markers.

    python scripts/plan_page.py

A line `<!-- plan: tables -->` or `<!-- plan: steps -->` is followed by what this script makes of
the plans, up to a line `<!-- end -->`: committed measurements and reported figures only, nothing of
this machine. Prints one JSON document last.
"""

import json
import re
import sys
from collections.abc import Sequence

try:
    from dit8.conf.paths import ROOT, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"plan_page: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.gpus import load_peaks
from dit8.eval.reproduce.estimate import load_measurements
from dit8.eval.reproduce.plan import TABLES, plan_table
from dit8.eval.reproduce.step import Machine, Plan, Request, Step, cost, merge, sum_up, total
from dit8.eval.table import align
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically
from dit8.scripts.table_request import peaks_path

PAGE = ROOT / "docs" / "reproduce.md"
GPU, HARDWARE = "rtx3090", "cuda_24gb"
# beside what a plan leaves: download and environment, as scripts/download.py and Makefile say
WEIGHTS_GB, VENV_GB = 27.5, 2.9
BLOCK = re.compile(r"<!-- plan: (?P<name>\S+) -->\n.*?<!-- end -->", re.DOTALL)


def make_plans() -> tuple[list[Plan], dict[int, str]]:
    """Plan every table for the card; returns the plans, and why others have none."""
    gpus = load_peaks(peaks_path())
    (card,) = (gpu for gpu in gpus if gpu.gpu == GPU)
    known = load_measurements(ROOT / "results", gpus)
    plans, refused = [], {}
    for table in TABLES:
        machine = Machine("cuda", GPU, card.memory_gb)
        try:
            plans.append(plan_table(Request(table, "ideogram4", HARDWARE, machine), known))
        except UserError as error:
            refused[table] = str(error)
    return plans, refused


def tables_block(plans: Sequence[Plan], refused: dict[int, str]) -> str:
    """Tabulate what each table takes alone, and after those above it."""
    lines = [["table", "alone", "after those above"]]
    done: list[Plan] = []
    for table in TABLES:
        found = [plan for plan in plans if plan.request.table == table]
        if not found:
            lines.append([str(table), "nothing: it stands on the committed rows", ""])
            continue
        before = merge(done)
        done += found
        new = merge(done)[len(before) :]
        lines.append([str(table), sum_up(found[0].steps), sum_up(new)])
    lines.append(["all", "", sum_up(merge(plans))])
    made = total(merge(plans))[1] / 1e9
    whole = (
        f"\nDisk in all: {WEIGHTS_GB:g} GB of weights, {VENV_GB:g} GB of environment and "
        f"{made:.1f} GB that the plan leaves, {WEIGHTS_GB + VENV_GB + made:.0f} GB.\n"
    )
    reasons = "".join(f"\n- Table {table}: {text}." for table, text in refused.items())
    left_out = dict.fromkeys(text for plan in plans for text in plan.left_out)
    left = "".join(f"\n- Left out: {text}." for text in left_out)
    return align(lines) + whole + reasons + left


def steps_block(steps: Sequence[Step]) -> str:
    """List the commands of all tables in their order, each with what it costs."""
    lines = []
    for number, step in enumerate(steps, 1):
        lines.append(f"{number}. {step.what}: {cost(step)}\n\n       python {' '.join(step.words)}")
    return "\n\n".join(lines)


def fill(text: str) -> str:
    """Return the page with every block renewed.

    Raises:
        UserError: a block of another name.
    """
    plans, refused = make_plans()
    blocks = {"tables": tables_block(plans, refused), "steps": steps_block(merge(plans))}

    def replace(match: re.Match) -> str:
        name = match["name"]
        if name not in blocks:
            raise UserError(
                f"{shorten(PAGE)} must name a plan of {', '.join(blocks)}, got {name!r}; correct it"
            )
        return f"<!-- plan: {name} -->\n\n{blocks[name]}\n\n<!-- end -->"

    return BLOCK.sub(replace, text)


def main() -> None:
    with one_sentence("plan_page"):
        text = fill(PAGE.read_text(encoding="utf-8"))
        write_atomically(PAGE, lambda path: path.write_text(text, encoding="utf-8"))
        print(json.dumps({"page": shorten(PAGE)}))


if __name__ == "__main__":
    main()
