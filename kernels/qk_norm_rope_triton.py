"""Triton kernel of `dit8::qk_norm_rope_`: one program per row and block of heads.

A head's two halves are loaded as two tiles with the same layout, so that the partners of a rotation
meet in one thread and nothing is exchanged but the head's sum of squares.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Config:
    """How a row is cut: q and k heads per program (a power of two), and warps that share them."""

    block_heads: int
    num_warps: int


def choose_config(half: int) -> Config:
    """Return the cut for heads of 2 * `half` values: 4 heads, 16 values a thread and half.

    Each half of 128 is then eight 16-byte loads, and 36 heads of q and k make 9 whole blocks. Small
    heads share one warp.
    """
    return Config(block_heads=4, num_warps=2 if half > 32 else 1)


@triton.jit
def load_weight(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def qk_norm_rope_kernel(
    qkv_ptr,  # (M, 3 * HEADS * 2 * HALF), row stride stride_qkvm
    q_weight_ptr,  # (2 * HALF,)
    k_weight_ptr,  # (2 * HALF,)
    cos_ptr,  # (M, HALF) float32, row-major
    sin_ptr,  # (M, HALF) float32, row-major
    stride_qkvm,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,  # HALF rounded up to a power of two
):
    # Blocks of heads vary fastest: the programs that read one row of the tables run together.
    BLOCKS: tl.constexpr = (2 * HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    head = (tl.program_id(0) % BLOCKS) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    col = tl.arange(0, BLOCK_D)[None, :]
    inside = (head < 2 * HEADS) & (col < HALF)

    first_ptr = qkv_ptr + row * stride_qkvm + head * (2 * HALF) + col
    first = tl.load(first_ptr, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(first_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    # Tables and weights are asked for once per head, in the layout of the tiles: the repeats hit
    # the L1 cache, where a (1, BLOCK_D) tile would be moved through shared memory to be spread.
    table = row * HALF + head * 0 + col
    cos = tl.load(cos_ptr + table, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + table, mask=inside, other=0.0)
    # A block may hold the last heads of q and the first of k: zero from the one that is not meant.
    is_q = inside & (head < HEADS)
    is_k = inside & (head >= HEADS)
    q_ptr = q_weight_ptr + head * 0 + col
    k_ptr = k_weight_ptr + head * 0 + col
    weight = load_weight(q_ptr, is_q) + load_weight(k_ptr, is_k)
    weight_second = load_weight(q_ptr + HALF, is_q) + load_weight(k_ptr + HALF, is_k)

    squares = tl.sum(first * first + second * second, axis=1)[:, None]
    factor = tl.div_rn(1.0, tl.sqrt_rn(squares * (0.5 / HALF) + eps))
    first = first * factor * weight
    second = second * factor * weight_second
    dtype = qkv_ptr.dtype.element_ty
    tl.store(first_ptr, (first * cos - second * sin).to(dtype), mask=inside)
    tl.store(first_ptr + HALF, (second * cos + first * sin).to(dtype), mask=inside)


def launch(
    qkv: torch.Tensor,  # (M, 3 * heads * d), contiguous rows; q and k overwritten
    q_weight: torch.Tensor,  # (d,) floating
    k_weight: torch.Tensor,  # (d,) floating
    cos: torch.Tensor,  # (M, d/2) float32
    sin: torch.Tensor,  # (M, d/2) float32
    heads: int,
    eps: float,
    config: Config,
) -> None:
    """Run the kernel once with the given cut, in place.

    Takes arguments that `kernels.qk_norm_rope` has checked and raises nothing of its own. Does
    nothing for M = 0.
    """
    m, half = cos.shape
    if m == 0:
        return
    qk_norm_rope_kernel[(m * triton.cdiv(2 * heads, config.block_heads),)](
        qkv,
        q_weight.contiguous(),
        k_weight.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        qkv.stride(0),
        eps,
        HEADS=heads,
        HALF=half,
        BLOCK_HEADS=config.block_heads,
        BLOCK_D=triton.next_power_of_2(half),
        num_warps=config.num_warps,
    )
