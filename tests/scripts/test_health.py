import math

import pytest
import torch

from dit8.quant.errors import UserError
from dit8.scripts.health import (
    EXPECTED,
    FRACTION,
    check_health,
    cuda_bf16_tflops,
    expected_tflops,
    sustained_tflops,
)


def test_known_cards_have_measured_rates():
    assert expected_tflops("NVIDIA H200") == 769.0
    assert expected_tflops("NVIDIA GeForce RTX 3090") == 65.5
    assert all(entry.source for entry in EXPECTED.values())


def test_the_user_may_say_the_rate():
    assert expected_tflops("NVIDIA H200", 700.0) == 700.0
    assert expected_tflops("Unheard Of", 12.0) == 12.0


def test_an_unknown_card_is_one_sentence():
    pattern = "no bf16 rate is known for 'NVIDIA B200', .* with --expected-tflops"
    with pytest.raises(UserError, match=pattern):
        expected_tflops("NVIDIA B200")


@pytest.mark.parametrize("told", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_is_positive(told):
    with pytest.raises(UserError, match="expected-tflops must be a positive rate in TFLOPS, got"):
        expected_tflops("NVIDIA H200", told)


def test_the_throttled_card_of_the_paper_is_refused():
    with pytest.raises(UserError, match=r"3090 reached 8.1 bf16 TFLOPS before .* least 52.4 \(80%"):
        check_health(8.1, 65.5, "3090", "before")
    check_health(65.5, 65.5, "3090", "before")


def test_the_bound_itself_passes_and_nan_does_not():
    check_health(FRACTION * 100, 100, "card", "after")
    with pytest.raises(UserError, match="after the measurements"):
        check_health(FRACTION * 100 - 0.1, 100, "card", "after")
    with pytest.raises(UserError, match="nan bf16 TFLOPS"):
        check_health(math.nan, 100, "card", "after")


def test_the_rate_is_that_of_the_warm_card():
    """A card that starts at a sixth of its speed must not be judged by its start."""
    clock, calls = [0.0], []

    def run_ms(count):
        ms = sum(6.0 if clock[0] + i < 100 else 1.0 for i in range(count))
        clock[0] += count
        calls.append((count, ms))
        return ms

    # 2 * 1000^3 operations in 1 ms
    assert sustained_tflops(run_ms, size=1000) == pytest.approx(2.0)
    assert calls[-1][1] == pytest.approx(1000, rel=0.2)


@pytest.mark.gpu
def test_a_gpu_has_a_rate():
    assert cuda_bf16_tflops(torch.device("cuda")) > 1
