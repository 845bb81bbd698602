"""Triton kernel of `dit8::swiglu` and `dit8::swiglu_quant`: one program per row, held in registers.

sigmoid(g) = 1 / (1 + 2^(-g log2 e)) with the GPU's own exponential and quotient, each good to
2 ulp of fp32: 2^-15 of a bf16 step.
"""

import torch
import triton
import triton.language as tl

from dit8.kernels import quant_rows_triton
from dit8.kernels.quant_rows_triton import (
    Config,
    finish_largest,
    load_chunk,
    smooth_and_rotate,
    store_chunk,
    store_codes,
    update_largest,
)


def choose_config(k: int, rotation: int = 0, smooth: bool = False) -> Config:
    """Return the spread of a row of K columns, as `quant_rows_triton.choose_config` does.

    A divisor is a third operand beside gate and up: with it and 48 values per thread (K = 12288, 8
    warps) Triton 3.7 spills on sm_100. Such a row takes 16 warps, which hold 24 values each.
    """
    config = quant_rows_triton.choose_config(k, rotation)
    return Config(config.block_k, 16) if smooth and config.num_warps == 8 else config


@triton.jit
def swiglu_kernel(
    u_ptr,  # (M, 2F) = [gate | up], row stride stride_um
    smooth_ptr,  # (F,) float32 or None
    values_ptr,  # (M, F) row-major, or None
    codes_ptr,  # (M, F) int8 row-major, or None
    x_scale_ptr,  # (M,) float32, where codes are
    stride_um,
    F: tl.constexpr,
    ROTATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    STEPS: tl.constexpr = (F + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(0).to(tl.int64)
    gate_ptr = u_ptr + row * stride_um
    values = ()
    largest = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for i in tl.static_range(STEPS):
        gate = load_chunk(gate_ptr, F, BLOCK_K, i).to(tl.float32)
        up = load_chunk(gate_ptr + F, F, BLOCK_K, i).to(tl.float32)
        v = gate / (1.0 + tl.exp(-gate)) * up
        if codes_ptr is not None:
            v = smooth_and_rotate(v, smooth_ptr, ROTATION, F, BLOCK_K, i)
            largest = update_largest(largest, v)
            values = values + (v,)
        else:
            v = v.to(values_ptr.dtype.element_ty)
            store_chunk(values_ptr + row * F, v, F, BLOCK_K, i)
    if codes_ptr is not None:
        absmax = finish_largest(largest)
        store_codes(codes_ptr + row * F, x_scale_ptr + row, values, absmax, 1.0, F, BLOCK_K, STEPS)


def launch(
    u: torch.Tensor,  # (M, 2F) bfloat16, float16 or float32
    smooth: torch.Tensor | None,  # (F,) float32
    rotation: int,
    values: torch.Tensor | None,  # (M, F) in u's dtype; written
    codes: torch.Tensor | None,  # (M, F) int8; written instead of values
    x_scale: torch.Tensor | None,  # (M,) float32; written, with codes
    config: Config,
) -> None:
    """Run the kernel once with the given spread, writing what is not None.

    Takes arguments that `kernels.swiglu` has checked and raises nothing of its own. Does nothing
    for M = 0.
    """
    m, columns = u.shape
    if m == 0:
        return
    if u.stride(1) != 1:
        u = u.contiguous()  # chunks are read along the row
    swiglu_kernel[(m,)](
        u,
        smooth if smooth is None else smooth.contiguous(),
        values,
        codes,
        x_scale,
        u.stride(0),
        F=columns // 2,
        ROTATION=rotation,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
    )
