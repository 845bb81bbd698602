"""The main job on the bundled mini: quantize it, draw with three variants, score, compare.

    python scripts/demo.py                                        # or: make demo
    python scripts/demo.py 8                                      # fewer captions

Writes results/demo/table.md (means, paired differences, 95 % intervals), results/demo/grid.png
and the ledger they come from. What is drawn already is not drawn again. One JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import time

from eval.grid import write_grid
from eval.runs import read_run
from eval.scoring import rows_of
from eval.table import render_markdown, summarize
from quant.atomic import write_atomically
from quant.errors import UserError
from quant.formats.table import FORMATS
from scripts.cli import compose, from_root, one_sentence, terse
from scripts.conversion import quantize_model
from scripts.evaluation import evaluate
from scripts.stages import open_model

VARIANTS = ("bf16", "int8", "fused_int8")
CAPTIONS = 16
COLUMNS = 6
FOLDER = "results/demo"


def demo(captions: int, folder: str = FOLDER, overrides: tuple[str, ...] = ()) -> dict:
    """Run everything into `folder`; returns the document that is printed."""
    start, target = time.monotonic(), from_root(folder)
    shared = [f"results={folder}", "prompts=mini_medium", f"n={captions}", "hardware=cpu"]
    shared += overrides
    config = compose("evaluate", shared)
    quantized = quantize_model(config, open_model(config.model), FORMATS["w8a8"])
    documents = [evaluate(compose("evaluate", [*shared, f"variant={v}"]))[0] for v in VARIANTS]
    runs = [read_run(from_root(document["pictures"])) for document in documents]
    ids = [run.key.run_id for run in runs]
    rows = rows_of(target / "scores.csv", ids, config.scorers)
    table = render_markdown(summarize(rows, reference="bf16"))
    write_atomically(target / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    write_grid(target / "grid.png", runs[0], runs[1:], COLUMNS)
    print(table)
    return {
        "checkpoint": terse(quantized.path),
        "table": terse(target / "table.md"),
        "grid": terse(target / "grid.png"),
        "runs": dict(zip(VARIANTS, ids, strict=True)),
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    with one_sentence("demo"):
        argument = sys.argv[1] if len(sys.argv) > 1 else str(CAPTIONS)
        if not argument.isdigit() or int(argument) < 3:
            raise UserError(f"captions must be a number of at least 3, got {argument!r}")
        print(json.dumps(demo(int(argument))))


if __name__ == "__main__":
    main()
