r"""Make one HTML page of an evaluation, with verdicts, tables, plots and every picture.

    python scripts/evaluate.py -m variant=bf16,fp8,q8_0,q4_k,int8,fused_int8 hardware=cuda
    python scripts/report.py outputs/runs/<run_id> outputs/runs/<run_id>
    python scripts/report.py --all-of outputs/runs/<run_id of bf16>   # whatever compares with it
    python scripts/report.py int8.tar bf16.tar --out results/report --limit-mb 8
    chromium --headless --hide-scrollbars --window-size=1120,1500 \
        --screenshot=results/report.png file://$PWD/<report.html>

Takes folders written by scripts/evaluate.py, or their archives, scored into <results>, by default
outputs/results. The reference may be left out where it lies beside the others. A second run of the
reference's variant (`dtype=bfloat16`, another engine; score it with `scripts/score.py <it>
--reference <reference>`) gives the noise floor. Writes <out>/report.html, which needs no network
and no JavaScript, and its plots as SVG; <out> is outputs/report/<model>-<prompt set> unless told.
The texts read are kept in the runs' folders. Prints one JSON document last.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"report: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.margins import load_margins
from dit8.eval.report import LIMIT_MB
from dit8.eval.report.pictures import MEGABYTE
from dit8.quant.errors import UserError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("runs", nargs="*", type=Path)
    made.add_argument("--all-of", type=Path, metavar="REFERENCE")
    made.add_argument("--results", default="outputs/results")
    made.add_argument("--out", type=Path)
    made.add_argument("--limit-mb", type=float, default=LIMIT_MB)
    made.add_argument("--readers", type=int, default=1)
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.report.build import make_report
from dit8.eval.report.load import compared_with, load
from dit8.eval.run import unpack_run


def report(
    folders: Sequence[Path],
    results: Path,
    out: Path | None = None,
    *,
    limit_mb: float = LIMIT_MB,
    readers: int = 1,
) -> dict:
    """Write the report of some runs; returns its JSON document.

    Args:
        folders: of runs, see `eval.report.load`.
        results: folder of the ledgers.
        out: folder of the report; default: outputs/report/<model>-<prompt set>.
        limit_mb, readers: see `make_report`.
    """
    evaluation = load(folders, results)
    if out is None:
        key = evaluation.reference.key
        out = from_root("outputs/report") / f"{key.model}-{key.prompt_set}"
    path, page = make_report(
        evaluation, out, margins=load_margins(), limit_mb=limit_mb, readers=readers
    )
    for note in page.notes:
        print(note)
    return {
        "report": shorten(path),
        "megabytes": round(path.stat().st_size / MEGABYTE, 1),
        "prompts": len(page.exhibits),
        "verdicts": {verdict.label: verdict.kind for verdict in page.verdicts},
    }


def main() -> None:
    with one_sentence("report"):
        arguments = parser().parse_args()
        if arguments.readers < 1 or not arguments.limit_mb > 0:
            raise UserError(
                f"readers must be at least 1 and limit-mb above 0, got {arguments.readers} and "
                f"{arguments.limit_mb:g}; correct them"
            )
        with tempfile.TemporaryDirectory() as scratch:
            folders = [
                unpack_run(path, Path(scratch) / str(place)) if path.is_file() else path
                for place, path in enumerate(arguments.runs)
            ]
            if arguments.all_of is not None:
                found = compared_with(arguments.all_of, from_root(arguments.results))
                folders += [folder for folder in found if folder not in folders]
            document = report(
                folders,
                from_root(arguments.results),
                arguments.out,
                limit_mb=arguments.limit_mb,
                readers=arguments.readers,
            )
        print(json.dumps(document))


if __name__ == "__main__":
    main()
