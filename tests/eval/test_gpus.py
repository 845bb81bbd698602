"""The table of peaks: what it must hold, and what is refused."""

from pathlib import Path

import pytest

from dit8.eval.gpus import load_peaks, load_reported
from dit8.models.flops import VARIANTS
from dit8.quant.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "gpus"
PEAKS, REPORTED = FOLDER / "peaks.csv", FOLDER / "reported.csv"


def test_every_gpu_has_its_peaks_and_its_documents():
    gpus = {gpu.gpu: gpu for gpu in load_peaks(PEAKS)}
    wanted = {"rtx3090", "rtx4090", "a100", "l40s", "h100", "h200", "b200", "rtx5090"}
    assert wanted <= set(gpus)
    for gpu in gpus.values():
        assert len(gpu.source) > 15 and "://" not in gpu.source + (gpu.note or "")
    h200 = gpus["h200"]
    assert (h200.bf16_tflops, h200.int8_tops, h200.memory_gb_s) == (989.5, 1979, 4800)
    assert gpus["rtx3090"].fp8_tflops is None and gpus["l40s"].l2_mb is None


@pytest.mark.parametrize("name, factor", [("rtx3090", 4), ("rtx4090", 4), ("rtx5090", 4)])
def test_geforce_halves_bf16_but_not_int8(name, factor):
    gpu = {gpu.gpu: gpu for gpu in load_peaks(PEAKS)}[name]
    assert gpu.int8_tops / gpu.bf16_tflops == pytest.approx(factor, rel=1e-3)


def test_data_center_cards_double_except_where_int8_was_cut():
    gpus = {gpu.gpu: gpu for gpu in load_peaks(PEAKS)}
    for name in ("a100", "l40s", "h100", "h200", "b200"):
        assert gpus[name].int8_tops / gpus[name].bf16_tflops == pytest.approx(2, rel=0.02)
    assert gpus["b300"].int8_tops < 0.1 * gpus["b300"].bf16_tflops
    assert [gpu.gpu for gpu in gpus.values() if not gpu.reachable] == ["b200"]


def test_reports_name_known_gpus_and_variants():
    gpus = {gpu.gpu for gpu in load_peaks(PEAKS)}
    reported = load_reported(REPORTED)
    assert all(gpu in gpus and variant in VARIANTS for gpu, variant, _ in reported)
    figure, source = reported["rtx3090", "fused_int8", 1024]
    assert figure.startswith("156.5 s/image") and source.startswith("arXiv")


def change(tmp_path: Path, file: Path, old: str, new: str) -> Path:
    text = file.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / file.name
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("gpu,name,sm", "gpu,label,sm", "must have the columns gpu, name, sm.*got gpu, label"),
        (",989.5,1979,1979,4800", ",fast,1979,1979,4800", "bf16_tflops of h200, got 'fast'"),
        (",989.5,1979,1979,4800", ",,1979,1979,4800", "bf16_tflops of h200, got ''"),
        (",989.5,1979,1979,4800", ",inf,1979,1979,4800", "bf16_tflops of h200, got 'inf'"),
        (",989.5,1979,1979,4800", ",-1,1979,1979,4800", "bf16_tflops of h200, got '-1'"),
        ('"NVIDIA L40S, datasheet"', "", "source of l40s, got ''"),
        ("h200,H200", "h100,H200", "one row for each GPU, got rtx3090.*h100, h100"),
    ],
)
def test_a_wrong_table_of_peaks_is_refused(tmp_path, old, new, message):
    with pytest.raises(UserError, match=f"load_peaks: .*{message}"):
        load_peaks(change(tmp_path, PEAKS, old, new))


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(UserError, match="load_peaks: .*none.csv must be a readable CSV, got FileN"):
        load_peaks(tmp_path / "none.csv")
    with pytest.raises(UserError, match="load_reported: .*none.csv must be a readable CSV"):
        load_reported(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "old, new", [("fused_int8,768", "fused_int8,large"), ('"arXiv 2606.12280, 2606.14598"', "")]
)
def test_a_report_without_resolution_or_source_is_refused(tmp_path, old, new):
    with pytest.raises(UserError, match="load_reported: .*a resolution and a source in every row"):
        load_reported(change(tmp_path, REPORTED, old, new))
