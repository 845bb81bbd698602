"""The map on the committed peaks: relations that must hold whatever the fractions are."""

from dataclasses import replace
from pathlib import Path

import pytest

from dit8.eval.deployment import (
    RESOLUTIONS,
    STEPS,
    TEXT_TOKENS,
    UNKNOWN,
    Measured,
    Times,
    gains,
    image_tokens,
    lay_out,
)
from dit8.eval.deployment_table import COLUMNS, MEANS, MISSING, render_csv, render_markdown
from dit8.eval.gpus import load_peaks, load_reported
from dit8.eval.roofline import ROOF, Fraction, time_ms
from dit8.models.flops import BF16_GEMM, INT8_GEMM, UNITS, VARIANTS, image_work, step_work

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "gpus"
GPUS = load_peaks(FOLDER / "peaks.csv")
REPORTED = load_reported(FOLDER / "reported.csv")
CARD = {gpu.gpu: gpu for gpu in GPUS}["h200"]
RATES = dict.fromkeys(UNITS, 0.6)


def index(cells) -> dict:
    return {(cell.gpu, cell.variant, cell.resolution): cell for cell in cells}


def page(rates=None, measured=None, gpus=GPUS) -> tuple[str, str]:
    """Lay out and render both tables."""
    rates, measured = rates or {}, measured or {}
    cells = lay_out(gpus, rates, measured, REPORTED)
    found = [Fraction(unit, rates.get(unit), "rows") for unit in UNITS]
    listed = list(gains(cells, gpus, rates))
    return render_markdown(gpus, found, cells, listed, CARD), render_csv(cells, gpus)


def test_every_gpu_variant_and_resolution_has_a_cell():
    cells = index(lay_out(GPUS, {}, {}, REPORTED))
    assert len(cells) == len(GPUS) * len(VARIANTS) * len(RESOLUTIONS)
    assert [image_tokens(resolution) for resolution in RESOLUTIONS] == [4096, 2304]
    assert cells["rtx3090", "fused_int8", 1024].reported.startswith("156.5 s/image")
    assert cells["h100", "fused_int8", 1024].reported is None
    assert {cell.predicted for cell in cells.values()} == {UNKNOWN}


def test_an_image_is_its_steps_and_the_text_projection():
    cell = index(lay_out([CARD], {}, {}, {}))["h200", "fused_int8", 1024]
    how = VARIANTS["fused_int8"]
    step = time_ms(step_work(how, 4096, TEXT_TOKENS), CARD, ROOF)
    once = time_ms(image_work(how, TEXT_TOKENS), CARD, ROOF)
    assert once > 0 and cell.roofline == Times(step, (STEPS * step + once) / 1e3)


def test_nothing_is_faster_than_the_roofline():
    for cell in lay_out(GPUS, RATES, {}, {}):
        assert cell.predicted.step_ms == pytest.approx(cell.roofline.step_ms / 0.6)


def test_one_unknown_fraction_leaves_only_its_variants_unknown():
    rates = {unit: rate for unit, rate in RATES.items() if unit != INT8_GEMM}
    cells = index(lay_out([CARD], rates, {}, {}))
    unknown = {variant for (_, variant, _), cell in cells.items() if cell.predicted == UNKNOWN}
    assert unknown == {"fused_int8", "rotated"}


def test_memory_decides_what_fits():
    cells = index(lay_out(GPUS, {}, {}, {}))
    for name in ("rtx3090", "rtx4090"):
        fits = {v for v in VARIANTS if cells[name, v, 1024].fits}
        assert fits == {"int8_unfused", "fused_int8", "rotated"}
    assert cells["l40s", "bf16", 1024].fits and cells["h100", "bf16_stock", 1024].fits
    assert not cells["rtx5090", "bf16", 768].fits


