"""The papers' claims of speed, memory and exactness, against the H200's rows."""

from pathlib import Path

import pandas as pd

from dit8.eval.reproduce import bench
from dit8.eval.reproduce.finding import (
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
from dit8.eval.reproduce.table import PREDICTED, Cell

SHAPES = ("qkv", "attn_out", "ffn_up", "ffn_down", "llm_proj")
PRODUCT = "int8_gemm"
CAP_GB = 24.0
IMAGE, STEP = "image", "cfg_step_ms"
PERCENT = "% of the step"
BF16, COMPILED, FUSED = ("bf16", "dit8"), ("bf16", "compiled"), ("fused_int8", "dit8")


def _fused_product(tables: Tables, results: Path) -> tuple[str, str]:
    label = "quantize + fused GEMM, M = "
    cells = [pick(tables[2], (shape,), f"{label}{m}") for shape in SHAPES for m in (4096, 4396)]
    values = [cell.value for cell in cells]
    low = min(cell.value if cell.low is None else cell.low for cell in cells)
    high = max(cell.value if cell.high is None else cell.high for cell in cells)
    return PARTLY if low > 1 else FAILS, (
        "Tested here is only whether it is faster than bf16 on all five shapes, on an H200; the "
        "factors are those of an RTX 3090, which is not here. Quantization included, it is "
        f"{min(values):.2f} to {max(values):.2f} times as fast as cuBLAS in bf16 at 4096 and 4396 "
        f"rows, {low:.2f} to {high:.2f} in single runs."
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
    beside = _in_run(rows, run, BF16, "image_s")
    listed = ", ".join(f"{name} {shown(cell, '.2f')}" for name, cell in others.items())
    return HOLDS if least else FAILS, (
        "H200, random weights, 1024 px, s of a picture under one engine: fused_int8 "
        f"{shown(fused, '.2f')} where bf16 takes {shown(bf16, '.2f')}; in runs of their own "
        f"{listed}; in fp8's bf16 takes {shown(beside, '.2f')}. {_spread(rows)} "
        "int8 is fake quantization here: quantized, decoded again and multiplied in bf16. Which "
        "unfused path the papers ran is not known to us."
    )


def _spread(rows: pd.DataFrame) -> str:
    """Say how far runs of one path lie apart, which the interval of one run does not show."""
    own = rows[(rows["gpu"] == bench.H200) & (rows["text_tokens"] == bench.TEXT_TOKENS)]
    own = own[(own["variant"] == BF16[0]) & (own["engine"] == BF16[1])]
    steps = own[(own["resolution"] == 1024) & (own["quantity"] == STEP)]["value"]
    if steps.empty:
        raise Lacking("steps of bf16 under the engine")
    low, high = steps.min(), steps.max()
    return (
        f"Runs differ: of {len(steps)} the lowest and the highest step of bf16 under the engine "
        f"are {low:.1f} and {high:.1f} ms, {100 * (high / low - 1):.1f} % apart, by card, code or "
        "chance."
    )


def _in_run(rows: pd.DataFrame, run: str, path: tuple[str, str], quantity: str) -> Cell:
    """Return a path's figure at 1024 px in a run; Lacking where the run has none."""
    found = bench.choose(rows[rows["run_id"] == run], bench.H200, path, 1024, quantity)
    if found is None:
        raise Lacking(f"{path[0]} through {path[1]} in run {run}")
    return found.cell(quantity)


def _memory(tables: Tables, results: Path) -> tuple[str, str]:
    rows = bench.under_cap(bench.read_bench(results), CAP_GB)
    timed = bench.choose(rows, bench.H200, FUSED, 1024, "peak_bytes_capped")
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
        for path in (("bf16", "stock"), FUSED)
    )
    return UNTESTED, (
        "What they counted is not known to us, and card and code are others than theirs. Here, on "
        f"an H200 at 1024 px, it is {shown(stock, '.0f')} % of a step of stock diffusers in bf16 "
        f"and {shown(fused, '.0f')} % of one of fused_int8 under the engine."
    )


def _compile(tables: Tables, results: Path) -> tuple[str, str]:
    gain = pick(tables[9], ("1024", *COMPILED), "against stock")
    rows = bench.read_bench(results)
    fused = bench.choose(rows, bench.H200, FUSED, 1024, STEP)
    if fused is None:
        raise Lacking("a step of fused_int8")
    compiled = _in_run(rows, fused.run_id, COMPILED, STEP)
    return UNTESTED, (
        "Nothing here breaks the graph as their linears do. In bf16 on an H200 at 1024 px, stock "
        "diffusers without padding and mask, with compiled blocks and the attention kernel that "
        f"measures fastest, is {shown(gain, '.2f')} times as fast as without; what of that is the "
        "compiler's was not separated. fused_int8 under the engine is "
        f"{compiled.value / fused.cell(STEP).value:.2f} times as fast as that, by the steps of one "
        "run."
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
        (f"{BENCH} --variants stock compiled fused_int8",),
    ),
    Claim(
        "Against its own bf16 path int8 is 1.38 times slower on an A100 and 3.49 times on a B200.",
        _other_cards,
        ("python scripts/check_arch.py", "python scripts/deployment_map.py"),
    ),
    Claim(
        "Without autotuning the fused product is 1.4 to 2.9 times as fast as bf16, and 0.64 times "
        "on the text projection (2606.14598, RTX 3090).",
        _untested(
            "Needs a card of sm_86, and nothing here switches tuning off: scripts/bench_gemm.py "
            "takes the tiles that scripts/tune.py kept for a card, without them those of a rule "
            "of ours (kernels/tiles.py). What theirs falls back to is not known to us."
        ),
        (),
    ),
)
