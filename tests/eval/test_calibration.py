"""Fractions that were put into made-up rows come out of them again."""

from pathlib import Path

import pandas as pd
import pytest

from dit8.eval.calibration import (
    BREAKDOWNS,
    MEASURED_AS,
    PATHS,
    calibrate,
    known,
    load_bench,
    measured,
)
from dit8.eval.deployment import Measured, lay_out
from dit8.eval.gpus import Gpu, load_peaks
from dit8.models.flops import (
    ATTENTION,
    BF16_GEMM,
    EAGER_MEMORY,
    IDEOGRAM4,
    INT8_GEMM,
    INT8_PRODUCT,
    MASKED_ATTENTION,
    MEMORY,
    UNITS,
    VARIANTS,
    step_work,
)
from dit8.quant.errors import UserError

FRACTIONS = {
    BF16_GEMM: 0.8,
    INT8_GEMM: 0.6,
    INT8_PRODUCT: 0.5,
    ATTENTION: 0.55,
    MASKED_ATTENTION: 0.3,
    MEMORY: 0.75,
    EAGER_MEMORY: 0.7,
}
PEAKS = Path(__file__).resolve().parents[2] / "conf" / "gpus" / "peaks.csv"
NEW, OLD = "20261122-101010-abcdef0-nvidia_h200", "20261121-101010-abcdef0-nvidia_h200"
GPU = "NVIDIA H200"


@pytest.fixture(scope="module")
def card() -> Gpu:
    return {gpu.gpu: gpu for gpu in load_peaks(PEAKS)}["h200"]


def gemm_rows(run: str = NEW, fractions=FRACTIONS, gpu: str = GPU) -> list[dict]:
    peaks = {BF16_GEMM: 989.5e12, INT8_GEMM: 1979e12, INT8_PRODUCT: 1979e12}
    return [
        {"run_id": run, "gpu": gpu, "path": path, "shape": shape, "m": m, "n": n, "k": k}
        | {"mode": "gemm_graph", "p50_ms": 2e3 * m * n * k / (peaks[unit] * fractions[unit])}
        for unit, path in PATHS.items()
        for shape, (n, k) in IDEOGRAM4.block_linears.items()
        for m in (4096, 4396)
    ]


def model_rows(run: str = NEW, gpu: str = GPU, **quantities: float) -> list[dict]:
    """Rows of every path; the breakdown's time lies in its last component."""
    peaks = {ATTENTION: 989.5e12, MASKED_ATTENTION: 989.5e12, MEMORY: 4.8e12, EAGER_MEMORY: 4.8e12}
    found = []
    for ours, (variant, engine) in MEASURED_AS.items():
        values = dict(quantities)
        for unit, (source, components) in BREAKDOWNS.items():
            if source == ours:
                works = [w for w in step_work(VARIANTS[ours], 4096, 300) if w.unit == unit]
                moves = unit in (MEMORY, EAGER_MEMORY)
                done = sum(work.bytes if moves else work.flops for work in works)
                values |= dict.fromkeys(components[:-1], 0.0)
                values[components[-1]] = 1e3 * done / (peaks[unit] * FRACTIONS[unit])
        found += [
            {"run_id": run, "gpu": gpu, "variant": variant, "engine": engine, "resolution": 1024}
            | {"text_tokens": 300, "quantity": quantity, "value": value}
            for quantity, value in values.items()
        ]
    return found


def write(folder: Path, gemm: list[dict], model: list[dict]) -> Path:
    if gemm:
        pd.DataFrame(gemm).to_csv(folder / "gemm.csv", index=False)
    if model:
        pd.DataFrame(model).to_csv(folder / "model.csv", index=False)
    return folder


def test_fractions_come_back(tmp_path, card):
    bench = load_bench(write(tmp_path, gemm_rows(), model_rows()), card)
    found = calibrate(bench, card)
    assert {fraction.unit for fraction in found} == set(UNITS)
    assert known(found) == pytest.approx(FRACTIONS)


def test_without_rows_nothing_is_known(tmp_path, card):
    bench = load_bench(tmp_path, card)
    found = calibrate(bench, card)
    assert {fraction.unit for fraction in found} == set(UNITS)
    assert known(found) == {}
    assert set(measured(bench, card).values()) == {Measured()}


