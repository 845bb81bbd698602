"""The main job on the bundled mini: quantize it, draw with three variants, score, compare.

    python scripts/demo.py                                        # or: make demo
    python scripts/demo.py 3                                      # fewer captions
    python scripts/demo.py 8 results/demo                         # to publish, see fill_readme.py

Writes table.md (means, paired differences, 95 % intervals), grid.png and the ledger they come from
into outputs/demo, or the folder named. What is drawn already is not drawn again. It calibrates on
fewer captions than a study does. One JSON document last.
"""

import argparse
import json
import sys
import time

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import compose, one_sentence
except ModuleNotFoundError as missing:
    print(f"demo: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.stats import MIN_PROMPTS
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

# At most six minutes where a picture takes 5 s in bf16, on 2 cores: 8 captions to calibrate on, a
# third more than a picture each (statistics, nothing decoded), 55 s; 3 variants x 8 captions of 5
# to 7.5 s, 180 s; imports, reading and scoring, 30 s. In all 265 s, nine minutes at half the speed.
CAPTIONS = CALIBRATION = 8
FOLDER = "outputs/demo"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("captions", nargs="?", default=str(CAPTIONS))
    made.add_argument("folder", nargs="?", default=FOLDER)
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.evaluate import evaluate
from dit8.eval.grid import write_grid
from dit8.eval.run import read_run
from dit8.eval.score import rows_of
from dit8.eval.table import render_markdown, summarize
from dit8.models.artifacts import open_model, quantize_model
from dit8.quant.formats.table import FORMATS

VARIANTS = ("bf16", "int8", "fused_int8")
COLUMNS = 6


def demo(captions: int, folder: str = FOLDER, overrides: tuple[str, ...] = ()) -> dict:
    """Run everything into `folder`; returns the document that is printed."""
    start, target = time.monotonic(), from_root(folder)
    shared = [f"results={folder}", "prompts=mini_medium", f"n={captions}", "hardware=cpu"]
    shared += [f"calibration.n={CALIBRATION}", *overrides]
    config = compose("evaluate", shared)
    few, captions_of = config.calibration.n, config.model.calibration
    print(f"demo: calibrates on {few} captions of {captions_of}, a study on all", file=sys.stderr)
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
        "checkpoint": shorten(quantized.path),
        "table": shorten(target / "table.md"),
        "grid": shorten(target / "grid.png"),
        "runs": dict(zip(VARIANTS, ids, strict=True)),
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    with one_sentence("demo"):
        arguments = parser().parse_args()
        captions = arguments.captions
        if not captions.isdigit() or int(captions) < MIN_PROMPTS:
            raise UserError(
                f"captions must be a number of at least {MIN_PROMPTS}, got {captions!r}; raise it"
            )
        print(json.dumps(demo(int(captions), arguments.folder)))


if __name__ == "__main__":
    main()
