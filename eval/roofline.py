"""Time a model's counted work on a GPU: each component at its fraction of the stated peak.

    t = sum over components of max(flops / (f_unit peak_unit), bytes / (f_memory bandwidth))

With every fraction 1 this is the roofline (Williams, Waterman, Patterson 2009): no kernel can be
faster. The fractions that one card reaches are measured there, component by component; the
prediction for another card assumes that it reaches the same ones. That is an assumption: it holds
best between cards whose balance of arithmetic, cache and bandwidth is alike.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dit8.eval.gpus import Gpu
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

ROOF: Mapping[str, float] = dict.fromkeys(UNITS, 1.0)
# what a unit's fraction is a fraction of, in operations or bytes a second
PEAKS = {
    **dict.fromkeys((BF16_GEMM, ATTENTION, MASKED_ATTENTION), ("bf16_tflops", 1e12)),
    **dict.fromkeys((INT8_GEMM, INT8_PRODUCT), ("int8_tops", 1e12)),
    **dict.fromkeys((MEMORY, EAGER_MEMORY), ("memory_gb_s", 1e9)),
}
_MOVERS = (MEMORY, EAGER_MEMORY)


@dataclass(frozen=True)
class Fraction:
    """Which part of a peak was reached, and by what it is known; None: not measured."""

    unit: str
    value: float | None
    basis: str


def peak(gpu: Gpu, unit: str) -> float:
    """Return the stated peak that a unit's fraction refers to, in operations or bytes a second."""
    name, scale = PEAKS[unit]
    return getattr(gpu, name) * scale


def amount(work: Work) -> float:
    """Return what a component's unit is measured in: bytes for the movers, else operations."""
    return work.bytes if work.unit in _MOVERS else work.flops


def time_ms(works: Iterable[Work], gpu: Gpu, fractions: Mapping[str, float]) -> float | None:
    """Add up the components' times; None if a fraction that they need is not known.

    Products and attention are also bound by their bytes, at the fraction of fused kernels; where
    that is unknown, at the whole bandwidth.
    """
    total = 0.0
    for work in works:
        if work.unit not in fractions:
            return None
        bandwidth = peak(gpu, MEMORY) * fractions.get(MEMORY, 1.0)
        rate = peak(gpu, work.unit) * fractions[work.unit]
        own = amount(work) / rate
        total += own if work.unit in _MOVERS else max(own, work.bytes / bandwidth)
    return 1e3 * total


def break_even(
    int8: Iterable[Work], bf16: Iterable[Work], gpu: Gpu, fractions: Mapping[str, float]
) -> float | None:
    """Return the fraction of the int8 peak at which int8 products make a step as fast as bf16.

    Above 1 int8 cannot win on that card. None if a fraction is not known.
    """
    works = tuple(int8)
    rest = time_ms((work for work in works if work.unit != INT8_GEMM), gpu, fractions)
    whole = time_ms(bf16, gpu, fractions)
    if rest is None or whole is None:
        return None
    operations = sum(work.flops for work in works if work.unit == INT8_GEMM)
    left = (whole - rest) / 1e3
    return operations / (left * peak(gpu, INT8_GEMM)) if left > 0 else float("inf")
