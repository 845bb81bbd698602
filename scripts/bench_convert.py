"""Time the conversion of a checkpoint: weights per second, peak memory, size on disk.

    python scripts/make_synthetic.py outputs/synthetic --stats outputs/synthetic.stats
    python scripts/bench_convert.py outputs/synthetic --stats outputs/synthetic.stats
    python scripts/bench_convert.py outputs/four --stats outputs/four.stats --targets q4_k

The first line writes 2 x 9.28 G random weights in the official FP8 layout, 18.7 GB. Each target is
converted in a process of its own, because a peak of memory is never taken back, and deleted after
it was measured. Beside them stands the time to read the source and write as much as the result,
nothing else. Adds rows to <results>/convert/convert.csv. Prints one JSON document last.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

try:
    from dit8.conf.paths import ROOT, from_root, shorten
    from dit8.scripts.cli import compose, one_sentence
except ModuleNotFoundError as missing:
    print(f"bench_convert: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import pandas as pd

from dit8.eval.provenance import git_state, hardware, versions
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

TARGETS = ("smoothquant", "published", "q8_0")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("source", help="folder that scripts/make_synthetic.py wrote")
    made.add_argument("--stats", required=True, help="activation statistics of the source")
    made.add_argument("--targets", nargs="+", default=TARGETS)
    made.add_argument("--results", default="outputs/results")
    made.add_argument("--one", help="convert to this target only, in this process")
    made.add_argument("--out", help="with --one: the checkpoint's folder")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.models.memory import peak_rss_bytes
from dit8.quant.architectures import architecture_of
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.calibrate import load_stats
from dit8.quant.checkpoint.read import open_sources
from dit8.quant.checkpoint.write import Origin, save_checkpoint
from dit8.quant.formats.table import FORMATS
from dit8.quant.recipe import resolve_recipe
from dit8.quant.types import make_recipe

TABLE = "convert/convert.csv"
FULL_BLOCKS, FULL_WEIGHTS = 34, 18_558_576_896  # both branches of the real model
COPY_BYTES = 64 << 20  # pieces of the plain copy


def convert(source: Path, stats_path: Path, target: str, out: Path) -> dict:
    """Convert once; a target is a recipe of conf/recipe, or a format without one."""
    configs = {
        branch: json.loads((source / subfolder / "config.json").read_text(encoding="utf-8"))
        for branch, subfolder in BRANCHES.items()
        if (source / subfolder).is_dir()
    }
    if not configs:
        raise UserError(
            f"bench_convert: {shorten(source)} must hold a model's branches, got none; make one "
            "with scripts/make_synthetic.py"
        )
    subfolders = {branch: BRANCHES[branch] for branch in configs}
    described = architecture_of(next(iter(configs.values())))
    chosen = FORMATS[target if target in FORMATS else "w8a8"]
    stats = load_stats(stats_path)
    start = time.monotonic()
    with open_sources(source, described, subfolders) as sources:
        shapes = [shape for s in sources.values() for shape in s.shapes.values()]
        resolved = None
        if chosen.has_recipe:
            recipe = make_recipe(compose("quantize", [f"recipe={target}"]).recipe)
            resolved = resolve_recipe(recipe, described, stats, sources, model_key=stats.model_key)
        origin = Origin(stats.model_key, "0" * 64, subfolders, configs)
        save_checkpoint(out, chosen, sources, described, origin, resolved, stats)
    seconds = time.monotonic() - start
    weights = sum(math.prod(shape) for shape in shapes)
    return {
        "target": target,
        "branches": len(configs),
        "blocks": next(iter(configs.values()))["num_layers"],
        "weights": weights,
        "seconds": round(seconds, 2),
        "mweights_per_s": round(weights / seconds / 1e6, 1),
        "peak_rss_bytes": peak_rss_bytes(),
        "size_bytes": folder_bytes(out),
    }


def folder_bytes(folder: Path) -> int:
    """Add up the files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def copy_seconds(source: Path, size: int, out: Path) -> float:
    """Time reading a source and writing `size` bytes to one file, flushed to the disk."""
    start, written = time.monotonic(), 0
    files = sorted(source.rglob("*.safetensors"))
    try:
        with out.open("wb", buffering=0) as target:
            for file in files:
                with file.open("rb", buffering=0) as stream:
                    while piece := stream.read(COPY_BYTES):
                        piece = piece[: size - written]
                        written += target.write(piece) if piece else 0
            while written < size:  # the result is larger than the source
                written += target.write(bytes(min(COPY_BYTES, size - written)))
            os.fsync(target.fileno())
    finally:
        out.unlink(missing_ok=True)
    return round(time.monotonic() - start, 2)


