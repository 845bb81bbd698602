"""What is measured of a matrix product, and the rows it becomes.

A mode is what is timed and how: "gemm" from quantized operands or "quant_gemm" from the bf16
activation, eager or replayed from a CUDA graph. bf16 has nothing to quantize, so its "gemm" is
what either is compared with.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dit8.eval.ledger import Layout
from dit8.eval.stats import latency_percentiles

# (N, K) of Ideogram 4's linears; ffn_up2 is w1 and w3 as one, the way the engine runs them
SHAPES = {
    "qkv": (13824, 4608),
    "attn_out": (4608, 4608),
    "ffn_up": (12288, 4608),
    "ffn_up2": (24576, 4608),
    "ffn_down": (4608, 12288),
    "llm_proj": (4608, 53248),
}
CALLS = {"qkv": 1, "attn_out": 1, "ffn_up2": 1, "ffn_down": 1}  # in one block of one branch
# 1024^2 is 4096 image tokens: alone in the unconditional branch, with 300 text tokens in the other
STEP_M = (4096, 4396)
ROWS_M = (1, 17, 256, 1088, *STEP_M, 6221)
HOWS = ("eager", "graph")
# what each path can be asked for, in the order of the tables
PATHS = {
    "bf16": ("gemm",),
    "fp8": ("gemm", "quant_gemm"),
    "int_mm": ("gemm",),
    "unfused": ("gemm", "quant_gemm"),
    "fake_quant": ("gemm", "quant_gemm"),
    "dit8": ("gemm",),
    "dit8_quant": ("quant_gemm",),
    "comfy_kitchen": ("gemm", "quant_gemm"),
    "sgl_kernel": ("gemm", "quant_gemm"),
    "sdnq": ("gemm", "quant_gemm"),
    "torchao": ("gemm", "quant_gemm"),
}
ANCHORS = ("bf16", "fp8")
PEERS = ("comfy_kitchen", "sgl_kernel", "sdnq", "torchao")  # other projects' kernels
MODES = tuple(f"{what}_{how}" for what in ("gemm", "quant_gemm") for how in HOWS)
GEMM = Layout(
    key=("run_id", "gpu", "path", "shape", "m", "n", "k", "mode"),
    values=("p20_ms", "p50_ms", "p80_ms", "tops", "versions", "commit"),
    types={
        **dict.fromkeys(("m", "n", "k"), int),
        **dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "tops"), float),
    },
)


def split_mode(mode: str) -> tuple[str, str]:
    """Return what is timed and how: "quant_gemm_graph" is ("quant_gemm", "graph")."""
    what, _, how = mode.rpartition("_")
    return what, how


def modes_of(path: str, chosen: Sequence[str]) -> list[str]:
    """Return the modes a path is measured in when these are chosen.

    bf16 is measured as "gemm" for every way of running it that was chosen, since it is what the
    "quant_gemm" of the others is compared with.
    """
    if path == "bf16":
        hows = {split_mode(mode)[1] for mode in chosen}
        return [mode for mode in MODES if split_mode(mode) in {("gemm", how) for how in hows}]
    return [mode for mode in MODES if mode in chosen and split_mode(mode)[0] in PATHS[path]]


def make_row(
    shared: Mapping[str, str],
    path: str,
    shape: str,
    sizes: tuple[int, int, int],
    mode: str,
    samples: Sequence[float],
) -> dict[str, Any]:
    """Make one row of results/bench/gemm.csv.

    Args:
        shared: run_id, gpu, versions and commit.
        sizes: M, N, K.
        samples: ms per call.

    Returns:
        the columns of GEMM; `tops` is 2 M N K operations over the median, in 10^12 per second,
        whatever else the mode does in that time.
    """
    m, n, k = sizes
    found = latency_percentiles(samples)
    return {
        **shared,
        **{"path": path, "shape": shape, "m": m, "n": n, "k": k, "mode": mode},
        **{name: found[name] for name in ("p20_ms", "p50_ms", "p80_ms")},
        "tops": 2 * m * n * k / (found["p50_ms"] * 1e-3) / 1e12,
    }


Cell = tuple[str, str, int, str]  # path, shape, M, mode


def ratios(rows: Iterable[Mapping[str, Any]], anchor: str = "bf16") -> dict[Cell, float]:
    """Say how many times as fast as an anchor everything is that was measured on one GPU.

    Medians are compared within a run only; where several runs have a cell, the geometric mean of
    their ratios counts. bf16 is an anchor by its "gemm", any other path by the mode that it is
    compared in.

    Args:
        rows: of one GPU, of any number of runs.
        anchor: one of PATHS.

    Returns:
        (path, shape, M, mode) -> the anchor's median over the path's. Without cells whose run has
        no anchor for them.
    """
    runs: dict[str, dict[Cell, float]] = {}
    for row in rows:
        cell = (row["path"], row["shape"], row["m"], row["mode"])
        runs.setdefault(row["run_id"], {})[cell] = row["p50_ms"]
    seen: dict[Cell, list[float]] = {}
    for run in sorted(runs):
        times = runs[run]
        for (path, shape, m, mode), own in times.items():
            against = f"gemm_{split_mode(mode)[1]}" if anchor == "bf16" else mode
            theirs = times.get((anchor, shape, m, against))
            if theirs is not None:
                seen.setdefault((path, shape, m, mode), []).append(theirs / own)
    return {cell: math.prod(found) ** (1 / len(found)) for cell, found in seen.items()}


def step_mean(found: Mapping[Cell, float], path: str, mode: str) -> float | None:
    """Average a path's ratios over the linears of a CFG step: geometric, weighted by CALLS.

    Both branches run the same linears equally often, with STEP_M rows.

    Returns:
        None if any of them was not measured: a mean over fewer would be another number.
    """
    weights = {(path, s, m, mode): calls for s, calls in CALLS.items() for m in STEP_M}
    if not all(cell in found for cell in weights):
        return None
    logs = sum(calls * math.log(found[cell]) for cell, calls in weights.items())
    return math.exp(logs / sum(weights.values()))


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Reduce one run's rows to the figures that are asked for first.

    Returns:
        path -> the step means under CUDA graphs, as far as measured: "gemm_vs_bf16",
        "gemm_vs_fp8", "quant_gemm_vs_bf16" and "quant_gemm_vs_fp8".
    """
    summary: dict[str, dict[str, float]] = {}
    for anchor in ANCHORS:
        found = ratios(rows, anchor)
        for path, whats in PATHS.items():
            for what in whats:
                mean = step_mean(found, path, f"{what}_graph")
                if mean is not None and path != anchor:
                    summary.setdefault(path, {})[f"{what}_vs_{anchor}"] = round(mean, 3)
    return summary
