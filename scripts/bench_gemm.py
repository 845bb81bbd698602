"""Time the linears of Ideogram 4 as matrix products, ours beside torch's and other projects'.

    python scripts/bench_gemm.py                                  # everything: one GPU, minutes
    python scripts/bench_gemm.py --paths dit8 dit8_quant --m 4096 4396 --modes gemm_graph
    python scripts/bench_gemm.py --shapes qkv attn_out ffn_up2 ffn_down --m 4096 4396 --paths \\
        dit8 dit8_quant sgl_kernel --sgl-library common_ops.abi3.so
    python scripts/bench_gemm.py --paths torchao --seconds 300    # compiles for every shape

bf16 and fp8 are measured in every run, so that runs can be joined by ratios. For each shape and M
every path is checked, then all are timed in turn, sample by sample (scripts/timing.py). A path that
cannot run is reported as not measured, with the reason; one of ours that is wrong ends the run. The
card must reach its bf16 rate before and after, or nothing is kept.

Adds rows to <results>/bench/gemm.csv and writes <results>/bench/runs/<run_id>.json: health, what
was not measured, versions. Prints the tables of this run, and one JSON document last.
"""

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"bench_gemm: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.gemm_rows import (
    ANCHORS,
    GEMM,
    MODES,
    PATHS,
    ROWS_M,
    SHAPES,
    make_row,
    modes_of,
    summarize,
)
from dit8.eval.ledger import upsert
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically
from dit8.scripts.run_identity import identify
from dit8.scripts.speed_tables import gemm_table

ROUNDS = 20
SECONDS = 480.0  # then no other linear is begun


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--shapes", nargs="+", default=list(SHAPES), help=", ".join(SHAPES))
    made.add_argument("--m", nargs="+", type=int, default=list(ROWS_M), help="rows of x")
    made.add_argument("--paths", nargs="+", default=list(PATHS), help=", ".join(PATHS))
    made.add_argument("--modes", nargs="+", default=list(MODES), help=", ".join(MODES))
    made.add_argument("--rounds", type=int, default=ROUNDS, help="samples of each")
    made.add_argument("--seconds", type=float, default=SECONDS, help="begin no linear later")
    made.add_argument("--device", default="cuda")
    made.add_argument("--expected-tflops", type=float, help="bf16 rate of a healthy card")
    made.add_argument("--sgl-library", help="sgl-kernel's; or set DIT8_SGL_LIBRARY")
    made.add_argument("--results", default="outputs/results")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import torch

from dit8.scripts.gemm_grid import EVERYWHERE, Machine, NotMeasured, attempt, measure_linear
from dit8.scripts.gemm_paths import OWN, GemmPath
from dit8.scripts.gemm_peers import PEERS, SGL_LIBRARY
from dit8.scripts.health import check_health, cuda_bf16_tflops, expected_tflops
from dit8.scripts.timing import cuda_sampler


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    Args:
        shapes: name -> (N, K).
        m: row counts, measured in this order.
        paths: names; the anchors are added.
        modes: names.
        rounds: samples of each path and mode.
        seconds: after which no other linear is begun.
    """

    shapes: Mapping[str, tuple[int, int]]
    m: tuple[int, ...]
    paths: tuple[str, ...]
    modes: tuple[str, ...]
    rounds: int = ROUNDS
    seconds: float = SECONDS

    @property
    def opened(self) -> list[GemmPath]:
        """Return the paths to measure, in the order of the tables."""
        named = {*self.paths, *ANCHORS}
        return [p for p in (*OWN, *PEERS) if p.name in named and modes_of(p.name, self.modes)]


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Check the command line.

    Raises:
        UserError: an unknown name, or a number that is not positive.
    """
    for what, known in (("shapes", SHAPES), ("paths", PATHS), ("modes", MODES)):
        for name in getattr(arguments, what):
            if name not in known:
                raise UserError(
                    f"{what} must be among {', '.join(known)}, got {name!r}; correct the name"
                )
    for what in ("m", "rounds", "seconds"):
        values = getattr(arguments, what)
        for value in values if isinstance(values, list) else [values]:
            if not value > 0:
                raise UserError(f"{what} must be positive, got {value:g}; correct it")
    return Plan(
        {name: SHAPES[name] for name in dict.fromkeys(arguments.shapes)},
        tuple(dict.fromkeys(arguments.m)),
        tuple(arguments.paths),
        tuple(arguments.modes),
        arguments.rounds,
        arguments.seconds,
    )


