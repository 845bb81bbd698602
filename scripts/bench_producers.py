"""Time the kernels around the products against the bytes they move, on one NVIDIA GPU.

    python scripts/bench_producers.py                                # every kernel, chosen spreads
    python scripts/bench_producers.py --sweep --kernels swiglu_quant quant_rows --m 4396
    python scripts/bench_producers.py --out results/bench/producers.csv

These kernels do next to no arithmetic, so bytes read and written once, over time, is how good they
are: a copy, measured beside them, is the ceiling. Everything is replayed from CUDA graphs over
copies of the operands that together exceed the L2 cache (scripts/timing.py). `--sweep` times every
spread of a row (columns per chunk x warps) instead of the one that is chosen, to choose by.

Prints a table, adds rows to the CSV where one is named, and prints one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from eval.ledger import Layout, upsert
from eval.provenance import describe
from quant.errors import UserError
from scripts.cli import ROOT, from_root, one_sentence
from scripts.run_identity import make_run_id
from scripts.timing import copies_for, cuda_sampler, interleave, percentiles

HIDDEN, FFN, HEADS, HEAD_DIM, EPS = 4608, 12288, 18, 256, 1e-5  # Ideogram 4
ROWS_M = (4096, 4396)  # 1024^2: unconditional, and conditional with 300 text tokens
ROUNDS = 15
LAYOUT = Layout(
    key=("run_id", "gpu", "kernel", "m", "k", "variant"),
    values=("p20_ms", "p50_ms", "p80_ms", "gb_per_s", "versions", "commit"),
    types={
        **dict.fromkeys(("m", "k"), int),
        **dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "gb_per_s"), float),
    },
)
SPREADS = [(256 * w * (2 if wide else 1), w) for w in (1, 2, 4, 8, 16) for wide in (False, True)]


@dataclass(frozen=True)
class Case:
    """One launch: `draw` makes its operands, `bind` a call of one spread; bytes are per row."""

    kernel: str
    variant: str
    k: int
    row_bytes: int
    draw: Callable[[int], list]
    bind: Callable[[list, object | None], Callable[[], None]]
    spreads: tuple  # configs to sweep


def _rows(m: int, k: int) -> torch.Tensor:
    return torch.randn(m, k, device="cuda").bfloat16()


def _vector(k: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.rand(k, device="cuda") + 0.5).to(dtype)


def _codes(m: int, k: int) -> list[torch.Tensor]:
    codes = torch.empty(m, k, dtype=torch.int8, device="cuda")
    return [codes, torch.empty(m, device="cuda")]


def _spreads(k: int) -> tuple:
    """List the spreads that waste less than a third of the lanes and fit the registers."""
    from kernels.quant_rows_triton import Config

    fits = []
    for block_k, warps in SPREADS:
        columns = -(-k // block_k) * block_k
        if columns < 1.5 * k and columns / (32 * warps) <= 160:
            fits.append(Config(block_k, warps))
    return tuple(fits)


BEFORE_CODES = {"plain": (False, 0), "smooth": (True, 0), "rotated": (False, 256)}


def quant_rows_cases() -> Iterator[Case]:
    from kernels.quant_rows_triton import choose_config, launch

    for k in (HIDDEN, FFN):
        for variant, (smooth, rotation) in BEFORE_CODES.items():

            def draw(m, k=k, smooth=smooth):
                return [_rows(m, k), _vector(k, torch.float32) if smooth else None, *_codes(m, k)]

            def bind(tensors, config, k=k, rotation=rotation):
                x, smooth, codes, scale = tensors
                config = config or choose_config(k, rotation)
                return lambda: launch(x, smooth, rotation, codes, scale, config)

            yield Case("quant_rows", variant, k, 3 * k + 4, draw, bind, _spreads(k))


def norm_cases() -> Iterator[Case]:
    from kernels.norms_triton import choose_config, launch

    parts = [("modulated_norm", "plain", False, True, None, 4)]
    parts += [("gated_residual", "plain", True, False, None, 6)]
    parts += [("gated_residual_norm", "plain", True, True, None, 8)]
    for variant, before in BEFORE_CODES.items():
        parts += [("modulated_norm_quant", variant, False, True, before, 3)]
        parts += [("gated_residual_norm_quant", variant, True, True, before, 7)]
    for kernel, variant, residual, norm, before, value_bytes in parts:

        def draw(m, residual=residual, norm=norm, before=before):
            k = HIDDEN
            rows = [_rows(m, k), _rows(m, k) if residual else None]
            # weight, gate, next_weight, next_scale: adaLN's are fp32 tables in the engine
            kinds = ((residual, torch.bfloat16), (residual, torch.float32))
            kinds += ((norm, torch.bfloat16), (norm, torch.float32))
            vectors = [_vector(k, dtype) if wanted else None for wanted, dtype in kinds]
            smooth = _vector(k, torch.float32) if before and before[0] else None
            outputs = [torch.empty_like(rows[0]) if residual else None]
            outputs += [torch.empty_like(rows[0]) if norm and not before else None]
            return [*rows, *vectors, smooth, *outputs, *(_codes(m, k) if before else (None, None))]

        def bind(tensors, config, residual=residual, before=before):
            rotation = before[1] if before else 0
            config = config or choose_config(HIDDEN, rotation, residual)
            return lambda: launch(*tensors[:7], rotation, EPS, *tensors[7:], config)

        row_bytes = value_bytes * HIDDEN + (4 if before else 0)
        yield Case(kernel, variant, HIDDEN, row_bytes, draw, bind, _spreads(HIDDEN))


def swiglu_cases() -> Iterator[Case]:
    from kernels.swiglu_triton import choose_config, launch

    for variant, before in ({"values": None} | BEFORE_CODES).items():

        def draw(m, before=before):
            smooth = _vector(FFN, torch.float32) if before and before[0] else None
            outputs = [None, *_codes(m, FFN)] if before else [_rows(m, FFN), None, None]
            return [_rows(m, 2 * FFN), smooth, *outputs]

        def bind(tensors, config, before=before):
            rotation = before[1] if before else 0
            config = config or choose_config(FFN, rotation, tensors[1] is not None)
            return lambda: launch(*tensors[:2], rotation, *tensors[2:], config)

        kernel = "swiglu_quant" if before else "swiglu"
        row_bytes = 5 * FFN + 4 if before else 6 * FFN
        yield Case(kernel, variant, FFN, row_bytes, draw, bind, _spreads(FFN))


def rope_cases() -> Iterator[Case]:
    from kernels.qk_norm_rope_triton import Config, choose_config, launch

    width, half = HEADS * HEAD_DIM, HEAD_DIM // 2

    def draw(m):
        tables = [torch.rand(m, half, device="cuda") for _ in range(2)]
        return [_rows(m, 3 * width), _vector(HEAD_DIM), _vector(HEAD_DIM), *tables]

    def bind(tensors, config):
        config = config or choose_config(half)
        return lambda: launch(*tensors, HEADS, EPS, config)

    sizes = ((2, 1), (4, 1), (4, 2), (4, 4), (8, 2), (8, 4), (16, 4), (16, 8), (32, 8))
    spreads = tuple(Config(*size) for size in sizes)
    row_bytes = 2 * 2 * 2 * width + 2 * 4 * half
    yield Case("qk_norm_rope_", "plain", 2 * width, row_bytes, draw, bind, spreads)


def copy_cases() -> Iterator[Case]:
    def draw(m):
        return [_rows(m, FFN), _rows(m, FFN)]

    def bind(tensors, config):
        return lambda: tensors[1].copy_(tensors[0])

    yield Case("copy", "bf16", FFN, 4 * FFN, draw, bind, ())


FAMILIES = (copy_cases, quant_rows_cases, norm_cases, swiglu_cases, rope_cases)


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="*", default=[], help="names; all where none is given")
    parser.add_argument("--m", nargs="+", type=int, default=list(ROWS_M), help="row counts")
    parser.add_argument("--sweep", action="store_true", help="time every spread of a row")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="samples of each")
    parser.add_argument("--out", help="CSV that the rows are added to")
    arguments = parser.parse_args()
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
