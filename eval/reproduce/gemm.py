"""Table 2: each matrix product against cuBLAS in bf16, and whether the card was healthy.

A ratio says nothing on a throttled card, so that the sustained bf16 rate of the same runs, before
and after, stands beside it (scripts/health.py).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit8.eval.gemm_rows import GEMM, SHAPES, STEP_M, ratios, step_mean
from dit8.eval.ledger import read_table
from dit8.eval.reproduce import bench
from dit8.eval.reproduce.paper import Reported, load_reported, reported_cell, sources_note
from dit8.eval.reproduce.table import (
    MEASURED,
    RANGE,
    REPORTED,
    Cell,
    Column,
    Table,
    empty,
    figure,
    keys,
)

SLUG = "gemm"
SOURCE = "results/bench/gemm.csv"
WHERE, PAPERS = "H200", "RTX 3090, by the papers"
OTHER, PAPERS_CARD = "RTX 3090", "rtx3090"
BOTH = "both M"  # geometric mean of the two
# path and mode of the rows -> label
MEASURES = {
    ("dit8", "gemm_graph"): "fused GEMM",
    ("dit8_quant", "quant_gemm_graph"): "quantize + fused GEMM",
    ("unfused", "quant_gemm_graph"): "quantize + unfused",
    ("fake_quant", "quant_gemm_graph"): "fake quantization",
}
COLUMNS = (
    Column("product"),
    Column("N x K"),
    *(
        Column(f"{label}, {rows}", MEASURED, WHERE, "x bf16", ".2f", RANGE)
        for label in MEASURES.values()
        for rows in (*(f"M = {m}" for m in STEP_M), BOTH)
    ),
    Column("health gate, bf16", MEASURED, WHERE, "TFLOPS", ".0f"),
    Column("fused GEMM", MEASURED, OTHER, "x bf16", ".2f", RANGE),
    Column("health gate, bf16", MEASURED, OTHER, "TFLOPS", ".0f"),
    Column("fused GEMM", REPORTED, PAPERS, "x bf16", ".2f"),
    Column("health gate, bf16", REPORTED, PAPERS, "TFLOPS", ".1f"),
)
COMPANY_PERCENT = 15  # so far a ratio in one run lies off the mean of runs, at most
NOTES = (
    "Times of cuBLAS in bf16 over those of the path, medians under CUDA graphs, M rows as in the "
    "two branches at 1024 px; above 1 is faster than bf16. Brackets: lowest and highest of the "
    "runs where there are several, no interval of confidence. The mean is geometric over qkv, "
    "attn_out, ffn_up2 and ffn_down as often as a CFG step calls them, and over both M.",
    "GEMM alone and quantize + GEMM come from the same runs, but a ratio moves by up to "
    f"{COMPANY_PERCENT} % with "
    "what else is timed in a run: rivals that compute little let the card rest (results/LOG.md). "
    "So quantize + GEMM can stand above GEMM alone; take differences below that for none.",
    "Health gate: sustained bf16 products on the same card before and after, lowest to highest of "
    "the runs. The papers' range is over their numbers of rows, not ours.",
)


def build(results: Path) -> Table:
    """Build the table from bench/gemm.csv and the papers' figures."""
    frame = read_table(results / "bench" / "gemm.csv", GEMM)
    rows = {gpu: _runs(frame.to_dict("records"), gpu) for gpu in (bench.H200, bench.RTX3090)}
    reported = load_reported(SLUG)
    gate = _gate(results, rows[bench.H200], "not measured")
    other_gate = _gate(results, rows[bench.RTX3090], "needs a card of sm_86")
    lines = [
        (
            *keys(shape, f"{n} x {k}"),
            *(
                cell
                for path, mode in MEASURES
                for cell in _ratios(rows[bench.H200], path, shape, mode)
            ),
            gate,
            _other(rows[bench.RTX3090], shape),
            other_gate,
            *_reported(reported, shape),
        )
        for shape, (n, k) in SHAPES.items()
    ]
    lines.append(_mean_line(rows[bench.H200], (gate, other_gate), reported))
    title = "matrix products against cuBLAS in bf16, with the health gate"
    sources = (SOURCE, "results/bench/runs", "results/paper/gemm.csv")
    return Table(2, SLUG, title, COLUMNS, tuple(lines), (*NOTES, sources_note(reported)), sources)


def _runs(rows: Sequence[Mapping[str, Any]], gpu: str) -> list[list[Mapping[str, Any]]]:
    """Split the rows of a card by run."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["gpu"] == gpu:
            runs.setdefault(row["run_id"], []).append(row)
    return [runs[run_id] for run_id in sorted(runs)]


def _ratios(
    runs: Sequence[Sequence[Mapping[str, Any]]], path: str, shape: str, mode: str
) -> list[Cell]:
    """Return the ratio for each number of rows, and their geometric mean."""
    cells = [_ratio(runs, path, shape, m, mode) for m in STEP_M]
    values = [cell.value for cell in cells if cell.value is not None]
    whole = len(values) == len(cells)
    lacking = next((cell for cell in cells if cell.is_empty), None)
    return [*cells, figure(math.prod(values) ** (1 / len(values))) if whole else lacking]


def _ratio(
    runs: Sequence[Sequence[Mapping[str, Any]]], path: str, shape: str, m: int, mode: str
) -> Cell:
    cell = (path, shape, m, mode)
    alone = [found[cell] for found in map(ratios, runs) if cell in found]
    if not alone:
        return empty("not measured", f"python scripts/bench_gemm.py --paths {path} --m {m}")
    together = ratios([row for run in runs for row in run])[cell]
    if len(alone) == 1:
        return figure(together)
    return Cell(value=together, low=min(alone), high=max(alone), method=RANGE)


def _other(runs: Sequence[Sequence[Mapping[str, Any]]], shape: str) -> Cell:
    if not runs:
        return empty("needs a card of sm_86", "python scripts/bench_gemm.py")
    return _ratio(runs, "dit8", shape, STEP_M[0], "gemm_graph")


def _mean_line(
    runs: Sequence[Sequence[Mapping[str, Any]]],
    gates: tuple[Cell, Cell],
    reported: tuple[Reported, ...],
) -> tuple[Cell, ...]:
    found = ratios([row for run in runs for row in run])
    cells: list[Cell] = []
    for path, mode in MEASURES:
        mean = step_mean(found, path, mode)
        lacking = empty("not measured", f"python scripts/bench_gemm.py --paths {path}")
        cells += [empty("does not apply: the mean is over both M")] * len(STEP_M)
        cells.append(lacking if mean is None else figure(mean))
    needs = empty("needs a card of sm_86", "python scripts/bench_gemm.py")
    gate, other = gates
    return (
        *(*keys("mean of a step", "all"), *cells, gate, needs, other),
        *_reported(reported, "mean"),
    )


def _gate(results: Path, runs: Sequence[Sequence[Mapping[str, Any]]], lacking: str) -> Cell:
    """Return lowest and highest bf16 rate around the runs; `lacking` says why there are none."""
    records = [bench.read_run(results, run[0]["run_id"])["health"] for run in runs]
    rates = [record[name] for record in records for name in ("before_tflops", "after_tflops")]
    if not rates:
        return empty(lacking, "python scripts/bench_gemm.py")
    return Cell(low=min(rates), high=max(rates))


def _reported(reported: tuple[Reported, ...], shape: str) -> tuple[Cell, Cell]:
    healthy = reported_cell(reported, "bf16", "health_healthy", PAPERS_CARD)
    return reported_cell(reported, "dit8", shape, PAPERS_CARD), healthy
