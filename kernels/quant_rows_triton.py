"""Triton kernel of `dit8::quant_rows`: one program per row, two sweeps over it.

Its codes equal the reference's bit for bit, which rests on two choices:

- `tl.div_rn`, the IEEE division. Triton's `/` on fp32 is `div.full.f32`, good to 2 ulp, and a
  quotient that is off by one ulp beside a half flips a code. `div_rn` is in Triton 3.6 and 3.7 and
  in their interpreter.
- Rounding by adding and subtracting 1.5 x 2^23: at that size fp32 counts in ones, so the addition
  itself rounds, half to even, exactly for |v| <= 2^22. `libdevice.rint` does the same on a GPU but
  cannot run under the interpreter (extern calls are not implemented there).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Config:
    """How one row is swept: columns per step, and warps that share them."""

    block_k: int
    num_warps: int


def choose_config(k: int) -> Config:
    """Return the sweep for rows of K columns: the whole row up to 4096, 16 elements per thread.

    A rule and not a timing: the kernel only streams memory, and 16 elements per thread keep a
    16-byte load of bf16 in each of two requests in flight.
    """
    block_k = min(max(256, triton.next_power_of_2(k)), 4096)
    return Config(block_k=block_k, num_warps=min(max(1, block_k // 512), 8))


@triton.jit
def load_smoothed(
    x_row_ptr, smooth_ptr, offs_k, K, HAS_SMOOTH: tl.constexpr
):  # -> (BLOCK_K,) float32
    inside = offs_k < K
    v = tl.load(x_row_ptr + offs_k, mask=inside, other=0.0).to(tl.float32)
    if HAS_SMOOTH:
        v = tl.div_rn(v, tl.load(smooth_ptr + offs_k, mask=inside, other=1.0))
    return v


@triton.jit
def quant_rows_kernel(
    x_ptr,  # (M, K), row stride stride_xm
    smooth_ptr,  # (K,) float32 or None
    codes_ptr,  # (M, K) int8, row-major
    scale_ptr,  # (M,) float32
    K,
    stride_xm,
    HAS_SMOOTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # M * K passes 2^31 at 175k tokens of K 12288
    x_row_ptr = x_ptr + row * stride_xm
    offs = tl.arange(0, BLOCK_K)

    largest = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        v = load_smoothed(x_row_ptr, smooth_ptr, offs + k, K, HAS_SMOOTH)
        # A maximum drops NaN on a GPU: turned into infinity it survives.
        largest = tl.maximum(largest, tl.where(v == v, tl.abs(v), float("inf")))
    absmax = tl.max(largest, axis=0)

    scale = tl.div_rn(absmax, 127.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    broken = absmax == float("inf")
    tl.store(scale_ptr + row, tl.where(broken, float("nan"), scale))

    MAGIC: tl.constexpr = 12582912.0  # 1.5 * 2^23
    for k in range(0, K, BLOCK_K):
        v = load_smoothed(x_row_ptr, smooth_ptr, offs + k, K, HAS_SMOOTH)
        q = tl.div_rn(v, scale)
        # Clamped before rounding (the same result): MAGIC rounds only what is small.
        q = tl.minimum(tl.maximum(q, -127.0), 127.0)
        q = tl.where(broken, 0.0, (q + MAGIC) - MAGIC)
        tl.store(codes_ptr + row * K + offs + k, q.to(tl.int8), mask=offs + k < K)


def launch(
    x: torch.Tensor,  # (M, K) bfloat16, float16 or float32
    smooth: torch.Tensor | None,  # (K,) float32
    codes: torch.Tensor,  # (M, K) int8, row-major; written
    scale: torch.Tensor,  # (M,) float32; written
    config: Config,
) -> None:
    """Run the kernel once with the given sweep, writing `codes` and `scale`.

    Any sweep gives the same codes. Takes arguments that `kernels.quant_rows` has checked and raises
    nothing of its own. Does nothing for M = 0.
    """
    m, k = x.shape
    if m == 0:
        return
    if x.stride(1) != 1:
        x = x.contiguous()  # the sweep reads along K; a gather would waste most of each sector
    quant_rows_kernel[(m,)](
        x,
        smooth if smooth is None else smooth.contiguous(),
        codes,
        scale,
        k,
        x.stride(0),
        HAS_SMOOTH=smooth is not None,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
    )
