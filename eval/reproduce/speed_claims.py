"""The papers' claims of speed, memory and exactness, against the H200's rows."""

from pathlib import Path

import pandas as pd

from eval.reproduce import bench
from eval.reproduce.finding import (
    FAILS,
    HOLDS,
    PARTLY,
    UNTESTED,
    Claim,
    Judge,
    Lacking,
    Tables,
    bounds_of,
    pick,
    shown,
)
from eval.reproduce.table import PREDICTED

SHAPES = ("qkv", "attn_out", "ffn_up", "ffn_down", "llm_proj")
PRODUCT = "int8_gemm"
CAP_GB = 24.0
IMAGE = "image"
PERCENT = "% of the step"


def _fused_product(tables: Tables, results: Path) -> tuple[str, str]:
    label = "quantize + fused GEMM, M = "
    cells = [pick(tables[2], (shape,), f"{label}{m}") for shape in SHAPES for m in (4096, 4396)]
    values = [cell.value for cell in cells]
    low = min(cell.value if cell.low is None else cell.low for cell in cells)
    high = max(cell.value if cell.high is None else cell.high for cell in cells)
    return PARTLY if low > 1 else FAILS, (
        f"H200, quantization included: {min(values):.2f} to {max(values):.2f} times cuBLAS in bf16 "
        f"over the five shapes at 4096 and 4396 rows ({low:.2f} to {high:.2f} in single runs). The "
        "factors of an RTX 3090 cannot be tested here."
    )


def _least_time(tables: Tables, results: Path) -> tuple[str, str]:
    fused, bf16 = (
        pick(tables[1], ("1024", name, "dit8"), IMAGE, where=bench.WHERE)
        for name in ("fused_int8", "bf16")
    )
    others = {
        name: pick(tables[1], ("1024", name, "dit8"), IMAGE, where=bench.WHERE)
        for name in bench.DECODED
    }
    least = bounds_of(fused)[1] < min(bounds_of(cell)[0] for cell in others.values())
    rows = bench.read_bench(results)
    run = bench.choose(rows, bench.H200, ("fp8", "dit8"), 1024, "image_s").run_id
    own = rows[rows["run_id"] == run]
    beside = bench.choose(own, bench.H200, ("bf16", "dit8"), 1024, "image_s")
    if beside is None:
        raise Lacking(f"bf16 in run {run}")
    listed = ", ".join(f"{name} {shown(cell, '.2f')}" for name, cell in others.items())
    return HOLDS if least else FAILS, (
        "H200, random weights, 1024 px, s of a picture under one engine: fused_int8 "
        f"{shown(fused, '.2f')} where bf16 takes {shown(bf16, '.2f')}; in runs of their own "
        f"{listed}; in fp8's bf16 takes {shown(beside.cell('image_s'), '.2f')}."
    )


def _memory(tables: Tables, results: Path) -> tuple[str, str]:
    path = ("fused_int8", "dit8")
    rows = bench.under_cap(bench.read_bench(results), CAP_GB)
    timed = bench.choose(rows, bench.H200, path, 1024, "peak_bytes_capped")
    if timed is None:
        raise Lacking("the peak of a picture drawn under a cap")
    peak = timed.cell("peak_bytes_capped", 1e-9)
    return HOLDS if peak.value <= CAP_GB else FAILS, (
        f"A picture of 1024 px was completed on an H200 capped at {CAP_GB:.0f} GB, with random "
        f"weights: peak {shown(peak, '.2f')} GB with CUDA's context, text encoder and VAE taking "
        "turns with the branches."
    )


def _exact(tables: Tables, results: Path) -> tuple[str, str]:
    rows = pd.read_csv(results / "bench" / "ptx.csv")
    rows = rows[rows["kernel"] == PRODUCT]
    if rows.empty:
        raise Lacking("builds of the int8 product")
    equal = int(rows["equal"].sum())
    cards = ", ".join(f"sm_{sm}" for sm in sorted(rows["sm"].unique()))
    return HOLDS if equal == len(rows) else FAILS, (
        f"{equal} of {len(rows)} builds of the int8 product for {cards}, translated and run by the "
        "driver of an H200, gave the expected bits; on compute capability 9.0 the tests demand "
        "them."
    )


