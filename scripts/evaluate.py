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
preprocessing, checkpoint hash) is in <results>/runs/<run_id>.scorers.json. Prints the tables,
and one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json

from conf.schema import EvaluateConfig
from scripts.cli import hydra_main
from scripts.evaluation import evaluate


@hydra_main("evaluate")
def main(config: EvaluateConfig) -> bool:
    document, tables = evaluate(config)
    if tables:
        print(tables)
    print(json.dumps(document))
    return not document["failed"]


if __name__ == "__main__":
    main()
