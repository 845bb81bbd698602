"""Time the kernels around the products against the bytes they move, on one NVIDIA GPU.

    python scripts/bench_producers.py                                # every kernel, chosen spreads
    python scripts/bench_producers.py --sweep --kernels swiglu_quant quant_rows --m 4396
    python scripts/bench_producers.py --out outputs/results/bench/producers.csv

These kernels do next to no arithmetic, so bytes read and written once, over time, is how good they
are: a copy, measured beside them, is the ceiling. Everything is replayed from CUDA graphs over
copies of the operands that together exceed the L2 cache (scripts/timing.py). `--sweep` times every
spread of a row (columns per chunk x warps) instead of the one that is chosen, to choose by.

Prints a table, adds rows to the CSV where one is named, and prints one JSON document last.
"""

import argparse
import datetime
import json
import sys

try:
    from dit8.conf.paths import ROOT, from_root
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"bench_producers: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.ledger import Layout, upsert
from dit8.eval.provenance import describe
from dit8.quant.errors import UserError
from dit8.scripts.run_identity import make_run_id

ROWS_M = (4096, 4396)  # 1024^2: unconditional, and conditional with 300 text tokens
ROUNDS = 15


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--kernels", nargs="*", default=[], help="names; all where none is given")
    made.add_argument("--m", nargs="+", type=int, default=list(ROWS_M), help="row counts")
    made.add_argument("--sweep", action="store_true", help="time every spread of a row")
    made.add_argument("--rounds", type=int, default=ROUNDS, help="samples of each")
    made.add_argument("--out", help="CSV that the rows are added to")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import torch

from dit8.scripts.producer_cases import FAMILIES, Case
from dit8.scripts.timing import copies_for, cuda_sampler, interleave, percentiles

LAYOUT = Layout(
    key=("run_id", "gpu", "kernel", "m", "k", "variant"),
    values=("p20_ms", "p50_ms", "p80_ms", "gb_per_s", "versions", "commit"),
    types={
        **dict.fromkeys(("m", "k"), int),
        **dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "gb_per_s"), float),
    },
)


def measure(case: Case, m: int, sweep: bool, rounds: int) -> list[dict]:
    """Time one case; returns its rows without what all rows share."""
    device = torch.cuda.get_device_properties("cuda")
    call_bytes = m * case.row_bytes
    free_bytes = torch.cuda.mem_get_info()[0]
    copies = copies_for(call_bytes, 2 * call_bytes, device.L2_cache_size, free_bytes)
    operands = [case.draw(m) for _ in range(copies)]
    samplers = {}
    for config in case.spreads if sweep and case.spreads else (None,):
        name = case.variant
        if config is not None:
            name += "-" + "x".join(str(size) for size in vars(config).values())
        samplers[name] = cuda_sampler([case.bind(tensors, config) for tensors in operands], True)
    rows = []
    for name, samples in interleave(samplers, rounds).items():
        p = percentiles(samples)
        times = {"p20_ms": p.p20_ms, "p50_ms": p.p50_ms, "p80_ms": p.p80_ms}
        speed = call_bytes / (p.p50_ms * 1e-3) / 1e9
        rows.append(
            {"kernel": case.kernel, "m": m, "k": case.k, "variant": name, **times}
            | {"gb_per_s": speed}
        )
    return rows


def choose_cases(kernels: list[str]) -> list[Case]:
    """Return the cases of the named kernels, all where none is named; the copy always.

    Raises:
        UserError: there is no GPU, or an unknown name.
    """
    if not torch.cuda.is_available():
        raise UserError(
            f"the kernels are timed on an NVIDIA GPU, got torch "
            f"{torch.__version__}, which sees none; run this on a machine with one"
        )
    cases = [case for family in FAMILIES for case in family()]
    known = list(dict.fromkeys(case.kernel for case in cases))
    for name in kernels:
        if name not in known:
            raise UserError(
                f"kernels must be among {', '.join(known)}, got {name!r}; correct the name"
            )
    return [case for case in cases if not kernels or case.kernel in {*kernels, "copy"}]


def main() -> None:
    arguments = parser().parse_args()
    cases = choose_cases(arguments.kernels)
    gpu, found = torch.cuda.get_device_name(), describe(ROOT)
    commit = (found["git"]["commit"] or "unknown")[:12]
    versions = {name: found["versions"][name] for name in ("torch", "triton")}
    shared = {
        "run_id": make_run_id(datetime.datetime.now(datetime.UTC), commit, gpu),
        "gpu": gpu,
        "versions": json.dumps(versions, sort_keys=True),
        "commit": commit,
    }
    rows = []
    print(f"{'kernel':26}{'variant':22}{'m':>6}{'k':>7}{'us':>9}{'GB/s':>8}")
    for m in arguments.m:
        for case in cases:
            for row in measure(case, m, arguments.sweep, arguments.rounds):
                rows.append(shared | row)
                time = f"{1e3 * row['p50_ms']:9.1f}{row['gb_per_s']:8.0f}"
                print(f"{row['kernel']:26}{row['variant']:22}{m:6}{row['k']:7}{time}", flush=True)
    if arguments.out:
        upsert(from_root(arguments.out), LAYOUT, rows)
    print(json.dumps({"run_id": shared["run_id"], "rows": len(rows), "out": arguments.out}))


if __name__ == "__main__":
    with one_sentence("bench_producers"):
        main()
