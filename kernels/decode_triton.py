"""Triton kernels that decode a stored weight in one pass: its bytes in, floating values out.

    weight = round(fp32 value)        what the value is: `quant.formats` fp8, q8_0, q4_k and nf4

The same in torch takes two to ten passes over copies of the weight. Every kernel computes in fp32
with the roundings of its format's `decode` in torch and rounds once at the end, so both give the
same bits, but for the payload of a NaN:

- e4m3 to fp32 by moving bits: sign, exponent and mantissa shifted to fp32's places make the value
  times 2^-120, subnormals included, and a product with a power of two is exact. Triton's own cast
  exists from sm_89 on only.
- In q4_k both products are exact (11 + 6 + 4 and 11 + 6 bits), so it does not matter whether a
  compiler fuses the subtraction with one of them.

Codes are loaded in words as wide as a block is aligned: 2 bytes in q8_0 (34 to a block), 16 in q4_k
(144).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

E4M3_NAN = tl.constexpr(0x7F)
TO_E4M3 = tl.constexpr(2.0**120)  # fp32's exponent bias 127 less e4m3's 7


@dataclass(frozen=True)
class Config:
    """Values of the result that a program writes at once, a power of two from 256 on, and warps."""

    values: int
    num_warps: int


def choose_config(name: str, k: int) -> Config:
    """Return the spread for a format and K columns: 4096 values, or a narrow row of fp8.

    Of ten spreads of a weight (4396, 4608) on an H200 at most 3 % behind each format's fastest
    (bench_producers.py --sweep --kernels decode).
    """
    values = 4096 if name != "fp8" else min(4096, max(256, triton.next_power_of_2(k)))
    return Config(values, max(1, values // 1024))


@triton.jit
def e4m3_kernel(codes_ptr, scale_ptr, out_ptr, K: tl.constexpr, VALUES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr + row)
    for start in tl.static_range(0, K, VALUES):
        column = start + tl.arange(0, VALUES)
        inside = column < K
        code = tl.load(codes_ptr + row * K + column, mask=inside, other=0).to(tl.int32)
        magnitude = code & 0x7F
        bits = (magnitude << 20) | ((code & 0x80) << 24)
        value = bits.to(tl.float32, bitcast=True) * TO_E4M3
        value = tl.where(magnitude == E4M3_NAN, float("nan"), value) * scale
        tl.store(out_ptr + row * K + column, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def q8_0_kernel(words_ptr, out_ptr, blocks, VALUES: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (VALUES // 32) + tl.arange(0, VALUES // 32)
    inside = block < blocks
    word = block * 17  # of 2 bytes: the scale, then 16 pairs of codes
    scale = tl.load(words_ptr + word, mask=inside, other=0).to(tl.float16, bitcast=True)
    pair = tl.load(
        words_ptr + word[:, None] + 1 + tl.arange(0, 16)[None, :], mask=inside[:, None], other=0
    ).to(tl.int32)
    codes = tl.join((pair << 24) >> 24, pair >> 8)  # int8 from the low byte and the high one
    value = tl.reshape(codes, (VALUES // 32, 32)).to(tl.float32) * scale.to(tl.float32)[:, None]
    offsets = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(out_ptr + offsets, value.to(out_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _line(stored_ptr, start, d, dmin, is_first, sub, inside):
    """Return scale and minimum of sub-blocks, (S, 4) each, from their 6-bit codes.

    Codes 0..3 are whole; of 4..7 the low halves are four bytes behind the minima, the upper two
    bits above the codes of 0..3.
    """
    at = stored_ptr + start[:, None] + 4 + (sub & 3)[None, :]
    scale = tl.load(at, mask=inside, other=0).to(tl.int32)
    minimum = tl.load(at + 4, mask=inside, other=0).to(tl.int32)
    lower = tl.load(at + 8, mask=inside, other=0).to(tl.int32)
    scale = tl.where(is_first, scale & 63, (lower & 15) | ((scale >> 6) << 4))
    minimum = tl.where(is_first, minimum & 63, (lower >> 4) | ((minimum >> 6) << 4))
    return d[:, None] * scale.to(tl.float32), dmin[:, None] * minimum.to(tl.float32)


@triton.jit
def q4_k_kernel(stored_ptr, halves_ptr, out_ptr, blocks, VALUES: tl.constexpr):
    SUPERS: tl.constexpr = VALUES // 256
    block = tl.program_id(0).to(tl.int64) * SUPERS + tl.arange(0, SUPERS)
    inside = block < blocks
    start = block * 144
    d = tl.load(halves_ptr + block * 72, mask=inside, other=0.0).to(tl.float32)
    dmin = tl.load(halves_ptr + block * 72 + 1, mask=inside, other=0.0).to(tl.float32)
    # 32 bytes hold the sub-blocks 2p in their low halves and 2p + 1 in their high ones
    p = tl.arange(0, 4)
    is_first = (p < 2)[None, :]
    low_scale, low_minimum = _line(stored_ptr, start, d, dmin, is_first, 2 * p, inside[:, None])
    high_scale, high_minimum = _line(
        stored_ptr, start, d, dmin, is_first, 2 * p + 1, inside[:, None]
    )
    lane = tl.arange(0, 32)[None, None, :]
    mask = inside[:, None, None]
    at = start[:, None, None] + 16 + (p * 32)[None, :, None] + lane
    both = tl.load(stored_ptr + at, mask=mask, other=0).to(tl.int32)
    low = (both & 15).to(tl.float32) * low_scale[:, :, None] - low_minimum[:, :, None]
    high = (both >> 4).to(tl.float32) * high_scale[:, :, None] - high_minimum[:, :, None]
    offsets = block[:, None, None] * 256 + (p * 64)[None, :, None] + lane
    tl.store(out_ptr + offsets, low.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + offsets + 32, high.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def nf4_kernel(codes_ptr, absmax_ptr, levels_ptr, out_ptr, size, VALUES: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * (VALUES // 2) + tl.arange(0, VALUES // 2)
    inside = byte < size
    both = tl.load(codes_ptr + byte, mask=inside, other=0).to(tl.int32)
    absmax = tl.load(absmax_ptr + byte // 32, mask=inside, other=0.0)
    first = tl.load(levels_ptr + (both >> 4)) * absmax
    second = tl.load(levels_ptr + (both & 15)) * absmax
    value = tl.interleave(first, second)
    offsets = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    tl.store(out_ptr + offsets, value.to(out_ptr.dtype.element_ty), mask=offsets // 2 < size)


def launch(
    name: str,
    stored: Sequence[torch.Tensor],
    weight: torch.Tensor,
    config: Config,
) -> None:
    """Decode a weight of the named format into `weight`, on the current device.

    Args:
        name: fp8, q8_0, q4_k or nf4.
        stored: as `kernels.decode` has checked them.
        weight: (N, K) floating, contiguous; written. Nothing happens where it has no elements.
        config: the spread, as `choose_config` returns it or any other.
    """
    n, k = weight.shape
    if weight.numel() == 0:
        return
    spread = {"VALUES": config.values, "num_warps": config.num_warps}
    programs = triton.cdiv(weight.numel(), config.values)
    first = stored[0]
    if name == "fp8":
        e4m3_kernel[(n,)](first.view(torch.uint8), stored[1], weight, K=k, **spread)
    elif name == "q8_0":
        q8_0_kernel[(programs,)](first.view(torch.int16), weight, weight.numel() // 32, **spread)
    elif name == "q4_k":
        halves = first.view(torch.float16)
        q4_k_kernel[(programs,)](first, halves, weight, weight.numel() // 256, **spread)
    elif name == "nf4":
        nf4_kernel[(programs,)](*stored, weight, weight.numel() // 2, **spread)
