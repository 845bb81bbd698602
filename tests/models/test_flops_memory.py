"""Counted sizes against the files that the converter wrote."""

from pathlib import Path

import pandas as pd
import pytest

from dit8.models.flops import CONTEXT_BYTES, VARIANTS, activation_bytes, needed_bytes, weight_bytes

ROOT = Path(__file__).resolve().parents[2]


def converted() -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / "convert" / "convert.csv").set_index("target")


def test_int8_weights_are_as_large_as_the_file():
    size = converted().loc["smoothquant", "size_bytes"]  # 17 + 17 protected
    # norms, biases and the header are what is missing
    assert weight_bytes(VARIANTS["fused_int8"]) == pytest.approx(size, rel=1e-3)
    assert weight_bytes(VARIANTS["fused_int8"]) < size
    assert weight_bytes(VARIANTS["int8_unfused"]) == weight_bytes(VARIANTS["fused_int8"])


def test_bf16_weights_are_two_bytes_each():
    weights = converted().loc["smoothquant", "weights"]
    assert weight_bytes(VARIANTS["bf16"]) == pytest.approx(2 * weights, rel=1e-3)
    assert weight_bytes(VARIANTS["bf16_stock"]) == weight_bytes(VARIANTS["bf16"])


def test_nothing_kept_saves_a_byte_a_weight():
    saved = weight_bytes(VARIANTS["fused_int8"]) - weight_bytes(VARIANTS["rotated"])
    assert saved == 2 * 17 * (4608 * 12288 - 4 * 4608)  # less the scales


def test_activations_by_hand():
    features = 300 * (53248 + 4608) * 2
    # residual and its norm in bf16, w1 | w3 and their gated product in bf16
    bf16 = 4396 * (2 * 4608 + 3 * 12288) * 2 + features
    assert activation_bytes(VARIANTS["bf16"], 4096, 300) == bf16
    fused = 4396 * (3 * 4608 + 3 * 12288) + features
    assert activation_bytes(VARIANTS["fused_int8"], 4096, 300) == fused
    unfused = 4396 * (3 * 4608 + 2 * 6 * 12288) + features
    assert activation_bytes(VARIANTS["int8_unfused"], 4096, 300) == unfused
    stock = 6144 * (53248 * 12 + 2 * 4608)
    assert activation_bytes(VARIANTS["bf16_stock"], 4096, 300) == stock


def test_what_is_needed_adds_up():
    how = VARIANTS["rotated"]
    parts = weight_bytes(how) + activation_bytes(how, 2304, 300) + CONTEXT_BYTES
    assert needed_bytes(how, 2304, 300) == parts
    assert needed_bytes(how, 2304, 300) < 24e9 < needed_bytes(VARIANTS["bf16"], 2304, 300)
