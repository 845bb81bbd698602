"""Simulate how often the intervals cover the truth and the tests of equivalence err.

    python scripts/coverage_map.py                                     # minutes on two cores
    python scripts/coverage_map.py --experiments 1000                  # a quick look
    python scripts/coverage_map.py --processes 8 --seed 1

The cases are listed in eval/coverage_cases.py. Writes <results>/tables/coverage_map.csv and .md,
<results> being outputs/results unless told (the committed map: --results results); the same seed
and number of experiments give the same bytes, whatever the number of processes. Prints one JSON
document last.
"""

import os
import sys

# before numpy is imported: each process multiplies on one core, and sums in one order
try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"coverage_map: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm

from dit8.eval.coverage import simulate
from dit8.eval.coverage_cases import cases
from dit8.eval.coverage_table import is_off, plain_rates, render_csv, render_markdown
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def draw_map(arguments: argparse.Namespace) -> dict:
    """Simulate every case and write both tables.

    Raises:
        UserError: fewer than one experiment or process, or a negative seed.
    """
    for name, least in (("experiments", 1), ("processes", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}; correct it")
    start = time.monotonic()
    listed = cases()
    # not a fork of this process, whose threads may hold a lock
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        futures = [
            pool.submit(simulate, case, arguments.experiments, arguments.seed) for case in listed
        ]
        cells = [cell for future in tqdm(futures, unit="case") for cell in future.result()]
    title = f"Coverage map: {arguments.experiments} experiments a case, seed {arguments.seed}"
    texts = {"csv": render_csv(cells), "md": render_markdown(cells, title)}
    paths = []
    for suffix, text in texts.items():
        paths.append(from_root(arguments.results) / "tables" / f"coverage_map.{suffix}")
        write_atomically(paths[-1], lambda p, text=text: p.write_text(text, encoding="utf-8"))
    print(texts["md"])
    return {
        "tables": [shorten(path) for path in paths],
        "cases": len(listed),
        "experiments": arguments.experiments,
        "covered": plain_rates(cells),
        "in_use": sum(cell.used for cell in cells),
        "in_use_off": sum(cell.used and is_off(cell) for cell in cells),
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    with one_sentence("coverage_map"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--experiments", type=int, default=10_000)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--processes", type=int, default=os.cpu_count())
        parser.add_argument("--results", default="outputs/results")
        print(json.dumps(draw_map(parser.parse_args())))


if __name__ == "__main__":
    main()
