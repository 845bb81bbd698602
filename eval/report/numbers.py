"""Write numbers for readers: an estimate as precise as its interval, and a true minus sign."""

import math

from dit8.eval.noise_floor import NoiseFloor
from dit8.eval.report.data import Measure
from dit8.eval.run import Interval

MINUS = "\N{MINUS SIGN}"
DIGITS = 3
SMALL_P = 1e-3


def format_number(value: float, *, signed: bool = False, decimals: int | None = None) -> str:
    """Return a number with three significant digits, or with that many decimals.

    Args:
        value: infinity becomes ∞.
        signed: with a plus sign, also for zero.
        decimals: behind the point; None: as many as three significant digits need.
    """
    if math.isinf(value):
        text = "∞"
    elif decimals is not None:
        text = f"{abs(value):.{decimals}f}"
    elif abs(value) >= 10**DIGITS - 0.5:
        text = f"{abs(value):.0f}"
    else:
        text = f"{abs(value):.{DIGITS}g}"
    # what is rounded to zero has no sign of its own
    negative = value < 0 and any(digit in text for digit in "123456789∞")
    return (MINUS if negative else "+" if signed else "") + text


def format_estimate(interval: Interval, *, signed: bool = False) -> str:
    """Return the estimate with the decimals of its interval."""
    return format_number(interval.estimate, signed=signed, decimals=_decimals(interval))


def format_range(interval: Interval, *, signed: bool = False) -> str:
    """Return "[low, high]" and the method where it is not BCa; "all equal" where nothing varies."""
    if interval.method == "degenerate":
        return "all equal"
    decimals = _decimals(interval)
    low, high = (
        format_number(end, signed=signed, decimals=decimals)
        for end in (interval.low, interval.high)
    )
    method = "" if interval.method == "bca" else f" {interval.method}"
    return f"[{low}, {high}]{method}"


def format_ratio(delta: Interval, floor: NoiseFloor | None) -> str:
    """Return the absolute difference over the half width of the noise floor, or nothing."""
    if floor is None:
        return ""
    if floor.half_width == 0:
        return "0" if delta.estimate == 0 else "∞"
    return f"{abs(delta.estimate) / floor.half_width:.1f}"


def format_floor(floor: NoiseFloor, measure: Measure) -> str:
    """Return "±half width" of a paired score, the mean of one that compares with the reference."""
    if measure.is_relative:
        return format_estimate(floor.shift)
    return f"±{format_number(floor.half_width)}"


def format_probability(p_value: float) -> str:
    """Return a p-value with two digits, small ones as a bound."""
    return f"< {SMALL_P:g}" if p_value < SMALL_P else f"{p_value:.2g}"


def _decimals(interval: Interval) -> int | None:
    """Return how many decimals show two digits of the half width; None where it is zero."""
    half = (interval.high - interval.low) / 2
    if not half > 0 or math.isinf(half):
        return None
    return max(0, min(6, 1 - math.floor(math.log10(half))))
