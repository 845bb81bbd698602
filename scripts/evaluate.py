"""Evaluate a variant: generate a prompt set, score it, compare with the reference.

    python scripts/evaluate.py variant=fused_int8                 # the mini's hard set
    python scripts/evaluate.py variant=int8 prompts=mini_easy n=20 sampler=turbo_12
    python scripts/evaluate.py -m variant=bf16,int8,fused_int8 hardware=cuda
    python scripts/evaluate.py variant=fused_int8 engine=dit8     # the fast forward, for all
    python scripts/evaluate.py variant=int8 model=mini_planted recipe=naive

Every variant starts from the same noise. Rows go to <results>/scores.csv and latency.csv, the
record of the run to <results>/runs, pictures to <out>/<run_id>. Stopped and started again, a run
continues. Compare variants at one dtype: bf16 arithmetic alone moves the latents as much as INT8.
Prints the table, and one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json

from conf.schema import EvaluateConfig
from eval.table import render_markdown
from scripts.cli import hydra_main
from scripts.evaluation import evaluate


@hydra_main("evaluate")
def main(config: EvaluateConfig) -> None:
    document, summary = evaluate(config)
    print(render_markdown(summary))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
