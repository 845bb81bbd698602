import math

import pytest

from dit8.eval.noise_floor import NoiseFloor
from dit8.eval.report.data import Measure
from dit8.eval.report.numbers import (
    format_estimate,
    format_floor,
    format_number,
    format_probability,
    format_range,
    format_ratio,
)
from dit8.eval.run import Interval


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.123456, {}, "0.123"),
        (-0.00012345, {}, "−0.000123"),
        (12345.6, {}, "12346"),
        (999.6, {}, "1000"),
        (1e-7, {}, "1e-07"),
        (0, {}, "0"),
        (0, {"signed": True}, "+0"),
        (-0.0004, {"decimals": 3}, "0.000"),  # no minus before a zero
        (-0.0006, {"decimals": 3, "signed": True}, "−0.001"),
        (math.inf, {}, "∞"),
        (-math.inf, {"signed": True}, "−∞"),
    ],
)
def test_numbers(value, options, text):
    assert format_number(value, **options) == text


@pytest.mark.parametrize(
    ("low", "high", "estimate", "range_"),
    [
        (-0.0231, 0.0333, "0.005", "[−0.023, 0.033]"),
        (-3.0, 13.01, "0.0", "[−3.0, 13.0]"),
        (0.004, 0.006, "0.0050", "[0.0040, 0.0060]"),
    ],
)
def test_an_estimate_is_as_precise_as_its_interval(low, high, estimate, range_):
    interval = Interval(0.00501, low, high, 9, "bca")
    assert format_estimate(interval) == estimate
    assert format_range(interval) == range_


def test_a_method_other_than_bca_is_named():
    assert format_range(Interval(0, -1, 1, 9, "newcombe"), signed=True) == "[−1.0, +1.0] newcombe"
    same = Interval(0.25, 0.25, 0.25, 9, "degenerate")
    assert (format_estimate(same), format_range(same)) == ("0.25", "all equal")


@pytest.mark.parametrize(
    ("estimate", "half", "text"),
    [(-0.06, 0.02, "3.0"), (0.0, 0.0, "0"), (0.1, 0.0, "∞")],
)
def test_differences_are_counted_in_noise_floors(estimate, half, text):
    delta = Interval(estimate, -1, 1, 9, "bca")
    floor = NoiseFloor("ocr_ned", "dtype", Interval(0, -half, half, 9, "bca"), 0.1)
    assert format_ratio(delta, floor) == text
    assert format_ratio(delta, None) == ""


def test_the_floor_of_a_relative_score_is_its_mean():
    floor = NoiseFloor("psnr", "dtype", Interval(42.0, 41.0, 43.5, 9, "bca"), 42.0)
    relative = Measure("psnr", "dB", True, (0, 100), "", True)
    paired = Measure("ocr_ned", "", False, (0, 1), "", False)
    assert format_floor(floor, relative) == "42.0"
    assert format_floor(floor, paired) == "±1.25"


def test_small_p_values_are_bounds():
    assert [format_probability(p) for p in (1.0, 0.0271, 0.001, 1e-9)] == [
        *("1", "0.027", "0.001", "< 0.001"),
    ]