def test_rows_of_another_card_do_not_count(tmp_path, card):
    folder = write(tmp_path, gemm_rows(gpu="NVIDIA H100"), model_rows(gpu="NVIDIA H100"))
    assert known(calibrate(load_bench(folder, card), card)) == {}
    peaks = {gpu.gpu: gpu for gpu in load_peaks(PEAKS)}
    rows = gemm_rows(gpu="NVIDIA GeForce RTX 4090")
    assert len(load_bench(write(tmp_path, rows, []), peaks["rtx4090"]).gemm) == len(rows)


def test_the_newest_run_that_is_whole_counts(tmp_path, card):
    slow = {unit: value / 2 for unit, value in FRACTIONS.items()}
    both = gemm_rows(OLD, slow) + gemm_rows(NEW)
    found = known(calibrate(load_bench(write(tmp_path, both, []), card), card))
    assert found[INT8_GEMM] == pytest.approx(FRACTIONS[INT8_GEMM])
    part = [row for row in gemm_rows(NEW) if (row["shape"], row["m"]) != ("qkv", 4396)]
    found = known(
        calibrate(load_bench(write(tmp_path, gemm_rows(OLD, slow) + part, []), card), card)
    )
    assert found[INT8_GEMM] == pytest.approx(slow[INT8_GEMM])


def test_eager_rows_and_other_sizes_do_not_count(tmp_path, card):
    eager = [row | {"mode": "gemm_eager"} for row in gemm_rows()]
    assert known(calibrate(load_bench(write(tmp_path, eager, []), card), card)) == {}
    other = [row | {"m": 17} for row in gemm_rows()] + gemm_rows()
    found = known(calibrate(load_bench(write(tmp_path, other, []), card), card))
    assert found[BF16_GEMM] == pytest.approx(FRACTIONS[BF16_GEMM])


def test_a_breakdown_is_of_one_run(tmp_path, card):
    """Half of the components in a newer run do not mix with the other half of an older one."""
    newer = [row for row in model_rows(NEW) if row["quantity"] == "ms_norms"]
    found = calibrate(load_bench(write(tmp_path, [], model_rows(OLD) + newer), card), card)
    assert known(found)[MEMORY] == pytest.approx(FRACTIONS[MEMORY])


def test_whole_steps_are_measured_and_not_fitted(tmp_path, card):
    rows = model_rows(OLD, cfg_step_ms=9.0) + model_rows(
        NEW, cfg_step_ms=170.0, image_s=8.2, peak_bytes=22.0e9
    )
    bench = load_bench(write(tmp_path, gemm_rows(), rows), card)
    cell = measured(bench, card)["h200", "fused_int8", 1024]
    assert (cell.times.step_ms, cell.times.image_s, cell.peak_gb) == (170, 8.2, 22)
    assert measured(bench, card)["h200", "fused_int8", 768].times.step_ms is None
    assert known(calibrate(bench, card)) == pytest.approx(FRACTIONS)
    cells = lay_out([card], known(calibrate(bench, card)), measured(bench, card), {})
    assert all(cell.predicted.step_ms not in (None, 170.0) for cell in cells)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"p50_ms": float("nan")}, "a finite p50_ms of at least 0 in every row, got nan in 2026"),
        ({"p50_ms": -1.0}, "a finite p50_ms of at least 0 in every row, got -1.0 in 2026"),
        ({"p50_ms": "quick"}, "a finite p50_ms of at least 0 in every row, got quick in 2026"),
    ],
)
def test_a_wrong_number_is_refused(tmp_path, card, change, message):
    rows = gemm_rows()
    rows[0] = rows[0] | change
    with pytest.raises(UserError, match=f"load_bench: .*gemm.csv must have {message}"):
        load_bench(write(tmp_path, rows, []), card)


def test_a_missing_column_or_an_unreadable_table_is_refused(tmp_path, card):
    rows = [{k: v for k, v in row.items() if k != "engine"} for row in model_rows()]
    with pytest.raises(UserError, match="model.csv must have the columns .*got none named engine"):
        load_bench(write(tmp_path, [], rows), card)
    (tmp_path / "gemm.csv").write_text("")
    with pytest.raises(UserError, match="gemm.csv must be a readable CSV, got EmptyDataError"):
        load_bench(tmp_path, card)
