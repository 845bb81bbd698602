"""Triton kernel of `dit8::quant_rows`, and the two steps that every quantizing producer ends with.

One program per row. A row is read once, in STEPS chunks of BLOCK_K that stay in registers: absmax
first, then codes. The chunks are a tuple and not one padded block because K is seldom a power of
two: 4608 = 9 x 512 wastes nothing where a block of 8192 idles 44 % of its lanes.

Without a rotation its codes equal the reference's bit for bit, which rests on:

- Division by the row's scale in two instructions: 1 / scale is kept as the sum of two fp32 numbers,
  r + e, and q = fma(v, r, v e) is off by 2^-22 of its last bit before its one rounding. It differs
  from IEEE division where the exact quotient is nearer than that to a midpoint of two fp32 numbers,
  and a code only where that midpoint lies beside a half: one in 10^12. IEEE division (`tl.div_rn`)
  takes some 20 instructions and a branch; for the 20 M values of (4396, 4608) that alone would last
  as long as reading and writing them. Triton's own `/` is good to 2 ulp only, and an ulp beside a
  half flips a code.
- `tl.div_rn` where this may fail: a scale beyond 2^+-100, for which e or v e may be subnormal, or a
  row that is not finite.
- Rounding by adding 1.5 x 2^23: at that size fp32 counts in ones, so the addition itself rounds,
  half to even, exactly for |q| <= 2^22, and leaves the code in the low byte of the sum: no
  conversion, of which a GPU does a quarter as many per cycle. `libdevice.rint` rounds as well but
  cannot run under the interpreter (extern calls are not implemented there).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dit8.kernels.hadamard_triton import rotate_chunk


@dataclass(frozen=True)
class Config:
    """How one row is spread: columns per chunk (a power of two from 256 on), and warps."""

    block_k: int
    num_warps: int


def choose_config(k: int, rotation: int = 0) -> Config:
    """Return the spread of a row of K columns: 8 or 16 values of a chunk per thread.

    8 make one 16-byte load of bf16; 16 make one 16-byte store of codes too, and after a rotation
    they save codes from being reordered two bytes at a time. Wider rows take more warps, so that
    they fit the registers: 48 values of 12288 columns per thread, and 104 of 53248, where chunks
    of 16 would spill.
    """
    num_warps = 2 if k <= 8192 else 8 if k <= 16384 else 16
    block_k = num_warps * (512 if num_warps == 8 or rotation and num_warps == 2 else 256)
    while block_k // 2 >= max(k, 256):
        block_k, num_warps = block_k // 2, max(1, num_warps // 2)
    return Config(block_k, num_warps)


@triton.jit
def load_chunk(row_ptr, K: tl.constexpr, BLOCK_K: tl.constexpr, STEP: tl.constexpr):
    """Load columns STEP * BLOCK_K and on of a row or of a (K,) vector, zeros behind its end."""
    offs = STEP * BLOCK_K + tl.arange(0, BLOCK_K)
    if (STEP + 1) * BLOCK_K <= K:
        return tl.load(row_ptr + offs)
    return tl.load(row_ptr + offs, mask=offs < K, other=0.0)


@triton.jit
def store_chunk(row_ptr, v, K: tl.constexpr, BLOCK_K: tl.constexpr, STEP: tl.constexpr):
    offs = STEP * BLOCK_K + tl.arange(0, BLOCK_K)
    if (STEP + 1) * BLOCK_K <= K:
        tl.store(row_ptr + offs, v)
    else:
        tl.store(row_ptr + offs, v, mask=offs < K)


@triton.jit
def smooth_and_rotate(
    v,
    smooth_ptr,
    ROTATION: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEP: tl.constexpr,
):  # -> (BLOCK_K,) float32
    if smooth_ptr is not None:
        offs = STEP * BLOCK_K + tl.arange(0, BLOCK_K)
        v = tl.div_rn(v.to(tl.float32), tl.load(smooth_ptr + offs, mask=offs < K, other=1.0))
    return rotate_chunk(v, BLOCK_K, ROTATION)


@triton.jit
def update_largest(largest, v):
    """Take the larger magnitude of each lane; NaN stays (a plain maximum drops it on a GPU)."""
    return tl.maximum(largest, tl.abs(v), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def finish_largest(largest):  # (BLOCK_K,) -> scalar, infinity for a row that is not finite
    return tl.max(tl.where(largest == largest, largest, float("inf")), axis=0)


@triton.jit
def store_codes(
    codes_row_ptr,
    scale_ptr,  # of this row
    values,  # STEPS chunks (BLOCK_K,) float32
    absmax,  # of values
    factor,  # what every value is to be multiplied by: the row's 1 / rms, or 1.0
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Quantize a row that is held in registers, and store its scale.

    The factor is left out of the quotient (values * factor) / (absmax * factor / 127), where it
    cancels: it reaches the scale only, and absmax need not wait for it.
    """
    largest = absmax * factor
    is_finite = largest < float("inf")  # False for NaN too
    scale = tl.div_rn(largest, 127.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    tl.store(scale_ptr, tl.where(is_finite, scale, float("nan")))

    MAGIC: tl.constexpr = 12582912.0  # 1.5 x 2^23
    SMALLEST: tl.constexpr = 7.888609052210118e-31  # 2^-100
    LARGEST: tl.constexpr = 1.2676506002282294e30  # 2^100
    step = tl.div_rn(absmax, 127.0)
    if is_finite & (scale >= SMALLEST) & (step >= SMALLEST) & (step <= LARGEST):
        inverse = tl.div_rn(1.0, step)
        error = tl.div_rn(tl.fma(-step, inverse, 1.0), step)
        for i in tl.static_range(STEPS):
            q = tl.fma(values[i], inverse, values[i] * error)
            # |q| <= 127 (1 + 2^-23): nothing to clamp.
            code = (q + MAGIC).to(tl.int32, bitcast=True).to(tl.int8)
            store_chunk(codes_row_ptr, code, K, BLOCK_K, i)
    else:
        for i in tl.static_range(STEPS):
            q = tl.div_rn(values[i] * factor, scale)
            # Clamped before rounding (the same result): MAGIC rounds only what is small.
            q = tl.minimum(tl.maximum(q, -127.0), 127.0)
            q = tl.where(is_finite, q, 0.0)
            code = (q + MAGIC).to(tl.int32, bitcast=True).to(tl.int8)
            store_chunk(codes_row_ptr, code, K, BLOCK_K, i)


@triton.jit
def quant_rows_kernel(
    x_ptr,  # (M, K), row stride stride_xm
    smooth_ptr,  # (K,) float32 or None
    codes_ptr,  # (M, K) int8, row-major
    scale_ptr,  # (M,) float32
    stride_xm,
    K: tl.constexpr,
    ROTATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(0).to(tl.int64)  # M * K passes 2^31 at 175k tokens of K 12288
    values = ()
    largest = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for i in tl.static_range(STEPS):
        v = load_chunk(x_ptr + row * stride_xm, K, BLOCK_K, i)
        v = smooth_and_rotate(v, smooth_ptr, ROTATION, K, BLOCK_K, i)
        largest = update_largest(largest, v)
        values = values + (v,)
    absmax = finish_largest(largest)
    store_codes(codes_ptr + row * K, scale_ptr + row, values, absmax, 1.0, K, BLOCK_K, STEPS)


def launch(
    x: torch.Tensor,  # (M, K) bfloat16, float16 or float32
    smooth: torch.Tensor | None,  # (K,) float32
    rotation: int,
    codes: torch.Tensor,  # (M, K) int8, row-major; written
    scale: torch.Tensor,  # (M,) float32; written
    config: Config,
) -> None:
    """Run the kernel once with the given spread, writing `codes` and `scale`.

    Any spread gives the same codes. Takes arguments that `kernels.quant_rows` has checked and
    raises nothing of its own. Does nothing for M = 0.
    """
    m, k = x.shape
    if m == 0:
        return
    if x.stride(1) != 1:
        x = x.contiguous()  # chunks are read along K; a gather would waste most of each sector
    quant_rows_kernel[(m,)](
        x,
        smooth if smooth is None else smooth.contiguous(),
        codes,
        scale,
        x.stride(0),
        K=k,
        ROTATION=rotation,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
    )
