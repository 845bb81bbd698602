"""Refuse to compare on a card that does not run at its speed.

A throttled card slows a bf16 product and an int8 product by different factors, so that no ratio of
the two says anything about the kernels: the authors of the fused kernel for Ideogram 4 once read
8.1 bf16 TFLOPS from an RTX 3090 that gives 65.5 when healthy. The gate is a sustained bf16 product
of random matrices (zeros run 13 % faster on an H200: fewer bits flip, so less power is drawn),
before the measurements and after them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dit8.quant.errors import UserError

SIZE = 8192  # 1.1 TFLOP a product, 128 MiB an operand: every multiprocessor is busy
WARM_MS, SUSTAINED_MS = 500.0, 1000.0  # power and clocks settle within a few hundred ms
FRACTION = 0.8  # below it a card is throttled; healthy ones of a kind differ by 4 %


@dataclass(frozen=True)
class Expected:
    """The rate of a healthy card: dense bf16 products of random matrices."""

    tflops: float
    source: str


# Measured rates only: a datasheet's peak is above what a product reaches, on each card by a margin
# of its own. The H200's is of short runs and not from this repo; sustained, as here, one reads
# 669-670 (results/bench/runs), 87 % of it.
EXPECTED = {
    "NVIDIA H200": Expected(769.0, "lowest of several machines, 769-798, 8192^3, random data"),
    "NVIDIA GeForce RTX 3090": Expected(65.5, "arXiv:2606.14598, the healthy card"),
}


def expected_tflops(gpu: str, told: float | None = None) -> float:
    """Return the rate a healthy card of this name reaches.

    Args:
        gpu: the device's name as the driver gives it.
        told: what the user says it is, in TFLOPS; goes before the table.

    Raises:
        UserError: the card is not in the table and nothing was told, or that is no rate.
    """
    if told is not None:
        if not (math.isfinite(told) and told > 0):
            raise UserError(
                f"health: expected-tflops must be a positive rate in TFLOPS, got {told:g}; "
                "give what a healthy card of this kind reaches"
            )
        return told
    if gpu not in EXPECTED:
        raise UserError(
            f"health: no bf16 rate is known for {gpu!r}, expected one of {', '.join(EXPECTED)}; "
            "give the rate of a healthy one with --expected-tflops"
        )
    return EXPECTED[gpu].tflops


def check_health(measured: float, expected: float, gpu: str, when: str) -> None:
    """Pass a card that reaches its rate.

    Args:
        measured, expected: TFLOPS.
        gpu: its name, for the message.
        when: "before" or "after" the measurements.

    Raises:
        UserError: it reaches less than FRACTION of it.
    """
    if not measured >= FRACTION * expected:
        raise UserError(
            f"health: {gpu} reached {measured:.1f} bf16 TFLOPS {when} the measurements, expected "
            f"at least {FRACTION * expected:.1f} ({FRACTION:.0%} of {expected:g}); it is throttled "
            "or shared, so nothing was recorded: let it cool down or free it, then run again"
        )


def sustained_tflops(run_ms: Callable[[int], float], size: int = SIZE) -> float:
    """Return the rate of square products that have been running for a while.

    Args:
        run_ms: does so many products of `size` and returns the ms they took.
        size: M, N and K.

    Returns:
        TFLOPS over about SUSTAINED_MS, after at least WARM_MS that are not counted.
    """
    count = 1
    while (warm_ms := run_ms(count)) < WARM_MS:  # doubled, since an idle card starts slowly
        count *= 2
    count = math.ceil(SUSTAINED_MS * count / warm_ms)
    return 2 * size**3 * count / (run_ms(count) * 1e-3) / 1e12


def cuda_bf16_tflops(device: torch.device) -> float:
    """Measure a CUDA device's sustained bf16 rate, in TFLOPS, on random matrices."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(SIZE, SIZE, generator=generator, device=device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    out = torch.empty_like(a)

    def run_ms(count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            torch.mm(a, b, out=out)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    run_ms(1)  # cuBLAS loads its kernels
    return sustained_tflops(run_ms)