def test_gains_compare_int8_with_bf16_of_the_same_engine():
    measured = {
        ("h200", "bf16", 1024): Measured(Times(240.0, None)),
        ("h200", "fused_int8", 1024): Measured(Times(160.0, None)),
        ("h200", "bf16_stock", 1024): Measured(Times(600.0, None)),
    }
    cells = lay_out(GPUS, RATES, measured, {})
    found = {(gain.gpu, gain.resolution): gain for gain in gains(cells, GPUS, RATES)}
    assert found["h200", 1024].measured == 1.5
    assert found["h200", 768].measured is None and found["h100", 1024].measured is None
    known = index(cells)
    base, best = (known["a100", v, 768].predicted.image_s for v in ("bf16", "fused_int8"))
    assert found["a100", 768].predicted == base / best
    # GeForce: int8 at four times bf16; B300: cut to a fifteenth of it
    assert found["rtx3090", 1024].roofline > 2 > found["h200", 1024].roofline > 1
    assert found["b300", 1024].roofline < 1 < found["b300", 1024].break_even


def test_the_fraction_that_breaks_even_does():
    (gain,) = [
        g for g in gains(lay_out([CARD], RATES, {}, {}), [CARD], RATES) if g.resolution == 768
    ]
    cells = index(lay_out([CARD], RATES | {INT8_GEMM: gain.break_even}, {}, {}))
    both = [cells["h200", name, 768].predicted.step_ms for name in ("bf16", "fused_int8")]
    assert both[0] == pytest.approx(both[1])


def test_the_kinds_of_figure_have_columns_of_their_own():
    measured = {("h200", "bf16", 1024): Measured(Times(240.0, 11.5), 39.0)}
    _, text = page(RATES, measured)
    lines = [line.split(",") for line in text.splitlines() if '"' not in line]
    assert tuple(lines[0]) == COLUMNS
    rows = {tuple(line[:3]): dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]}
    own = rows["h200", "bf16", "1024"]
    assert (own["measured_step_ms"], own["measured_image_s"]) == ("240", "11.5")
    assert own["measured_peak_gb"] == "39.00" and own["predicted_step_ms"] not in ("", "240")
    assert rows["h100", "bf16", "1024"]["measured_step_ms"] == ""
    assert rows["h100", "bf16", "1024"]["reported"] == ""


def test_without_measurements_the_page_says_so_and_how_to_measure():
    text, table = page()
    assert "Nothing to check yet: whole steps are not measured." in text
    assert "`python scripts/bench_gemm.py` and `python scripts/bench_model.py` fill in" in text
    assert "\nPredicted, 1024" not in text and "Roofline, 1024 x 1024" in text
    assert all(f"| {unit} | {MISSING} | rows |" in text for unit in UNITS)
    assert "By the roofline times at 1024" in text
    assert table.count("\n") == 1 + len(GPUS) * len(VARIANTS) * len(RESOLUTIONS)


def test_with_measurements_the_page_predicts_and_checks():
    cells = index(lay_out([CARD], RATES, {}, {}))
    step = cells["h200", "bf16", 1024].predicted.step_ms
    text, _ = page(RATES, {("h200", "bf16", 1024): Measured(Times(step / 1.1, None))})
    assert f"| bf16 | 1024 | {step:.1f} | {step / 1.1:.1f} | +10.0 % |" in text
    assert f"| rotated | 768 | {cells['h200', 'rotated', 768].predicted.step_ms:.1f} |" in text
    assert "Predicted, 768 x 768" in text and "fill in on such a card" not in text
    assert "By the predicted times at 1024" in text


def test_the_verdict_names_winners_losers_and_what_is_out_of_reach():
    text, _ = page(RATES)
    wins, loses, unreached = (
        next(line for line in text.splitlines() if line.startswith(start))
        for start in ("- int8 wins on ", "- it loses on ", "- on B200 (HGX) ")
    )
    assert "GeForce RTX 3090 (2." in wins and "H200 SXM (1." in wins
    assert "B300 (HGX) (0." in loses and "B200" not in wins
    assert "Triton does not emit" in unreached
    poor = [replace(gpu, int8_tops=gpu.bf16_tflops / 2) for gpu in GPUS if gpu.reachable]
    assert "int8 wins on" not in page(RATES, gpus=poor)[0]


def test_every_variant_is_explained_and_every_document_named():
    assert tuple(MEANS) == tuple(VARIANTS)
    text, _ = page(RATES | {BF16_GEMM: 0.8})
    assert all(gpu.source in text for gpu in GPUS)
    assert text == page(RATES | {BF16_GEMM: 0.8})[0]