def _linears(tables: Tables, results: Path) -> tuple[str, str]:
    stock, fused = (
        pick(tables[9], ("1024", *path), "linears", unit=PERCENT)
        for path in (("bf16", "stock"), ("fused_int8", "dit8"))
    )
    return FAILS if min(stock.value, fused.value) > 20 else PARTLY, (
        f"H200, 1024 px: {shown(stock, '.0f')} % of a step of stock diffusers in bf16 and "
        f"{shown(fused, '.0f')} % of one of fused_int8 under the engine. Card and code are others "
        "than theirs, and what they counted is not known to us."
    )


def _compile(tables: Tables, results: Path) -> tuple[str, str]:
    gain = pick(tables[9], ("1024", "bf16", "compiled"), "against stock")
    return UNTESTED, (
        "Nothing here breaks the graph as their linears do. In bf16 on an H200, stock diffusers "
        f"without padding and mask and with compiled blocks is {shown(gain, '.2f')} times as fast; "
        "what of that is the compiler's was not separated."
    )


def _other_cards(tables: Tables, results: Path) -> tuple[str, str]:
    a100, b200 = (
        pick(tables[8], (card, "fused_int8"), "times bf16, 1024 px", kind=PREDICTED)
        for card in ("A100 80 GB SXM", "B200 (HGX)")
    )
    return UNTESTED, (
        "None of these cards is here. The kernels are compiled for them, and the deployment map "
        f"predicts the opposite, with tiles tuned for the card: {shown(a100, '.2f')} and "
        f"{shown(b200, '.2f')} times as fast as bf16."
    )


def _untested(reason: str) -> Judge:
    return lambda tables, results: (UNTESTED, reason)


BENCH = "python scripts/bench_model.py"
CLAIMS = (
    Claim(
        "The fused int8 product is 2.8 to 4.2 times as fast as bf16 (2606.14598, RTX 3090).",
        _fused_product,
        ("python scripts/bench_gemm.py",),
    ),
    Claim(
        "Fused INT8 takes the least time a picture: 156.5 s on one card, against 164.5 (NF4, one "
        "card), 172.9 (FP8, two), 184 to 185 (INT8 unfused, two) and about 203 (Q4_K) "
        "(2606.14598, RTX 3090).",
        _least_time,
        (bench.command(bench.ENGINE), bench.command(bench.FORMATS)),
    ),
    Claim(
        "Fused INT8 draws 1024 px on one card of 24 GB, peak 23.40 GB (2606.14598).",
        _memory,
        (f"{BENCH} --cap-gb 24",),
    ),
    Claim(
        "Integer accumulation is exact: equal to torch._int_mm (2606.14598).",
        _exact,
        ("python scripts/run_ptx.py",),
    ),
    Claim(
        "The linears are about 12 % of the forward.",
        _linears,
        (f"{BENCH} --variants stock bf16 fused_int8",),
    ),
    Claim(
        "torch.compile gains nothing, because the custom linears break the graph.",
        _compile,
        (f"{BENCH} --variants stock compiled",),
    ),
    Claim(
        "Against its own bf16 path int8 is 1.38 times slower on an A100 and 3.49 times on a B200.",
        _other_cards,
        ("python scripts/check_arch.py", "python scripts/deployment_map.py"),
    ),
    Claim(
        "Without autotuning the fused product is 1.4 to 2.9 times as fast as bf16, and 0.64 times "
        "on the text projection (2606.14598, RTX 3090).",
        _untested("Needs a card of sm_86."),
        ("python scripts/bench_gemm.py",),
    ),
)
