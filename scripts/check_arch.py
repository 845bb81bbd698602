"""Compile every kernel for GPUs that are not there, and check what came out.

    python scripts/check_arch.py                                  # all of it: several minutes
    python scripts/check_arch.py --quick                          # a part of it, as in the tests
    python scripts/check_arch.py --kernel int8_gemm --sm 86 90    # these only

For each kernel, tile and compute capability: no register spilled (no stack, no load from or store
to local memory), shared memory within what one block may have, and the integer matrix
instructions that the tile is made for. What a tile that is not offered on a GPU
(kernels/shipped.py) needs there is written down, but is no failure.

Replaces the rows of what it compiled, for its Triton version, in <out>, by default
outputs/results/bench/arch.csv; --quick writes nothing. The table shows registers per thread and KiB
of shared memory per block; `x`: not offered there, `!`: broken. Prints one JSON document last. Exit
code 1: something is broken.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"check_arch: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import pandas as pd

from dit8.kernels.shipped import MEASURED
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--sm", type=int, nargs="+", choices=MEASURED)
    made.add_argument("--kernel", nargs="+", help="of scripts/arch_kernels.py")
    made.add_argument("--quick", action="store_true")
    made.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    made.add_argument("--out", default="outputs/results/bench/arch.csv")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import triton

from dit8.scripts.arch_kernels import KERNELS, list_cases, measure

LINE = ["kernel", "variant", "config"]  # what one line of the table is about
QUICK_SM = (80, 86, 89)  # in turn


def broken(row: Mapping) -> list[str]:
    """Return what is wrong with a row of results/bench/arch.csv, one sentence each."""
    if not row["shipped"]:
        return []
    name = f"{row['kernel']} {row['config']} ({row['variant']}) on sm_{row['sm']}"
    gemm = row["kernel"] == "int8_gemm"
    remedy = "leave it out in kernels/shipped.py" if gemm else "change its tile"
    if row["error"] != "none":
        return [f"{name} must compile, got {row['error']!r}; {remedy}"]
    found = []
    if row["stack_bytes"] or row["spill_instructions"]:
        found.append(
            f"{name} must not spill, got {row['stack_bytes']} bytes of stack and "
            f"{row['spill_instructions']} spill instructions; {remedy}"
        )
    if row["shared_bytes"] > row["limit_bytes"]:
        found.append(
            f"{name} may use {row['limit_bytes']} bytes of shared memory, got "
            f"{row['shared_bytes']}; {remedy}"
        )
    if row["integer_mma"] != row["expected_mma"]:
        found.append(
            f"{name} must multiply with {row['expected_mma']}, got {row['integer_mma']}; "
            "look at its layouts"
        )
    return found


def select(sms: Sequence[int], kernels: Iterable[str], quick: bool) -> list[tuple[int, int]]:
    """Return what to compile, as (compute capability, index in `list_cases` of it).

    Quick: what `Case.quick` names, products for sm_90, whose matrix instructions are others, and
    for one of QUICK_SM in turn; what multiplies no integers for one of all these.
    """
    chosen = []
    for sm in sms:
        turns = Counter()  # a kernel's own: one of them is sm_90's alone
        for index, case in enumerate(list_cases(sm)):
            if case.kernel not in kernels:
                continue
            turns[case.kernel] += case.quick
            is_product = case.integer_mma != "none"
            places = QUICK_SM if is_product else (*QUICK_SM, 90)
            in_turn = sm == places[turns[case.kernel] % len(places)]
            if not quick or (case.quick and (in_turn or is_product and sm == 90)):
                chosen.append((sm, index))
    return chosen


def measure_all(tasks: Sequence[tuple[int, int]], jobs: int) -> list[dict]:
    """Measure each task in processes of their own; rows in the order of the tasks."""
    if jobs == 1 or len(tasks) < 2:
        return [measure(*task) for task in tasks]
    # not a fork of this process, whose threads may hold a lock
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        return list(pool.map(measure, *zip(*tasks, strict=True)))


def render(frame: pd.DataFrame) -> str:
    """Lay out registers and KiB, one line per launch and one column per compute capability."""

    def cell(row: pd.Series) -> str:
        mark = "" if row["shipped"] else " x"
        mark = " !" if broken(row) else mark
        return f"{row['registers']}r {row['shared_bytes'] // 1024}K{mark}"

    cells = frame[LINE].assign(sm="sm_" + frame["sm"].astype(str), cell=frame.apply(cell, axis=1))
    order = list(dict.fromkeys(cells["sm"]))
    wide = cells.set_index([*LINE, "sm"])["cell"].unstack("sm", fill_value="")
    # in the order of the cases: a quick run has every GPU on other lines
    lines = [(c.kernel, c.variant, c.config) for sm in frame["sm"].unique() for c in list_cases(sm)]
    lines = [line for line in dict.fromkeys(lines) if line in wide.index]
    return wide.loc[lines, order].reset_index().to_string(index=False)


def merge(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Replace a file's rows of the same Triton version, kernels and GPUs; it may not exist yet."""
    if path.exists():
        kept = pd.read_csv(path, dtype={"triton": str})
        if list(kept.columns) != list(frame.columns):
            raise UserError(
                f"{shorten(path)} must have the columns {', '.join(frame.columns)}, got "
                f"{', '.join(kept.columns)}; remove the file and run with each Triton version again"
            )
        part = ["triton", "kernel", "sm"]
        again = pd.MultiIndex.from_frame(kept[part]).isin(pd.MultiIndex.from_frame(frame[part]))
        frame = pd.concat([kept[~again], frame])
    # stable: the rows of one kernel and GPU stay in the order of the cases
    order = list(KERNELS)
    place = frame["kernel"].map(order.index)
    return (
        frame.assign(place=place)
        .sort_values(["triton", "place", "sm"], kind="stable")
        .drop(columns="place")
    )


def check(arguments: argparse.Namespace) -> dict:
    """Measure, print the table and the failures, write the rows."""
    unknown = sorted(set(arguments.kernel or ()) - set(KERNELS))
    if unknown:
        raise UserError(
            f"--kernel must be among {', '.join(KERNELS)}, got {', '.join(unknown)}; correct it"
        )
    start = time.monotonic()
    tasks = select(arguments.sm or MEASURED, arguments.kernel or KERNELS, arguments.quick)
    rows = measure_all(tasks, arguments.jobs)
    if not rows:
        raise UserError(
            f"nothing of {', '.join(arguments.kernel)} is built for sm "
            f"{', '.join(map(str, arguments.sm))}; ask for another GPU"
        )
    frame = pd.DataFrame(rows)
    print(render(frame))
    failures = [sentence for row in rows for sentence in broken(row)]
    for sentence in failures:
        print(f"check_arch: {sentence}", file=sys.stderr)
    out = from_root(arguments.out)
    if not arguments.quick:
        merged = merge(out, frame)
        write_atomically(out, lambda path: merged.to_csv(path, index=False))
    return {
        "out": None if arguments.quick else shorten(out),
        "triton": triton.__version__,
        "rows": len(rows),
        "broken": len(failures),
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    with one_sentence("check_arch"):
        document = check(parser().parse_args())
        print(json.dumps(document))
        sys.exit(1 if document["broken"] else 0)


if __name__ == "__main__":
    main()
