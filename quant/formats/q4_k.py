"""Q4_K of ggml: 4-bit codes, a 6-bit scale and minimum per 32 weights, two fp16 per 256, 144 bytes.

    weight ~ (d * scale_j) * code - (dmin * min_j)      code in 0..15; scale_j, min_j in 0..63

j counts the eight sub-blocks of a super-block: k-quants of llama.cpp, pull request 1684, 4.5 bits
per weight. Decoding is fixed by the format. Encoding is a search, and this one is ours: gguf-py has
none, and ggml's is scalar C. The objective is the same, squared errors weighted by rms + |weight|,
so that the large weights of a sub-block count more.

    1. the line scale * code - minimum of every sub-block: `search_lines`
    2. scales and minima become 6-bit codes in units of the fp16 d and dmin, as stored
    3. codes from the stored scales; the minima fitted to these codes; codes once more

Mean squared error relative to ggml's: 0.988 to 0.990 on the mini's linears, 0.989 on normal
weights, at most 0.996 in results/parity/gguf.csv (`make parity`).

Every step works on all sub-blocks at once, (B, 32), and depends on nothing outside a super-block,
so rows may come in pieces. One thread of an AMD EPYC (AVX-512), torch 2.13, (128, 4608), M
weights/s:

    encode 72 (two threads 120, ggml 19)        decode to fp32 or bf16 1340

A line is the scale and minimum of a sub-block before they are rounded to six bits:

    minimize  sum_i importance_i (x_i - (scale * code_i - minimum))^2      code_i in 0..15

For given codes this is weighted linear regression. So several grids give codes, each gets its best
line, and the line with the smallest error wins, which is the idea of ggml's search as well. ggml
tries 21 slopes one after the other and lets the minimum follow; here eight grids are spread over
both ends of the range, independent of each other and hence vectorized, and find better lines. The
winner then rounds the weights once more (Lloyd's iteration) and is fitted again, which takes off
another half per cent.

In the units u = (x - low) / (high - low) all sums are of order 1 whatever the weights, so that no
product overflows and fp32 can tell the errors of the lines apart.
"""

from collections.abc import Mapping, Sequence

import torch

from dit8.kernels.decode import decode_into, has_kernel
from dit8.quant.errors import UserError
from dit8.quant.types import Codec, TensorSpec

SUB = 32  # weights of a sub-block
CODE_MAX = 15
RANGE_MIN = 1e-30  # far below what d and dmin can hold; its inverse is still finite
TIE = 2e-7  # of the mean square: fp32 sums cannot tell closer lines apart, the first one is taken

# Codes of the smallest and the largest weight. Picked one after the other from a grid in steps of
# 1/4, each the one that lowered the error most, over Gaussian, Student-t and the mini's weights;
# within (-0.5, 15.5), so that nothing has to be clamped.
ENDS = (
    (0.0, 15.0),
    (0.75, 15.25),
    (-0.25, 14.75),
    (0.25, 15.25),
    (-0.25, 13.25),
    (-0.49, 15.25),
    (0.0, 14.0),
    (-0.25, 15.49),
)