def cuda_machine(name: str, told_tflops: float | None) -> Machine:
    """Describe a CUDA device.

    Raises:
        UserError: there is none of that name, or nobody knows its bf16 rate.
    """
    if not torch.cuda.is_available():
        raise UserError(
            f"the paths are timed on an NVIDIA GPU, got torch {torch.__version__}, which sees "
            "none; run this on a machine with one and a CUDA build of torch"
        )
    try:
        device = torch.device(name)
        device = torch.device(device.type, device.index or 0)  # set_device wants a number
        torch.cuda.set_device(device)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"device must be cuda or cuda:N with N below {torch.cuda.device_count()}, got "
            f"{name!r}; correct it"
        ) from error
    gpu = torch.cuda.get_device_name(device)
    return Machine(
        device,
        gpu,
        torch.cuda.get_device_properties(device).L2_cache_size,
        lambda: _free_bytes(device),
        lambda: cuda_bf16_tflops(device),
        expected_tflops(gpu, told_tflops),
        cuda_sampler,
    )


def _free_bytes(device: torch.device) -> int:
    """Return what is free, with what torch keeps for itself and does not use."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def run_grid(
    machine: Machine, plan: Plan, shared: Mapping[str, str], missing: NotMeasured, say: Callable
) -> list[dict[str, Any]]:
    """Measure every linear of the plan; returns the rows.

    Args:
        shared: run_id, gpu, versions (of torch, Triton and the driver) and commit of every row.
        missing: takes what is left out.
        say: takes a line of progress.
    """
    start, rows = time.monotonic(), []
    loaded: dict[str, str] = {}  # path -> what of another project it runs
    for path in plan.opened:

        def note(reason: str, name: str = path.name) -> None:
            missing.add(name, reason, EVERYWHERE)

        version = attempt(path, path.version or (lambda: ""), note)
        if version is not None:
            loaded[path.name] = version
    paths = [path for path in plan.opened if path.name in loaded]
    for shape, (n, k) in plan.shapes.items():
        for m in plan.m:
            where = f"{shape} M={m}"
            if time.monotonic() - start > plan.seconds:
                for path in paths:
                    missing.add(path.name, f"the {plan.seconds:g} s of --seconds were over", where)
                continue
            begun = time.monotonic()
            samples = measure_linear(
                machine,
                paths,
                plan.modes,
                (m, n, k),
                plan.rounds,
                lambda name, reason, w=where: missing.add(name, reason, w),
                where,
            )
            for (name, mode), values in samples.items():
                versions = "; ".join(filter(None, (shared["versions"], loaded[name])))
                row = make_row(
                    {**shared, "versions": versions}, name, shape, (m, n, k), mode, values
                )
                rows.append(row)
            say(f"{where}: {len(samples)} medians in {time.monotonic() - begun:.1f} s")
    return rows


def bench(machine: Machine, plan: Plan, results: Path, say: Callable = print) -> dict[str, Any]:
    """Measure, and keep the rows if the card was healthy before and after.

    Args:
        machine: device and clock.
        plan: what to measure.
        results: folder that holds bench/.
        say: takes lines for the reader.

    Returns:
        the document that is printed last.

    Raises:
        UserError: a throttled card, a wrong result of ours, no known commit, an unwritable folder.
    """
    start, begun = datetime.datetime.now(datetime.UTC), time.monotonic()
    shared, found = identify(start, machine.gpu, ("torch", "triton"))
    health = {"expected_tflops": machine.expected_tflops}
    missing = NotMeasured()

    def check(when: str) -> None:
        health[f"{when}_tflops"] = round(machine.bf16_tflops(), 1)
        check_health(health[f"{when}_tflops"], machine.expected_tflops, machine.gpu, when)
        say(f"bf16 {when} the measurements: {health[f'{when}_tflops']} TFLOPS")

    check("before")
    rows = run_grid(machine, plan, shared, missing, say)
    check("after")
    table = results / "bench" / "gemm.csv"
    upsert(table, GEMM, rows)
    document = {
        "run_id": shared["run_id"],
        "rows": len(rows),
        "health": health,
        "not_measured": missing.reasons,
        "summary": summarize(rows),
        "seconds": round(time.monotonic() - begun, 1),
    }
    record = document | {"started": start.isoformat(timespec="seconds"), "provenance": found}
    text = json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    kept = results / "bench" / "runs" / f"{shared['run_id']}.json"
    write_atomically(kept, lambda path: path.write_text(text, encoding="utf-8"))
    say(gemm_table(rows))
    for line in missing.lines():
        say(line)
    return document | {"table": shorten(table), "record": shorten(kept)}


def main() -> None:
    with one_sentence("bench_gemm"):
        arguments = parser().parse_args()
        if arguments.sgl_library is not None:
            os.environ[SGL_LIBRARY] = arguments.sgl_library
        plan = make_plan(arguments)
        machine = cuda_machine(arguments.device, arguments.expected_tflops)
        print(json.dumps(bench(machine, plan, from_root(arguments.results))))


if __name__ == "__main__":
    main()
