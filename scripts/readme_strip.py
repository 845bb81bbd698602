"""Draw the strip of README.md from runs: the same prompt under several variants, a part enlarged.

    python scripts/evaluate.py -m variant=bf16,fused_int8,fp8,q4_k,nf4 hardware=cpu shard=0/8
    python scripts/readme_strip.py outputs/runs/<run_id> ... --prompts hard-128 hard-072 \
        --part 112 116 88 40

Takes folders of the variants in the strip, in any order; of each it needs the pictures of the
prompts alone, so a shard of a run is enough. The runs must share model, engine and dtype.
Seconds and GB above the posters are of the full-size architecture, from <results>/bench/model.csv.
Writes <results>/readme/strip.png, which keeps the ids of its runs. Prints one JSON document last.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"readme_strip: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import numpy as np
import pandas as pd
from PIL import PngImagePlugin

from dit8.eval.images import load_rgb
from dit8.eval.reproduce import bench
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("runs", nargs="+", help="folders of runs")
    made.add_argument("--prompts", nargs="+", required=True, help="ids, the last is enlarged")
    made.add_argument(
        "--part", nargs=4, type=int, required=True, metavar=("LEFT", "TOP", "WIDTH", "HEIGHT")
    )
    made.add_argument("--results", default="results", help="folder of the committed rows")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: the imports below take seconds

from dit8.eval.reproduce.headline import SIZE
from dit8.eval.reproduce.runs import MINI
from dit8.eval.reproduce.short import ROWS
from dit8.eval.run import Run, read_run
from dit8.eval.strip import Column, Part, draw_strip

NOTES = (
    f"Posters: bundled {MINI.label}, chosen because a difference can be seen. "
    "Framed: the part that is enlarged.",
    f"Seconds an image and GB at the peak: full-size architecture, random weights, {SIZE} px, "
    "one NVIDIA H200.",
)


def draw(folders: Sequence[Path], results: Path, prompts: Sequence[str], part: Part) -> dict:
    """Write the strip; returns the document that is printed.

    Raises:
        UserError: a variant without its run, runs that differ in more, a part outside.
    """
    runs = {run.key.variant: run for run in (read_run(folder, prompts) for folder in folders)}
    lacking = [name for name in ROWS if name not in runs]
    if lacking:
        raise UserError(
            f"the strip must have runs of {', '.join(ROWS)}, got none of {', '.join(lacking)}; "
            f"draw them with python scripts/evaluate.py -m variant={','.join(lacking)}"
        )
    _check_alike([runs[name] for name in ROWS])
    rows = bench.read_bench(results)
    columns = [Column(name, _figures(rows, name), _posters(runs[name])) for name in ROWS]
    sizes = {poster.shape[:2] for column in columns for poster in column.posters}
    if len(sizes) > 1:
        raise UserError(f"the runs must have pictures of one size, got {sizes}; draw them alike")
    ((height, width),) = sizes
    if not part.is_within(width, height):
        raise UserError(
            f"--part must lie within {width}x{height} px, got {part}; choose one inside the poster"
        )
    sheet = draw_strip(columns, part, NOTES)
    ids = {name: runs[name].key.run_id for name in ROWS}
    text = PngImagePlugin.PngInfo()
    text.add_text("dit8", json.dumps({"runs": ids, "prompts": list(prompts), "part": vars(part)}))
    target = results / "readme" / "strip.png"
    write_atomically(
        target, lambda path: sheet.save(path, format="PNG", optimize=True, pnginfo=text)
    )
    return {"strip": shorten(target), "runs": ids, "bytes": target.stat().st_size}


def _check_alike(runs: Sequence[Run]) -> None:
    """Refuse runs that a reader would compare for another reason than the variant."""
    for name in ("model", "engine", "dtype", "prompt_set"):
        found = {run.key.variant: getattr(run.key, name) for run in runs}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{variant} {value}" for variant, value in found.items())
            raise UserError(f"the runs must have the same {name}, got {said}; draw them alike")


def _figures(rows: pd.DataFrame, variant: str) -> str:
    timed = bench.choose(rows, bench.H200, (variant, "dit8"), SIZE, "image_s")
    if timed is None:
        command = bench.command_for((variant, "dit8"))
        raise UserError(f"{bench.SOURCE} must time an image in {variant}, got none; `{command}`")
    seconds, peak = (timed.figures[name].estimate for name in ("image_s", "peak_bytes"))
    return f"{seconds:.2f} s · {peak / 1e9:.1f} GB"


def _posters(run: Run) -> tuple[np.ndarray, ...]:
    return tuple(load_rgb(sample.image_path) for sample in run.samples)


def main() -> None:
    with one_sentence("readme_strip"):
        arguments = parser().parse_args()
        folders = [from_root(folder) for folder in arguments.runs]
        results = from_root(arguments.results)
        print(json.dumps(draw(folders, results, arguments.prompts, Part(*arguments.part))))


if __name__ == "__main__":
    main()
