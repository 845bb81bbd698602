"""Times by hand for two pieces of work on a card with round numbers."""

import math

import pytest

from dit8.eval.gpus import Gpu
from dit8.eval.roofline import PEAKS, ROOF, break_even, peak, time_ms
from dit8.models.flops import (
    ATTENTION,
    BF16_GEMM,
    EAGER_MEMORY,
    INT8_GEMM,
    INT8_PRODUCT,
    MASKED_ATTENTION,
    MEMORY,
    UNITS,
    Work,
)

CARD = Gpu("card", "Card", 80, 1, "mma.sync", 100, 400, None, 1000, 24, None, "a document", None)


def test_every_unit_has_its_peak():
    assert set(PEAKS) == set(ROOF) == set(UNITS)
    for unit in (BF16_GEMM, ATTENTION, MASKED_ATTENTION):
        assert peak(CARD, unit) == 100e12
    for unit in (INT8_GEMM, INT8_PRODUCT):
        assert peak(CARD, unit) == 400e12
    for unit in (MEMORY, EAGER_MEMORY):
        assert peak(CARD, unit) == 1000e9


def test_the_slower_of_arithmetic_and_memory_counts():
    bound = Work("bound", BF16_GEMM, 100e9, 1e9)  # 1 ms of either
    assert time_ms([bound], CARD, ROOF) == pytest.approx(1)
    halved = ROOF | {BF16_GEMM: 0.5}
    assert time_ms([bound], CARD, halved) == pytest.approx(2)
    assert time_ms([bound], CARD, ROOF | {MEMORY: 0.25}) == pytest.approx(4)
    assert time_ms([bound], CARD, {BF16_GEMM: 0.5}) == pytest.approx(2)  # whole bandwidth


def test_components_add_up_and_movers_have_fractions_of_their_own():
    works = [Work("a", MEMORY, 0, 1e9), Work("b", EAGER_MEMORY, 7, 3e9)]
    assert time_ms(works, CARD, ROOF) == pytest.approx(4)
    assert time_ms(works, CARD, {MEMORY: 0.5, EAGER_MEMORY: 0.25}) == pytest.approx(2 + 12)
    assert time_ms([], CARD, {}) == 0


def test_an_unknown_fraction_makes_the_time_unknown():
    works = [Work("a", MEMORY, 0, 1e9), Work("b", ATTENTION, 1e9, 0)]
    assert time_ms(works, CARD, {MEMORY: 1.0}) is None


def test_break_even_makes_both_equally_fast():
    bf16 = [Work("product", BF16_GEMM, 800e9, 0), Work("norm", MEMORY, 0, 2e9)]
    int8 = [Work("product", INT8_GEMM, 800e9, 0), Work("norm", MEMORY, 0, 4e9)]
    # 8 + 2 ms against 4 ms and the product: 6 ms for what takes 2 at the peak
    level = break_even(int8, bf16, CARD, ROOF)
    assert level == pytest.approx(1 / 3)
    rates = ROOF | {INT8_GEMM: level}
    assert time_ms(int8, CARD, rates) == pytest.approx(time_ms(bf16, CARD, rates))
    assert break_even(int8, bf16, CARD, {INT8_GEMM: 1.0}) is None
    heavy = [*int8, Work("copies", MEMORY, 0, 8e9)]
    assert break_even(heavy, bf16, CARD, ROOF) == math.inf  # lost before the first product