def search_lines(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    importance: torch.Tensor,
    u: torch.Tensor,
    weighted: torch.Tensor,
    codes: torch.Tensor,
    products: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find scale >= 0 and minimum >= 0, (B,) each: x ~ scale * code - minimum.

    Args:
        x: (B, 32).
        low: (B,) smallest weights, or 0 if they are positive.
        high: (B,) largest weights.
        importance: (B, 32), sums to 1.
        u, weighted, codes, products: (B, 32) scratch.

    Returns:
        scales, minima.
    """
    span = high - low
    span.masked_fill_(span < RANGE_MIN, 1.0)
    torch.sub(x, low[:, None], out=u).mul_((1.0 / span)[:, None])
    mean_u = torch.mul(importance, u, out=weighted).sum(dim=1)
    zero = -low / span  # where x = 0 lies; a line must start at or below it
    sums = torch.empty(3, len(ENDS), len(x), device=x.device)  # of code, code^2 and u * code
    for i, (first, last) in enumerate(ENDS):
        torch.mul(u, last - first, out=codes).add_(first).round_()
        _sum_codes(codes, importance, weighted, products, sums[:, i])
    gain, slope, start = _fit_line(*sums, mean_u, zero)
    ties = TIE * torch.arange(len(ENDS), device=x.device)[:, None]
    gain, chosen = (gain - ties).max(dim=0, keepdim=True)
    slope, start = slope.gather(0, chosen), start.gather(0, chosen)

    torch.sub(u, start.view(-1, 1), out=codes).div_(slope.view(-1, 1)).round_().clamp_(0, CODE_MAX)
    _sum_codes(codes, importance, weighted, products, sums[:, 0])
    again = _fit_line(*sums[:, :1], mean_u, zero)
    is_better = again[0] > gain + TIE
    slope = torch.where(is_better, again[1], slope)[0]
    start = torch.where(is_better, again[2], start)[0]
    # A flat sub-block has u = 0, hence slope 0, start 0 and the minimum -low.
    return slope * span, (zero - start) * span


def _sum_codes(
    codes: torch.Tensor,
    importance: torch.Tensor,
    weighted: torch.Tensor,
    products: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Write what a fit needs into `sums` (3, B); overwrites codes and products (B, 32)."""
    torch.sum(torch.mul(importance, codes, out=products), dim=1, out=sums[0])
    torch.sum(products.mul_(codes), dim=1, out=sums[1])
    torch.sum(codes.mul_(weighted), dim=1, out=sums[2])


def _fit_line(
    mean_c: torch.Tensor,
    mean_cc: torch.Tensor,
    mean_uc: torch.Tensor,
    mean_u: torch.Tensor,
    zero: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fit u ~ slope * code + start by weighted least squares, start <= zero.

    Args:
        mean_c: (G, B) of G grids, as mean_cc and mean_uc; mean_u and zero are (B,).

    Returns:
        gain, slope and start, (G, B). The gain is what the line takes off mean(u^2), the error of
        the line 0: the larger, the better.
    """
    # Less is the rounding error of equal codes, or comes from two neighbouring codes at the top of
    # a range that begins at 0; either would tilt the line wildly.
    variance = (mean_cc - mean_c * mean_c).clamp_(min=0.1)
    start = (mean_u * mean_cc - mean_uc * mean_c) / variance
    start = torch.minimum(start, zero)
    slope = (mean_uc - start * mean_c) / mean_cc.clamp(min=1e-6)  # the best for this start
    gain = slope * slope * mean_cc + start * (2.0 * mean_u - start)
    return gain, slope, start


SUPER = 256  # weights of a super-block
SUBS = SUPER // SUB
SUPER_BYTES = 144  # d 2, dmin 2, scales and minima 12, codes 128
SCALE_MAX = 63
VALUE_MAX = 2.0**20  # keeps dmin below 65504, the largest fp16, with room to spare
PIECE_VALUES = 2**18  # CPU: fp32 temporaries of 1 MiB, which stay in the cache
GPU_PIECE_VALUES = 2**24  # GPU without the kernel: fp32 temporaries of 64 MiB


def refuse(n: int, k: int) -> str | None:
    """Say why a weight (n, k) cannot be stored, or None if it can."""
    if k % SUPER:
        return f"q4_k needs K divisible by {SUPER}, got {k}: a super-block would cross two rows"
    return None


def specs(n: int, k: int) -> dict[str, TensorSpec]:
    """List what is stored for a weight (n, k)."""
    return {".weight": TensorSpec((n, k // SUPER * SUPER_BYTES), torch.uint8)}


def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Search scales, minima and codes with a small weighted squared error.

    Args:
        weight: (N, K) fp32 on the CPU.

    Returns:
        ".weight" (N, K / 256 * 144) uint8.

    Raises:
        ValueError: not an fp32 matrix, or a shape that `refuse` refuses.
        UserError: a value is NaN, infinite, or so large that dmin would overflow in fp16.
    """
    if weight.ndim != 2 or weight.dtype != torch.float32 or weight.shape[1] == 0:
        raise ValueError(
            f"q4_k: weight must be (N, K) float32, got {tuple(weight.shape)} {weight.dtype}"
        )
    n, k = weight.shape
    if reason := refuse(n, k):
        raise ValueError(reason)
    stored = torch.empty(n, k // SUPER * SUPER_BYTES, dtype=torch.uint8)
    rows = max(1, PIECE_VALUES // k)
    scratch = torch.empty(5, min(rows, n) * k // SUB, SUB)
    for piece, out in zip(weight.split(rows), stored.split(rows), strict=True):
        x = piece.reshape(-1, SUB)
        _encode_piece(x, out.view(-1, SUPER_BYTES), *scratch[:, : len(x)])
    return {".weight": stored}


def _encode_piece(
    x: torch.Tensor,
    out: torch.Tensor,
    importance: torch.Tensor,
    u: torch.Tensor,
    weighted: torch.Tensor,
    codes: torch.Tensor,
    products: torch.Tensor,
) -> None:
    """Encode sub-blocks (B, 32) into super-blocks (B / 8, 144).

    The rest, (B, 32) each, is scratch memory: the system clears every page of fresh memory, which
    took a fifth of the time.
    """
    low, high = x.amin(dim=1), x.amax(dim=1)  # (B,); NaN stays NaN
    largest = float(torch.maximum(high, -low).amax()) if len(x) else 0.0
    if not largest <= VALUE_MAX:
        raise UserError(
            f"q4_k: weights must be finite and at most {VALUE_MAX:.0f} in magnitude, where fp16 "
            f"scales end, got {largest:.3g}; check the source checkpoint"
        )
    # Errors are weighed by rms + |x|, normalized to sum 1 in every sub-block.
    # The root in fp64: MKL's fp32 root of an array is not the nearest number on every processor
    # (a fifth of them on an AMD EPYC 7003), and the codes would differ from machine to machine.
    rms = torch.mul(x, x, out=products).mean(dim=1, keepdim=True).double().sqrt_().float()
    torch.abs(x, out=importance).add_(rms)
    total = importance.sum(dim=1, keepdim=True)
    importance.div_(total.masked_fill_(total == 0.0, 1.0))
    low.clamp_(max=0.0)  # a minimum cannot lift the line
    scales, minima = search_lines(x, low, high, importance, u, weighted, codes, products)
    d, scales = _to_six_bits(scales)
    dmin, minima = _to_six_bits(minima)
    _round(x, d * scales, dmin * minima, codes)
    # What the codes cannot reach any more with their scale rounded, a shift of the minimum can.
    torch.mul(codes, (d * scales).view(-1, 1), out=products)
    shift = products.sub_(x).mul_(importance).sum(dim=1)
    minima = (shift.view(-1, SUBS) / dmin).nan_to_num_(0.0, 0.0, 0.0)  # no minima: no unit
    minima = minima.round_().clamp_(0, SCALE_MAX)
    _round(x, d * scales, dmin * minima, codes)
    out[:, :2].view(torch.float16).copy_(d)
    out[:, 2:4].view(torch.float16).copy_(dmin)
    out[:, 4:16] = _pack_scales(scales.to(torch.uint8), minima.to(torch.uint8))
    pairs = codes.view(-1, SUBS // 2, 2, SUB)  # sub-blocks 2i and 2i + 1 share bytes
    low_half, high_half = pairs.unbind(dim=2)
    out[:, 16:].view(-1, SUBS // 2, SUB).copy_(high_half.mul_(16).add_(low_half))


def _to_six_bits(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round values (B,) >= 0 to unit * code: units (B / 8, 1) as fp16 holds them, codes (B / 8, 8).

    The fp16 unit divides, not the exact one: where fp16 is subnormal they differ, by up to 3 % at
    1e-6, which is the unit of a range of 0.001.
    """
    values = values.view(-1, SUBS)
    unit = (values.amax(dim=1, keepdim=True) / SCALE_MAX).to(torch.float16).float()
    codes = (values / unit).nan_to_num_(0.0, posinf=0.0)  # a unit of 0 stands for nothing
    return unit, codes.round_().clamp_(max=SCALE_MAX)


def _round(
    x: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, codes: torch.Tensor
) -> None:
    """Write codes 0..15 for scales and minima (B / 8, 8) as they will be decoded."""
    inverse = 1.0 / scales
    inverse.masked_fill_(scales == 0.0, 0.0)
    torch.add(x, minima.view(-1, 1), out=codes).mul_(inverse.view(-1, 1))
    codes.round_().clamp_(0, CODE_MAX)


def _pack_scales(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """Pack (S, 8) and (S, 8) uint8 below 64 into (S, 12): four of each whole, the rest split.

    The last four have their low halves in bytes 8..11 (scale low, minimum high) and their upper
    two bits above the first four.
    """
    upper = torch.cat([scales[:, 4:] >> 4, minima[:, 4:] >> 4], dim=1) << 6
    whole = torch.cat([scales[:, :4], minima[:, :4]], dim=1)
    lower = (scales[:, 4:] & 15) | (minima[:, 4:] << 4)
    return torch.cat([whole | upper, lower], dim=1)


def _unpack_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Undo `_pack_scales`."""
    whole, lower = packed[:, :8] & 63, packed[:, 8:]
    upper = (packed[:, :8] >> 6) << 4
    scales = torch.cat([whole[:, :4], (lower & 15) | upper[:, :4]], dim=1)
    minima = torch.cat([whole[:, 4:], (lower >> 4) | upper[:, 4:]], dim=1)
    return scales, minima


def decode(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Compute the weights in fp32, with the roundings of gguf-py, then round once.

    Args:
        tensors: as `encode` returns them.
        dtype: of the result, floating.

    Returns:
        (N, K) on the device of the tensors.
    """
    stored = tensors[".weight"]
    n, k = stored.shape[0], stored.shape[1] // SUPER_BYTES * SUPER
    weight = torch.empty(n, k, dtype=dtype, device=stored.device)
    if has_kernel(stored.device):
        decode_into("q4_k", [stored], weight)
        return weight
    size = PIECE_VALUES if stored.device.type == "cpu" else GPU_PIECE_VALUES
    rows = max(1, size // k)
    for piece, out in zip(stored.split(rows), weight.split(rows), strict=True):
        blocks = piece.reshape(-1, SUPER_BYTES)
        d, dmin = blocks[:, :4].view(torch.float16).float().split(1, dim=1)
        scales, minima = _unpack_scales(blocks[:, 4:16])
        pairs = blocks[:, 16:].unflatten(1, (-1, 1, SUB))  # (S, 4, 1, 32)
        values = torch.cat([pairs & 15, pairs >> 4], dim=2).float().view(-1, SUB)
        values.mul_((d * scales).view(-1, 1)).sub_((dmin * minima).view(-1, 1))
        out.copy_(values.view(-1, k))
    return weight


def split_rows(
    tensors: Mapping[str, torch.Tensor], counts: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """Cut a stacked linear into its parts, such as q, k and v; the codes stay as they are.

    Args:
        tensors: as `encode` returns them, N rows.
        counts: rows of each part; they sum to N.

    Returns:
        One mapping per count, views of the given tensor.
    """
    return [{".weight": part} for part in tensors[".weight"].split(list(counts))]


CODEC = Codec("q4_k", refuse, specs, encode, decode, split_rows)
