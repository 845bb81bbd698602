"""Score pictures that exist already, here or made on another machine.

    python scripts/score.py outputs/runs/<run_id> --reference outputs/runs/<run_id of bf16>
    python scripts/score.py fused.tar --reference bf16.tar --scorers ocr_exact psnr
    python scripts/score.py outputs/runs/<run_id> --overwrite     # score again, replace rows

Takes folders written by scripts/evaluate.py, or their archives (archive=true). Rows go to
<results>/scores.csv. Prints one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import tempfile

from eval.runs import Run, read_run, unpack_run
from eval.scorers import get_scorer
from eval.scoring import rows_of, score_run
from eval.table import render_markdown, score_document, summarize
from quant.errors import UserError
from scripts.cli import compose, from_root, one_sentence


def open_run(path: Path, scratch: Path) -> Run:
    """Read a run from its folder or its archive."""
    return read_run(unpack_run(path, scratch) if path.is_file() else path)


def score(arguments: argparse.Namespace, scratch: Path) -> dict:
    """Score the run, and its reference if one is given."""
    run = open_run(arguments.run, scratch / "run")
    reference = None
    ledger = from_root(arguments.results) / "scores.csv"
    options = {"readers": arguments.readers, "overwrite": arguments.overwrite}
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
    if reference is not None and reference.key != run.key:
        score_run(reference, None, arguments.scorers, ledger, **options)
    is_reference = reference is not None and reference.key == run.key
    score_run(run, None if is_reference else reference, arguments.scorers, ledger, **options)
    document = {"variant": run.key.variant, "n": len(run.samples), "backend": run.key.backend}
    if reference is None:
        return document
    rows = rows_of(ledger, [run.key.run_id, reference.key.run_id], arguments.scorers)
    summary = summarize(rows, reference=reference.key.variant)
    print(render_markdown(summary))
    return document | score_document(summary, run.key.variant, run.key.dtype)


def main() -> None:
    with one_sentence("score"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("run", type=Path)
        parser.add_argument("--reference", type=Path)
        parser.add_argument("--scorers", nargs="+", default=compose("evaluate", []).scorers)
        parser.add_argument("--results", default="results")
        parser.add_argument("--readers", type=int, default=1)
        parser.add_argument("--overwrite", action="store_true")
        arguments = parser.parse_args()
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(score(arguments, Path(scratch))))


if __name__ == "__main__":
    main()
