"""Table 1: seconds a picture, cards and memory, per variant and size."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dit8.eval.reproduce import bench
from dit8.eval.reproduce.paper import load_reported, reported_cell, sources_note
from dit8.eval.reproduce.runs import REAL, VARIANTS, Run, choose_runs, lacking_cell, place_in
from dit8.eval.reproduce.table import (
    MEASURED,
    REPORTED,
    STUDENT,
    Cell,
    Column,
    Table,
    empty,
    estimate,
    figure,
    keys,
    words,
)
from dit8.eval.stats import MIN_PROMPTS, mean_interval

SLUG = "speed"
SIZES = (1024, 768)
PAPERS, PAPERS_CARD = "RTX 3090, by the papers", "rtx3090"
DEVICES = 1.0  # scripts/bench_model.py uses one, however many the computer has
COLUMNS = (
    Column("px"),
    Column("variant"),
    Column("engine"),
    Column("image", MEASURED, bench.WHERE, "s", ".2f", STUDENT),
    Column("images", MEASURED, bench.WHERE, spec=".0f"),
    Column("CFG step", MEASURED, bench.WHERE, "ms", ".1f", STUDENT),
    Column(bench.BESIDE_BF16, MEASURED, bench.WHERE, spec=".2f"),
    Column("GPUs", MEASURED, bench.WHERE, spec=".0f"),
    Column("peak", MEASURED, bench.WHERE, "GB", ".1f"),
    Column("image", MEASURED, REAL.label, "s", ".1f"),
    Column("GPU", MEASURED, REAL.label),
    Column("image", REPORTED, PAPERS, "s", ".2f"),
    Column("GPUs", REPORTED, PAPERS, spec=".0f"),
    Column("peak", REPORTED, PAPERS, "GB", ".2f"),
)
NOTES = (
    "H200: 48 steps with both branches and the text projection, 300 text tokens, without text "
    "encoder and VAE; the variants take turns, an image each; brackets are Student's 95 % interval "
    "over images. A row is of one run: stock, compiled, bf16, fused_int8 and rotated of the newest "
    "that has fused_int8, the others each of its newest; runs and cards differ "
    "(results/FINDINGS.md says by how much the engine in bf16 did), so compare within a run. "
    "Several cards of one computer were benchmarked at once. "
    "GPUs: those used, which is one. Peak: beside CUDA's context.",
    "`compiled` is stock diffusers without padding and mask, with compiled blocks and the fastest "
    "attention backend. `rotated` is variant fused_int8 under recipe rotate. `int8` is quantized, "
    "dequantized and multiplied in bf16; which unfused path the papers timed is not known to us.",
    f"{REAL.label}: wall-clock time of whole pictures, 95 % interval over captions. The papers' "
    "engine is their own: their figures stand with `dit8` for want of a better place.",
)


def build(results: Path) -> Table:
    """Build the table from bench/model.csv, the ledger's seconds and the papers' figures."""
    rows, reported = bench.read_bench(results), load_reported(SLUG)
    lines = []
    for size in SIZES:
        real = choose_runs(results, place_in(results, REAL.at(size)), ("seconds",))
        for variant, engine in bench.PATHS:
            is_real = engine == REAL.engine
            papers = variant if is_real else ""
            lines.append(
                keys(str(size), variant, engine)
                + _measured(results, rows, (variant, engine), size)
                + _real(real, variant, engine)
                + tuple(
                    reported_cell(reported, papers, f"{quantity}_{size}", PAPERS_CARD)
                    for quantity in ("image_s", "gpus", "peak_gb")
                )
            )
    sources = (bench.SOURCE, "results/bench/runs", "results/scores.csv", "results/paper/speed.csv")
    title = "seconds a picture, GPUs and memory, at 1024 and 768 px"
    return Table(1, SLUG, title, COLUMNS, tuple(lines), (*NOTES, sources_note(reported)), sources)


def _measured(
    results: Path, rows: pd.DataFrame, path: tuple[str, str], size: int
) -> tuple[Cell, ...]:
    found = bench.choose(rows, bench.H200, path, size, "image_s", "cfg_step_ms")
    command = bench.command_for(path)
    lacking = empty("not measured", command)
    if found is None:
        return (lacking,) * 6
    record = bench.read_run(results, found.run_id)
    images = record.get("images", {}).get(str(size))
    short = empty("timed over fewer than 48 steps", command)
    return (
        found.cell("image_s") or short,
        lacking if images is None else figure(float(images)),
        found.cell("cfg_step_ms") or lacking,
        _beside_bf16(rows, found, size),
        figure(DEVICES),
        found.cell("peak_bytes", 1e-9) or lacking,
    )


def _beside_bf16(rows: pd.DataFrame, found: bench.Timed, size: int) -> Cell:
    """Compare a step with one of the engine in bf16 in the same run."""
    base = bench.beside(rows, found, ("bf16", "dit8"), size)
    if base is None or "cfg_step_ms" not in found.figures:
        return empty("its run has no bf16 beside it", bench.command(bench.FORMATS))
    steps = (one.figures["cfg_step_ms"].estimate for one in (base, found))
    return figure(next(steps) / next(steps))


def _real(runs: Mapping[str, Run], variant: str, engine: str) -> tuple[Cell, Cell]:
    if engine != REAL.engine or variant not in VARIANTS:
        return (
            empty("does not apply: the pictures are drawn by dit8, of the papers' variants"),
        ) * 2
    seconds = runs[variant].values.get("seconds", {}) if variant in runs else {}
    if len(seconds) < MIN_PROMPTS:
        return (lacking_cell(REAL, variant, 1, "needs the gated weights and a card of sm_86"),) * 2
    return estimate(mean_interval(seconds)), words(runs[variant].gpu or "no GPU")