def bench(arguments: argparse.Namespace) -> dict:
    """Convert every target in a process of its own and keep the rows."""
    source, table = from_root(arguments.source), from_root(arguments.results) / TABLE
    rows = []
    for target in arguments.targets:
        out = source.with_name(f"{source.name}-{target}")
        command = [sys.executable, __file__, str(source), "--stats", str(arguments.stats)]
        command += ["--one", target, "--out", str(out)]
        try:
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if ended.returncode:
                raise UserError(f"bench_convert: {target} ended with code {ended.returncode}")
            row = json.loads(ended.stdout.splitlines()[-1])
        finally:
            shutil.rmtree(out, ignore_errors=True)
        row["copy_seconds"] = copy_seconds(source, row["size_bytes"], out.with_suffix(".copy"))
        machine = hardware()
        row |= {"cpu": machine["cpu"], "cores": machine["cores"], "torch": versions()["torch"]}
        row |= {"load": round(os.getloadavg()[0], 1), "commit": git_state(ROOT)["commit"]}
        print(json.dumps(row), file=sys.stderr)
        rows.append(row)
    frame = pd.DataFrame(rows)
    if table.is_file():
        frame = pd.concat([pd.read_csv(table), frame])
    keys = ["target", "branches", "blocks"]
    frame = frame.drop_duplicates(keys, keep="last").sort_values(keys)
    write_atomically(table, lambda path: frame.to_csv(path, index=False))
    text = render(frame)
    page = from_root(arguments.results) / "tables" / "convert.md"
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    return {"table": shorten(table), "page": shorten(page), "rows": rows}


def render(frame: pd.DataFrame) -> str:
    """Tabulate the rows; one with fewer blocks than FULL_BLOCKS is extrapolated and says so."""
    lines = [
        "Random weights in the official FP8 layout; two cores; decimal units\n",
        "| target | weights | seconds | M weights/s | peak memory | file | plain copy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in frame.itertuples():
        part = "" if row.blocks == FULL_BLOCKS else f", {row.blocks} of {FULL_BLOCKS} blocks"
        lines.append(
            f"| {row.target}{part} | {row.weights / 1e9:.2f} G | {row.seconds:.0f} "
            f"| {row.mweights_per_s:.0f} | {row.peak_rss_bytes / 1e9:.2f} GB "
            f"| {row.size_bytes / 1e9:.2f} GB | {row.copy_seconds:.0f} s |"
        )
        if part:
            factor = FULL_WEIGHTS / row.weights
            lines.append(
                f"| {row.target}, extrapolated by weights | {FULL_WEIGHTS / 1e9:.2f} G "
                f"| {row.seconds * factor:.0f} | | | {row.size_bytes * factor / 1e9:.2f} GB | |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    with one_sentence("bench_convert"):
        arguments = parser().parse_args()
        if arguments.one is not None:
            out = Path(arguments.out)
            stats = from_root(arguments.stats)
            print(json.dumps(convert(from_root(arguments.source), stats, arguments.one, out)))
            return
        print(json.dumps(bench(arguments)))


if __name__ == "__main__":
    main()
