"""Table 2: each matrix product against cuBLAS in bf16, and whether the card was healthy.

A ratio says nothing on a throttled card, so that the sustained bf16 rate of the same runs, before
and after, stands beside it (scripts/health.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.gemm_rows import GEMM, SHAPES, STEP_M, ratios, step_mean
from eval.ledger import read_table
from eval.reproduce import bench
from eval.reproduce.paper import Reported, load_reported, reported_cell, sources_note
from eval.reproduce.table import (
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
OTHER = "RTX 3090"
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
        Column(f"{label}, M = {m}", MEASURED, WHERE, "x bf16", ".2f", RANGE)
        for label in MEASURES.values()
        for m in STEP_M
    ),
    Column("health gate, bf16", MEASURED, WHERE, "TFLOPS", ".0f"),
    Column("fused GEMM", MEASURED, OTHER, "x bf16", ".2f", RANGE),
    Column("fused GEMM", REPORTED, PAPERS, "x bf16", ".2f"),
    Column("health gate, bf16", REPORTED, PAPERS, "TFLOPS", ".1f"),
)
NOTES = (
    "Times of cuBLAS in bf16 over those of the path, medians under CUDA graphs, M rows as in the "
    "two branches at 1024 px; above 1 is faster than bf16. Brackets: lowest and highest of the "
    "runs where there are several, no interval of confidence. The mean is geometric over qkv, "
    "attn_out, ffn_up2 and ffn_down as often as a CFG step calls them.",
    "Health gate: sustained bf16 products on the same card before and after, lowest to highest of "
    "the runs. The papers' range is over their numbers of rows, not ours.",
)


def build(results: Path) -> Table:
    """Build the table from bench/gemm.csv and the papers' figures."""
    frame = read_table(results / "bench" / "gemm.csv", GEMM)
    rows = {gpu: _runs(frame.to_dict("records"), gpu) for gpu in (bench.H200, bench.RTX3090)}
    reported = load_reported(results, SLUG)
    gate = _gate(results, rows[bench.H200])
    lines = [
        (
            *keys(shape, f"{n} x {k}"),
            *(
                _ratio(rows[bench.H200], path, shape, m, mode)
                for path, mode in MEASURES
                for m in STEP_M
            ),
            gate,
            _other(rows[bench.RTX3090], shape),
            *_reported(reported, shape),
        )
        for shape, (n, k) in SHAPES.items()
    ]
    lines.append(_mean_line(rows[bench.H200], gate, reported))
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
    runs: Sequence[Sequence[Mapping[str, Any]]], gate: Cell, reported: tuple[Reported, ...]
) -> tuple[Cell, ...]:
    found = ratios([row for run in runs for row in run])
    cells: list[Cell] = []
    for path, mode in MEASURES:
        mean = step_mean(found, path, mode)
        lacking = empty("not measured", f"python scripts/bench_gemm.py --paths {path}")
        cell = lacking if mean is None else figure(mean)
        cells += [cell, empty("the mean is over both M")] if mean is not None else [cell, cell]
    needs = empty("needs a card of sm_86", "python scripts/bench_gemm.py")
    return (*keys("mean of a step", "all"), *cells, gate, needs, *_reported(reported, "mean"))


def _gate(results: Path, runs: Sequence[Sequence[Mapping[str, Any]]]) -> Cell:
    """Return lowest and highest bf16 rate around the runs."""
    records = [bench.read_run(results, run[0]["run_id"])["health"] for run in runs]
    rates = [record[name] for record in records for name in ("before_tflops", "after_tflops")]
    if not rates:
        return empty("not measured", "python scripts/bench_gemm.py")
    return Cell(low=min(rates), high=max(rates))


def _reported(reported: tuple[Reported, ...], shape: str) -> tuple[Cell, Cell]:
    healthy = reported_cell(reported, "bf16", "health_healthy")
    return reported_cell(reported, "dit8", shape), healthy
