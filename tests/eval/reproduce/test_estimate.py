"""eval/reproduce/estimate.py: every formula by hand, and nothing where no row says it."""

import json
from pathlib import Path

import pytest

from dit8.eval.gpus import load_peaks
from dit8.eval.ledger import LATENCY, upsert
from dit8.eval.reproduce.estimate import (
    CALIBRATION_TFLOPS,
    calibration_seconds,
    conversion,
    duration,
    fits,
    gpu_key,
    load_measurements,
    picture_bytes,
    picture_rate,
)
from dit8.models.artifacts import PLAN_TFLOPS
from dit8.quant.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
GPUS = load_peaks(ROOT / "conf" / "gpus" / "peaks.csv")
RUN = {"run_id": "0" * 12, "model": "mini", "recipe": "none", "dtype": "float32"}
RUN |= {"prompt_set": "mini_hard", "stage": "image", "n": 3, "p20_ms": 1.0, "p80_ms": 1.0}


def latency(variant, engine, backend, p50):
    return RUN | {"variant": variant, "engine": engine, "backend": backend, "p50_ms": p50}


@pytest.fixture
def results(tmp_path):
    demo = [latency("bf16", "stock", "torch-cpu", 1000.0)]
    demo += [latency("fused_int8", "stock", "cpu-reference", 3000.0) | {"run_id": "1" * 12}]
    upsert(tmp_path / "demo" / "latency.csv", LATENCY, demo)
    rows = [latency("bf16", "stock", "torch-cuda", 10.0)]
    rows += [latency("bf16", "dit8", "torch-cuda", 70) | {"run_id": "1" * 12}]
    upsert(tmp_path / "latency.csv", LATENCY, rows)
    (tmp_path / "runs").mkdir()
    record = {"hardware": {"gpu": "NVIDIA H200"}}
    for digit in "01":
        (tmp_path / "runs" / f"{digit * 12}.json").write_text(json.dumps(record))
    for folder in ("bench", "convert", "paper"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bench" / "model.csv").write_text(
        "gpu,variant,engine,resolution,quantity,value\n"
        "NVIDIA H200,fp8,dit8,1024,cfg_step_ms,500\n"
        "NVIDIA H200,int8,dit8,1024,peak_bytes,24900000000\n"
        "NVIDIA H200,fp8,dit8,1024,peak_bytes,21000000000\n"
        "NVIDIA H200,fp8,dit8,1024,ms_rope,1\n"
    )
    (tmp_path / "convert" / "convert.csv").write_text(
        "target,branches,weights,seconds,size_bytes\n"
        "smoothquant,2,1000,80,2000\nq4_k,2,250,50,100\n"
    )
    (tmp_path / "paper" / "speed.csv").write_text(
        "gpu,variant,quantity,value,low,high,unit\n"
        "rtx3090,fp8,image_s_1024,172.8,,,s\n"
        "rtx3090,int8,image_s_1024,,184,185,s\n"
        "rtx3090,fp8,gpus_1024,2,,,GPUs\n"
    )
    return tmp_path


def rate(results, *given):
    found = picture_rate(load_measurements(results, GPUS), *given)
    return None if found is None else found.seconds


def test_a_picture_of_the_mini_costs_what_was_measured_there(results):
    assert rate(results, "mini", "bf16", "stock", 20, 256, "cpu") == 1.0
    assert rate(results, "mini", "bf16", "stock", 10, 256, "cpu") == 0.5  # by steps
    # nobody timed nf4: the slowest one that was timed
    assert rate(results, "mini", "nf4", "stock", 20, 256, "cpu") == 3.0
    # two runs of one variant: the slower one
    assert rate(results, "mini", "bf16", "stock", 20, 256, "h200") == pytest.approx(0.07)
    assert rate(results, "mini", "bf16", "stock", 20, 256, "rtx3090") is None


def test_a_picture_of_the_real_model_is_measured_else_reported_else_unknown(results):
    assert rate(results, "ideogram4", "fp8", "dit8", 48, 1024, "h200") == 24.0
    assert rate(results, "ideogram4", "fp8", "dit8", 48, 1024, "rtx3090") == pytest.approx(172.8)
    assert rate(results, "ideogram4", "fp8", "dit8", 12, 1024, "rtx3090") == pytest.approx(43.2)
    assert rate(results, "ideogram4", "int8", "dit8", 48, 1024, "rtx3090") == pytest.approx(185.0)
    for given in (("fp8", 768, "rtx3090"), ("q8_0", 1024, "rtx3090"), ("fp8", 1024, "a100")):
        variant, size, gpu = given
        assert rate(results, "ideogram4", variant, "dit8", 48, size, gpu) is None


def test_a_card_is_known_by_its_drivers_name():
    assert gpu_key("NVIDIA GeForce RTX 3090", GPUS) == "rtx3090"
    assert gpu_key("NVIDIA H200", GPUS) == "h200"
    assert gpu_key("NVIDIA A100-SXM4-80GB", GPUS) == "a100"
    for other in ("NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D", "Tesla T4"):
        assert gpu_key(other, GPUS) is None


def test_a_variant_that_exceeds_a_card_is_known_by_its_measured_peak(results):
    known = load_measurements(results, GPUS)
    assert fits(known, "int8", 24.0) == pytest.approx(24.9)
    assert fits(known, "int8", 25.5) is None
    assert fits(known, "fp8", 21.4) == pytest.approx(21.0)  # 0.5 GB are CUDA's own
    assert fits(known, "nf4", 1.0) is None  # never measured


def test_conversions_by_weights_by_recipe_and_by_bits(results):
    known = load_measurements(results, GPUS)
    assert conversion(known, "q4_k", "q4_k") == (200.0, 400.0)  # a quarter of the weights
    assert conversion(known, "ladder_2", "w8a8") == (80.0, 2000.0)
    seconds, size = conversion(known, "nf4", "nf4")
    # facts of the published file: 10.4 GB
    assert seconds is None and size == pytest.approx(10.4e9, rel=0.01)


def test_calibration_is_what_its_script_plans_with():
    assert CALIBRATION_TFLOPS == PLAN_TFLOPS
    # 2 x 9.28 G weights x (2 x 4096 + 2048) tokens x 20 steps x 64 prompts / 30 TFLOPS
    assert calibration_seconds("rtx3090") == pytest.approx(8109, rel=1e-3)
    assert calibration_seconds("h200") is None


def test_a_picture_on_disk_is_bounded_by_its_pixels():
    assert picture_bytes(1024) == 3 * 1024**2 + 4 * 128 * 64**2


def test_no_committed_row_no_estimate(tmp_path):
    known = load_measurements(tmp_path, GPUS)
    assert picture_rate(known, "mini", "bf16", "stock", 20, 256, "cpu") is None
    assert conversion(known, "smoothquant", "w8a8")[0] is None


def test_a_table_of_other_columns_is_named(results):
    (results / "paper" / "speed.csv").write_text("gpu,variant\n")
    with pytest.raises(UserError, match=r"speed.csv must have the columns .* got none called qua"):
        load_measurements(results, GPUS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "no estimate"), (0.0, "0 s"), (98.2, "99 s"), (101.0, "2 min"), (7200.0, "2.0 h")],
)
def test_durations_are_rounded_up(seconds, text):
    assert duration(seconds) == text
