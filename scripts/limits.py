"""Ask of the mini whether a verdict depends on steps, guidance or outliers.

    python scripts/limits.py                                      # from the committed rows
    python scripts/limits.py --run hardware=cuda                  # first what is missing
    python scripts/limits.py --run hardware=cpu n=20
    python scripts/limits.py results=outputs/results/limits ledger=outputs/results   # from your own

Six settings, one factor moved at a time (eval/limits.py), four variants and bf16. Rows are looked
for in <results>/scores.csv and in <ledger>/scores.csv, which has those of the default setting:
results/limits and results, with --run outputs/results/limits and outputs/results. With --run, what
both lack is evaluated into <results> by scripts/evaluate.py; stopped and started again it
continues. Any other key=value goes to that script. Writes <ledger>/tables/limits_mini.md. Prints
the page, and one JSON document last.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

try:
    from dit8.conf.paths import ROOT, from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"limits: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import pandas as pd

from dit8.eval.ledger import SCORES, read_table
from dit8.eval.margins import load_margins
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--run", action="store_true", help="evaluate what is missing")
    made.add_argument("words", nargs="*", metavar="KEY=VALUE")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.limits import DISTANCES, JUDGES, REFERENCE, collect, examine, missing, read_records
from dit8.eval.limits_table import ABSENT, render

PROMPTS = "mini_hard"
BACKENDS = {"cuda": "torch-cuda", "cpu": "torch-cpu"}


@dataclass(frozen=True)
class Options:
    """What is tabulated and, with --run, measured."""

    hardware: str
    n: int
    results: str
    ledger: str
    overrides: tuple[str, ...]  # further words for scripts/evaluate.py


def parse(words: Sequence[str], *, is_run: bool = False) -> Options:
    """Read key=value words; those of a run keep its rows apart from the committed ones.

    Raises:
        UserError: a word that is none, hardware that has no backend here, n that is no number.
    """
    ledger = "outputs/results" if is_run else "results"
    given = {"hardware": "cuda", "n": "200", "results": f"{ledger}/limits", "ledger": ledger}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"limits: a word must be key=value, got {word!r}; write hardware=cuda")
        if key in given:
            given[key] = value
        else:
            overrides.append(word)
    if given["hardware"] not in BACKENDS:
        raise UserError(
            f"limits: hardware must be {' or '.join(BACKENDS)}, got {given['hardware']!r}; "
            "correct it"
        )
    if not given["n"].isdigit() or int(given["n"]) < 3:
        raise UserError(f"limits: n must be a number of at least 3, got {given['n']!r}; raise it")
    return Options(**given | {"n": int(given["n"]), "overrides": tuple(overrides)})


def read_runs(options: Options) -> dict:
    """Find the runs in both ledgers."""
    folders = [from_root(options.results), from_root(options.ledger)]
    rows = pd.concat([read_table(folder / "scores.csv", SCORES) for folder in folders])
    records = read_records(folder / "runs" for folder in folders)
    backend = BACKENDS[options.hardware]
    return collect(rows, records, prompt_set=PROMPTS, backend=backend, captions=options.n)


def commands(options: Options) -> list[list[str]]:
    """Compose one sweep for every setting that lacks a variant."""
    scorers = ",".join((*JUDGES, *DISTANCES))
    shared = [f"hardware={options.hardware}", f"prompts={PROMPTS}", f"n={options.n}"]
    shared += [f"scorers=[{scorers}]", f"results={options.results}", "report=false"]
    found = []
    for setting, names in missing(read_runs(options)).items():
        # the reference is evaluated with every variant, and alone where nothing else is missing
        variants = [name for name in names if name != REFERENCE] or [REFERENCE]
        words = [*setting.words, f"variant={','.join(variants)}", *shared, *options.overrides]
        found.append([sys.executable, "scripts/evaluate.py", "-m", *words])
    return found


def measure(
    options: Options, start: Callable[..., subprocess.CompletedProcess] = subprocess.run
) -> None:
    """Run the sweeps one after the other, their progress on this terminal.

    Raises:
        UserError: a sweep failed; it has said why, and the same command continues.
    """
    todo = commands(options)
    for number, command in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {' '.join(command[1:])}", file=sys.stderr, flush=True)
        code = start(command, cwd=ROOT, check=False, stdout=sys.stderr).returncode
        if code == 130:
            raise KeyboardInterrupt
        if code != 0:
            raise UserError(
                f"sweep {number} of {len(todo)} must end with 0, got exit code {code} for the "
                "reason above; mend it, and the same command continues"
            )


def tabulate(options: Options) -> dict:
    """Examine the runs, write and print the page."""
    examined = examine(read_runs(options), load_margins())
    title = (
        f"The mini at its limits: prompts {PROMPTS}, {options.n} captions, engine stock, float32, "
        f"{BACKENDS[options.hardware]}"
    )
    text = render(examined, title)
    page = from_root(options.ledger) / "tables" / "limits_mini.md"
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    print(text)
    verdicts: dict[str, dict[str, str]] = {}
    for entry in examined.entries:
        verdicts.setdefault(entry.variant, {})[entry.setting.name] = entry.kind or ABSENT
    return {"table": shorten(page), "n": options.n, "verdicts": verdicts}


def main() -> None:
    with one_sentence("limits"):
        arguments = parser().parse_args()
        options = parse(arguments.words, is_run=arguments.run)
        if arguments.run:
            measure(options)
        print(json.dumps(tabulate(options)))


if __name__ == "__main__":
    main()
