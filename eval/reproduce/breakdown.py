"""Table 9: where a step's time goes, and what making the linears free could bring at most.

Amdahl (1967): if a share p of the time is made s times as fast, all is 1 / (1 - p + p / s) times as
fast; with s without limit, 1 / (1 - p). The bound says how much a faster product can still bring.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dit8.eval.reproduce import bench
from dit8.eval.reproduce.paper import Reported, load_reported, reported_cell, sources_note
from dit8.eval.reproduce.table import MEASURED, REPORTED, Cell, Column, Table, empty, figure, keys

SLUG = "breakdown"
SIZES = (1024, 768)
# columns: label -> components of scripts/kernel_components.py
PARTS: Mapping[str, tuple[str, ...]] = {
    "linears": ("ms_gemm_bf16", "ms_gemm_int8"),
    "quantize": ("ms_quantize",),
    "attention": ("ms_attention",),
    "norms": ("ms_norms",),
    "rotary": ("ms_rope",),
    "SwiGLU": ("ms_swiglu",),
    "other": ("ms_other",),
}
PAPERS, PAPERS_CARD = "RTX 3090, by the papers", "rtx3090"
UNSTATED = "not stated"  # of which variant and engine the papers' figures are, is not known to us
COLUMNS = (
    *(Column(label) for label in ("px", "variant", "engine")),
    *(Column(label, MEASURED, bench.WHERE, "ms", ".1f") for label in (*PARTS, "waiting", "step")),
    Column("linears", MEASURED, bench.WHERE, "% of the step", ".1f"),
    Column("bound if linears were free", MEASURED, bench.WHERE, "x", ".2f"),
    Column("against stock", MEASURED, bench.WHERE, "x", ".2f"),
    Column("linears", REPORTED, PAPERS, "% of the forward", ".0f"),
    Column("torch.compile", REPORTED, PAPERS),
)
NOTES = (
    "Kernel ms of a CFG step from torch.profiler, by the kernels' names. A fused kernel counts "
    "whole; eager kernels that are named only for an addition, a product or a copy are other, and "
    f"so is the decoding of weights for a product in bf16 ({', '.join(bench.DECODED)}). Step: of "
    "unprofiled images. Waiting: the step less its kernels, below zero by the spread of the two.",
    "The bound is Amdahl's, 1 / (1 - share of the linears). `compiled` is stock diffusers without "
    "padding and mask, with compiled blocks and the fastest attention backend. Against stock: of "
    "the same run. Rows are of the runs of table 1, and kernels of two runs differ: compare "
    "within a run.",
)


def build(results: Path) -> Table:
    """Build the table from bench/model.csv and the papers' figures."""
    rows, reported = bench.read_bench(results), load_reported(SLUG)
    lines = []
    for size in SIZES:
        for path in bench.PATHS:
            timed = bench.choose(rows, bench.H200, path, size, "ms_attention")
            cells = _cells(timed, _stock(rows, timed, size), path)
            lines.append((*keys(str(size), *path), *cells, *_reported(reported, "")))
    blank = (empty("does not apply: the papers' forward, not ours"),) * (len(COLUMNS) - 5)
    lines.append((*keys(UNSTATED, UNSTATED, "theirs"), *blank, *_reported(reported, UNSTATED)))
    title = "where the time of a step goes, stock diffusers against the engine"
    sources = (bench.SOURCE, "results/paper/breakdown.csv")
    return Table(9, SLUG, title, COLUMNS, tuple(lines), (*NOTES, sources_note(reported)), sources)


def _stock(rows: pd.DataFrame, timed: bench.Timed | None, size: int) -> bench.Timed | None:
    """Return stock diffusers of the same run, None where it has none."""
    if timed is None:
        return None
    own = rows[rows["run_id"] == timed.run_id]
    return bench.choose(own, bench.H200, ("bf16", "stock"), size, "cfg_step_ms")


def _cells(
    timed: bench.Timed | None, stock: bench.Timed | None, path: tuple[str, str]
) -> tuple[Cell, ...]:
    if timed is None or "cfg_step_ms" not in timed.figures:
        return (empty("not measured", bench.command_for(path)),) * (len(PARTS) + 5)
    spent = {
        label: sum(timed.figures[name].estimate for name in names) for label, names in PARTS.items()
    }
    step = timed.figures["cfg_step_ms"].estimate
    share = spent["linears"] / step
    cells = [figure(ms) for ms in spent.values()]
    cells += [figure(step - sum(spent.values())), figure(step)]
    cells += [figure(100 * share), figure(1 / (1 - share))]
    if stock is None:
        return (*cells, empty("its run has no stock diffusers beside it", bench.command_for(path)))
    return (*cells, figure(stock.figures["cfg_step_ms"].estimate / step))


def _reported(reported: tuple[Reported, ...], variant: str) -> tuple[Cell, Cell]:
    return (
        reported_cell(reported, variant, "linears_share", PAPERS_CARD),
        reported_cell(reported, variant, "compile_gain", PAPERS_CARD),
    )
