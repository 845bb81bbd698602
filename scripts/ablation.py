"""Tabulate the ablation: every recipe and format, on the mini and on its planted twin.

    python scripts/ablation.py                                    # from the committed rows
    python scripts/ablation.py --run --jobs 3 --readers 4         # first what is missing, on a GPU
    python scripts/ablation.py --run --models mini --cells naive,rotate --hardware cpu --n 20

Writes <results>/tables/ablation.md and ablation.csv from the rows of one prompt set, one number of
captions and one kind of hardware: the committed rows, or with --run those of outputs/results
(--results FOLDER: of another). With --run, cells without rows are evaluated first, by processes of
scripts/evaluate.py: a calibration per model, the unquantized models, then the rest, --jobs at a
time. Stopped and started again it continues. A cell that fails stops no other, is named at the end
and makes the exit code 1. --discard-pictures deletes the pictures of a cell that is scored, those
of a model's reference when all its cells are. Prints the tables, and one JSON document last.
"""

import argparse
import json
import sys

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"ablation: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.ablation import CELLS, REFERENCE, ablate
from dit8.eval.ablation_table import render_csv, render_markdown
from dit8.eval.stats import MIN_PROMPTS
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically
from dit8.scripts.ablation_run import Options, measure, read_runs, start_process


def tabulate(options: Options) -> dict:
    """Compute the ablation from the ledger, write and print both tables."""
    entries = ablate(read_runs(options), options.models)
    title = f"Ablation: prompts {options.prompts}, {options.n} captions, {options.backend}"
    texts = {"ablation.md": render_markdown(entries, title), "ablation.csv": render_csv(entries)}
    folder = from_root(options.results) / "tables"
    for name, text in texts.items():
        write_atomically(folder / name, lambda path, t=text: path.write_text(t, encoding="utf-8"))
    print(texts["ablation.md"])
    verdicts: dict[str, dict[str, str]] = {model: {} for model in options.models}
    for entry in entries:
        if entry.verdict:
            verdicts[entry.model][entry.cell.name] = entry.verdict
    tables = [shorten(folder / name) for name in texts]
    return {"tables": tables, "backend": options.backend, "n": options.n, "verdicts": verdicts}


def parse() -> tuple[Options, bool]:
    """Read the command line: the options, and whether to run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [cell.name for cell in (REFERENCE, *CELLS)]
    parser.add_argument("--models", nargs="+", default=["mini", "mini_planted"])
    parser.add_argument("--prompts", default="mini_hard")
    parser.add_argument("--n", type=int, default=200, help="captions; below 30 trust no verdict")
    parser.add_argument("--hardware", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--results", help="the ledger; default: results, outputs/results to --run")
    run = parser.add_argument_group("with --run")
    run.add_argument("--run", action="store_true", help="evaluate the cells that are missing")
    run.add_argument("--cells", default=",".join(known), help="only these, such as naive,rotate")
    run.add_argument("--jobs", type=int, default=3, help="cells at a time")
    run.add_argument("--readers", type=int, default=4, help="processes of a cell that read text")
    run.add_argument("--out", default="outputs/runs", help="folder of the pictures")
    run.add_argument("--discard-pictures", action="store_true")
    run.add_argument("--overrides", nargs="+", default=[], help="more for scripts/evaluate.py")
    found = vars(parser.parse_args())
    for name, least in (("n", MIN_PROMPTS), ("jobs", 1), ("readers", 1)):
        if found[name] < least:
            raise UserError(f"{name} must be at least {least}, got {found[name]}; use {least}")
    for name in (cells := found.pop("cells").split(",")):
        if name not in known:
            raise UserError(f"cells must be some of {','.join(known)}, got {name!r}; correct it")
    wanted, lists = found.pop("run"), {"cells": tuple(cells)}
    found["results"] = found["results"] or ("outputs/results" if wanted else "results")
    lists |= {name: tuple(found.pop(name)) for name in ("models", "overrides")}
    return Options(**lists, **found), wanted


def main() -> None:
    with one_sentence("ablation"):
        options, wanted = parse()
        failed = measure(options, start_process(options.jobs)) if wanted else {}
        document = tabulate(options)
        for label, why in failed.items():
            print(f"ablation: {label} failed, {why}", file=sys.stderr)
        print(json.dumps(document | {"failed": failed}))
        if failed:
            sys.exit(1)


if __name__ == "__main__":
    main()
