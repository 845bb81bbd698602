"""Evaluate a variant: generate a prompt set, score it, compare with the reference.

    python scripts/evaluate.py variant=fused_int8                 # the mini's hard set
    python scripts/evaluate.py variant=int8 prompts=mini_easy n=20 sampler=turbo_12
    python scripts/evaluate.py -m variant=bf16,int8,fused_int8 hardware=cuda
    python scripts/evaluate.py variant=fused_int8 engine=dit8     # the fast forward, for all
    python scripts/evaluate.py variant=int8 model=mini_planted recipe=naive
    python scripts/evaluate.py variant=int8 prompt_style=raw      # sentences in place of JSON
    python scripts/evaluate.py scorers=[lpips,hpsv2] +scorer_options.hpsv2.checkpoint=FILE

Every variant starts from the same noise. Rows go to <results>/scores.csv and latency.csv, the
record of the run to <results>/runs, pictures to <out>/<run_id>. Stopped and started again, a run
continues. Compare variants at one dtype: bf16 arithmetic alone moves the latents as much as INT8.
A scorer whose weights or packages are not here is reported as not measured and left out; one that
fails is named, the others go on, and the exit code is 1. What each score means (direction, range,
preprocessing, checkpoint hash) is in <results>/runs/<run_id>.scorers.json. At the end the runs that
share the reference are laid out in an HTML page (scripts/report.py; report=false: none). Prints the
tables, and one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json

from conf.schema import EvaluateConfig
from eval.report.load import compared_with
from quant.errors import UserError
from scripts.cli import from_root, hydra_main
from scripts.evaluation import evaluate
from scripts.report import report


@hydra_main("evaluate")
def main(config: EvaluateConfig) -> bool:
    document, tables = evaluate(config)
    if tables:
        print(tables)
    is_reported = True
    if config.report and tables:
        try:
            document["report"] = report_all(config, document)
        except UserError as error:  # the rows are kept, and the document is printed all the same
            is_reported = False
            print(f"evaluate: {error}", file=sys.stderr)
    print(json.dumps(document))
    return is_reported and not document["failed"]


def report_all(config: EvaluateConfig, document: dict) -> str:
    """Make the page of every run here that shares the reference; returns its path.

    Raises:
        UserError: runs that cannot be shown together, or a folder that cannot be written.
    """
    results, reference = from_root(config.results), from_root(document["reference"])
    out = from_root(config.out).parent / "report" / reference.name
    found = compared_with(reference, results)
    return report(found, results, out, readers=config.readers)["report"]


if __name__ == "__main__":
    main()
