"""Find out which fraction of its peaks one card reached, from the rows of the benchmarks.

A fraction is counted work over measured time over stated peak. Products come from
`results/bench/gemm.csv` (all shapes of a block at both branches' row counts, CUDA graphs), the rest
from the breakdown in `results/bench/model.csv` at one resolution. Whole steps are never used: they
are what the prediction is checked against, and so is every number of the other resolution.

Only one run that has all of a component's rows counts. Of products it is the newest: rows of an
older commit say what the kernels were. Of the model it is the newest beside fused_int8, so that
factors are of one run (`eval.model_runs`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dit8.eval.deployment import RESOLUTIONS, TEXT_TOKENS, Key, Measured, Times, image_tokens
from dit8.eval.gpus import Gpu
from dit8.eval.model_runs import best_first
from dit8.eval.roofline import Fraction, amount, peak
from dit8.models.flops import (
    ATTENTION,
    BF16_GEMM,
    EAGER_MEMORY,
    IDEOGRAM4,
    INT8_GEMM,
    INT8_PRODUCT,
    MASKED_ATTENTION,
    MEMORY,
    VARIANTS,
    step_work,
)
from dit8.quant.errors import UserError

# what is read of the two tables, and the column of numbers in each
GEMM_COLUMNS = ("run_id", "gpu", "path", "shape", "m", "n", "k", "mode", "p50_ms")
MODEL_COLUMNS = ("run_id", "gpu", "variant", "engine", "resolution", "text_tokens", "quantity")
MODEL_COLUMNS += ("value",)

MODE = "gemm_graph"
PATHS = {BF16_GEMM: "bf16", INT8_GEMM: "dit8", INT8_PRODUCT: "int_mm"}  # unit -> path of gemm.csv
CALIBRATED_AT = RESOLUTIONS[0]
# ours -> variant and engine of model.csv, whose variant int8 is another: it dequantizes first
MEASURED_AS = {
    "bf16_stock": ("bf16", "stock"),
    "bf16": ("bf16", "dit8"),
    "fused_int8": ("fused_int8", "dit8"),
    "rotated": ("rotated", "dit8"),
}
ELEMENTWISE = ("ms_norms", "ms_rope", "ms_swiglu", "ms_quantize")
# unit -> ours whose breakdown gives it, and the quantities that hold its time
BREAKDOWNS = {
    ATTENTION: ("bf16", ("ms_attention",)),
    MASKED_ATTENTION: ("bf16_stock", ("ms_attention",)),
    MEMORY: ("fused_int8", ELEMENTWISE),
    # eager additions, products and copies carry no name that says what they are for
    EAGER_MEMORY: ("bf16_stock", (*ELEMENTWISE, "ms_other")),
}


@dataclass(frozen=True)
class Bench:
    """The rows that were measured on one GPU; either table may be empty."""

    gemm: pd.DataFrame
    model: pd.DataFrame


def load_bench(folder: str | Path, gpu: Gpu) -> Bench:
    """Read gemm.csv and model.csv of a folder; a table that is not there yet is empty.

    Args:
        folder: results/bench.
        gpu: kept are rows whose device name contains its `gpu`, whatever case and spaces.

    Raises:
        UserError: a table lacks a column, or a number is none, negative or infinite.
    """
    tables = (
        _read(Path(folder) / "gemm.csv", GEMM_COLUMNS),
        _read(Path(folder) / "model.csv", MODEL_COLUMNS),
    )
    names = (table["gpu"].astype(str).str.lower().str.replace(" ", "") for table in tables)
    kept = (name.str.contains(gpu.gpu, regex=False) for name in names)
    return Bench(*(table[rows] for table, rows in zip(tables, kept, strict=True)))


def calibrate(bench: Bench, gpu: Gpu) -> list[Fraction]:
    """Return the fraction of every unit, None where the rows it takes are not there.

    Args:
        bench: of `load_bench` for the same GPU.
        gpu: whose peaks the fractions are of.
    """
    fractions = [_product_fraction(bench.gemm, gpu, unit, path) for unit, path in PATHS.items()]
    for unit, (variant, components) in BREAKDOWNS.items():
        basis = f"model.csv: {' + '.join(components)} of {variant} at {CALIBRATED_AT}"
        spent_ms = sum(_best(bench.model, variant, CALIBRATED_AT, components) or ())
        works = step_work(VARIANTS[variant], image_tokens(CALIBRATED_AT), TEXT_TOKENS)
        done = sum(amount(work) for work in works if work.unit == unit)
        value = done / (spent_ms / 1e3) / peak(gpu, unit) if spent_ms else None
        fractions.append(Fraction(unit, value, basis))
    return fractions


def measured(bench: Bench, gpu: Gpu) -> dict[Key, Measured]:
    """Return what was measured of whole steps, images and their memory."""
    found = {}
    for variant in MEASURED_AS:
        for resolution in RESOLUTIONS:
            step_ms, image_s, peak_bytes = (
                (_best(bench.model, variant, resolution, (name,)) or [None])[0]
                for name in ("cfg_step_ms", "image_s", "peak_bytes")
            )
            peak_gb = None if peak_bytes is None else peak_bytes / 1e9
            found[gpu.gpu, variant, resolution] = Measured(Times(step_ms, image_s), peak_gb)
    return found


def known(fractions: Sequence[Fraction]) -> Mapping[str, float]:
    """Return the fractions that were measured, by unit."""
    return {found.unit: found.value for found in fractions if found.value is not None}


def _product_fraction(gemm: pd.DataFrame, gpu: Gpu, unit: str, path: str) -> Fraction:
    rows = {image_tokens(CALIBRATED_AT), image_tokens(CALIBRATED_AT) + TEXT_TOKENS}
    wanted = {(shape, m) for shape in IDEOGRAM4.block_linears for m in rows}
    mine = gemm[(gemm["path"] == path) & (gemm["mode"] == MODE) & gemm["m"].isin(rows)]
    mine = mine[mine["shape"].isin(IDEOGRAM4.block_linears)]
    basis = f"gemm.csv: path {path}, M {' and '.join(map(str, sorted(rows)))}, CUDA graphs"
    for _, run in sorted(mine.groupby("run_id"), key=lambda item: item[0], reverse=True):
        if set(zip(run["shape"], run["m"], strict=True)) >= wanted:
            done = float((2.0 * run["m"] * run["n"] * run["k"]).sum())
            return Fraction(unit, done / (run["p50_ms"].sum() / 1e3) / peak(gpu, unit), basis)
    return Fraction(unit, None, basis)


def _best(
    model: pd.DataFrame, ours: str, resolution: int, quantities: Sequence[str]
) -> list[float] | None:
    """Return quantities of the best run that has all of them, see `eval.model_runs`."""
    variant, engine = MEASURED_AS[ours]
    model = model[model["text_tokens"] == TEXT_TOKENS]
    mine = model[
        (model["variant"] == variant)
        & (model["engine"] == engine)
        & (model["resolution"] == resolution)
    ]
    for run in best_first(mine["run_id"], model, resolution):
        values = mine[mine["run_id"] == run].set_index("quantity")["value"]
        if set(quantities) <= set(values.index):
            return [float(values[name]) for name in quantities]
    return None


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read some columns of a table; the last one holds its numbers."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"load_bench: {path} must be a readable CSV, got {type(error).__name__}; restore it"
        ) from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(
            f"load_bench: {path} must have the columns {', '.join(columns)}, got none named "
            f"{', '.join(missing)}; restore it"
        )
    numbers = pd.to_numeric(table[columns[-1]], errors="coerce")
    bad = table[~((numbers >= 0) & (numbers < math.inf))]
    if len(bad):
        raise UserError(
            f"load_bench: {path} must have a finite {columns[-1]} of at least 0 in every row, got "
            f"{bad[columns[-1]].iloc[0]} in {bad['run_id'].iloc[0]}; measure it again"
        )
    return table[list(columns)]
