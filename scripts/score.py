"""Score pictures that exist already, here or made on another machine.

    python scripts/score.py outputs/runs/<run_id> --reference outputs/runs/<run_id of bf16>
    python scripts/score.py fused.tar --reference bf16.tar --scorers ocr_exact psnr
    python scripts/score.py outputs/runs/<run_id> --overwrite     # score again, replace rows
    python scripts/score.py fused.tar --scorers clipscore pickscore --score-text caption_json
    python scripts/score.py fused.tar --scorers hpsv2 --set hpsv2.checkpoint=HPS_v2.1_compressed.pt

Takes folders written by scripts/evaluate.py, or their archives (archive=true). Rows go to
<results>/scores.csv, by default outputs/results, what they mean to <results>/runs/<run_id>.json. A
scorer that cannot run here is reported as not measured; one that fails is named, the others go on,
and the exit code is 1. Prints one JSON document last.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

try:
    from dit8.conf.paths import from_root
    from dit8.scripts.cli import compose, one_sentence
except ModuleNotFoundError as missing:
    print(f"score: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.quant.errors import UserError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("run", type=Path)
    made.add_argument("--reference", type=Path)
    made.add_argument("--scorers", nargs="+", default=compose("evaluate", []).scorers)
    made.add_argument("--score-text", help="what text-image scores compare with")
    made.add_argument("--set", nargs="+", default=[], metavar="SCORER.KEY=VALUE")
    made.add_argument("--results", default="outputs/results")
    made.add_argument("--readers", type=int, default=1)
    made.add_argument("--overwrite", action="store_true")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.categories import categories_of, render_categories, summarize_categories
from dit8.eval.run import Run, read_run, unpack_run
from dit8.eval.score import (
    Settings,
    measured_everywhere,
    outcome_document,
    parse_options,
    rows_of,
    say_what_is_lacking,
    score_run,
)
from dit8.eval.scorers import get_scorer
from dit8.eval.table import render_markdown, score_document, summarize


def open_run(path: Path, scratch: Path) -> Run:
    """Read a run from its folder or its archive."""
    return read_run(unpack_run(path, scratch) if path.is_file() else path)


def score(arguments: argparse.Namespace, scratch: Path) -> dict:
    """Score the run, and its reference if one is given."""
    run = open_run(arguments.run, scratch / "run")
    reference = None
    ledger = from_root(arguments.results) / "scores.csv"
    settings = Settings(
        arguments.readers, arguments.score_text, parse_options(arguments.set), arguments.overwrite
    )
    if arguments.reference is not None:
        reference = open_run(arguments.reference, scratch / "reference")
        if run.reference not in (None, reference.key.run_id):
            raise UserError(
                f"run {run.key.run_id} must be compared with run {run.reference}, "
                f"got {reference.key.run_id}; pass that one"
            )
    elif run.reference is not None:
        needing = [name for name in arguments.scorers if get_scorer(name).needs_reference]
        if needing:
            raise UserError(
                f"scorers {', '.join(needing)} need the pictures of run {run.reference}, got none; "
                "pass them with --reference, or choose others with --scorers"
            )
    outcomes = []
    is_reference = reference is not None and reference.key == run.key
    if reference is not None and not is_reference:
        outcomes.append(score_run(reference, None, arguments.scorers, ledger, settings))
    partner = None if is_reference else reference
    outcomes.append(score_run(run, partner, arguments.scorers, ledger, settings))
    document = {"variant": run.key.variant, "n": len(run.samples), "backend": run.key.backend}
    document |= outcome_document(*outcomes)
    say_what_is_lacking(document)
    if reference is None:
        return document
    measured = measured_everywhere(arguments.scorers, *outcomes)
    rows = rows_of(ledger, [run.key.run_id, reference.key.run_id], measured)
    name, variant = reference.key.variant, run.key.variant
    if variant == name and run.key.dtype == reference.key.dtype and not is_reference:
        variant += f" {run.key.run_id}"  # a harmless change of the reference itself
        rows.loc[rows["run_id"] == run.key.run_id, "variant"] = variant
    summary = [] if rows.empty else summarize(rows, reference=name)
    if summary:
        print(render_markdown(summary))
    if run.key.dtype == reference.key.dtype:
        kinds = summarize_categories(rows, categories_of(reference.samples), reference=name)
        print(render_categories(kinds, name), end="")
    return document | score_document(summary, variant, run.key.dtype)


def main() -> None:
    with one_sentence("score"):
        arguments = parser().parse_args()
        with tempfile.TemporaryDirectory() as scratch:
            document = score(arguments, Path(scratch))
        print(json.dumps(document))
    if document["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
