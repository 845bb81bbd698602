"""Triton kernel of the five ops of kernels/norms.py: one program per row, one flag per part.

The parts are switched by which pointers are None: y for the gated residual, next_weight for the
norm, codes for the quantization. A row stays in registers, in chunks, as in quant_rows_triton.

The norm that feeds codes or values holds v = x * weight * scale and not n(x): 1 / rms is one factor
for the row, so absmax |v| is gathered in the same sweep as the sum of squares, and a row waits for
the other warps once and not twice. For codes the factor cancels altogether (`store_codes`).
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


def choose_config(k: int, rotation: int = 0, residual: bool = False) -> Config:
    """Return the spread of a row of K columns, as `quant_rows_triton.choose_config` does.

    A gated residual holds two rows at first, so its row takes twice the warps. It keeps 8 values of
    a chunk per thread before a rotation too: with 16, Triton 3.6 and 3.7 write h' to shared memory
    two bytes at a time (counted in SASS), which costs more than the codes that 8 shuffle so.
    """
    if not residual:
        return quant_rows_triton.choose_config(k, rotation)
    num_warps = 4 if k <= 8192 else 8 if k <= 16384 else 16
    block_k = num_warps * 256
    while block_k // 2 >= max(k, 256):
        block_k, num_warps = block_k // 2, max(1, num_warps // 2)
    return Config(block_k, num_warps)


@triton.jit
def load_vector(ptr, K: tl.constexpr, BLOCK_K: tl.constexpr, STEP: tl.constexpr):
    return load_chunk(ptr, K, BLOCK_K, STEP).to(tl.float32)


@triton.jit
def inverse_rms(squares, eps, K: tl.constexpr):  # (BLOCK_K,) sums of squares -> scalar
    # IEEE square root and division: two instructions' worth for a whole row.
    return tl.div_rn(1.0, tl.sqrt_rn(tl.sum(squares, axis=0) * (1.0 / K) + eps))


@triton.jit
def norm_kernel(
    h_ptr,  # (M, K), row stride stride_hm
    y_ptr,  # (M, K), row stride stride_ym, or None: no residual
    weight_ptr,  # (K,) of the norm of y
    gate_ptr,  # (K,)
    next_weight_ptr,  # (K,) of the norm of h', or None: no norm
    next_scale_ptr,  # (K,)
    smooth_ptr,  # (K,) float32 or None
    h_out_ptr,  # (M, K) row-major, where y is
    values_ptr,  # (M, K) row-major, or None
    codes_ptr,  # (M, K) int8 row-major, or None
    x_scale_ptr,  # (M,) float32, where codes are
    stride_hm,
    stride_ym,
    eps,
    K: tl.constexpr,
    ROTATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(0).to(tl.int64)

    # Everything a row brings from memory is asked for before anything is waited for.
    h = ()
    y = ()
    for i in tl.static_range(STEPS):
        h = h + (load_chunk(h_ptr + row * stride_hm, K, BLOCK_K, i),)
        if y_ptr is not None:
            y = y + (load_chunk(y_ptr + row * stride_ym, K, BLOCK_K, i),)

    if y_ptr is not None:
        squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
        for i in tl.static_range(STEPS):
            squares += y[i].to(tl.float32) * y[i].to(tl.float32)
        factor = inverse_rms(squares, eps, K)
        stream = ()
        for i in tl.static_range(STEPS):
            weight = load_vector(weight_ptr, K, BLOCK_K, i)
            gate = load_vector(gate_ptr, K, BLOCK_K, i)
            added = h[i].to(tl.float32) + y[i].to(tl.float32) * factor * weight * gate
            rounded = added.to(h_ptr.dtype.element_ty)
            store_chunk(h_out_ptr + row * K, rounded, K, BLOCK_K, i)
            stream = stream + (rounded,)
        h = stream

    if next_weight_ptr is not None:
        squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
        largest = tl.zeros((BLOCK_K,), dtype=tl.float32)
        values = ()
        for i in tl.static_range(STEPS):
            x = h[i].to(tl.float32)
            squares += x * x
            v = x * load_vector(next_weight_ptr, K, BLOCK_K, i)
            v *= load_vector(next_scale_ptr, K, BLOCK_K, i)
            if codes_ptr is not None:
                v = smooth_and_rotate(v, smooth_ptr, ROTATION, K, BLOCK_K, i)
                largest = update_largest(largest, v)
            values = values + (v,)
        factor = inverse_rms(squares, eps, K)
        if codes_ptr is not None:
            absmax = finish_largest(largest)
            codes_row_ptr = codes_ptr + row * K
            store_codes(codes_row_ptr, x_scale_ptr + row, values, absmax, factor, K, BLOCK_K, STEPS)
        else:
            for i in tl.static_range(STEPS):
                v = (values[i] * factor).to(values_ptr.dtype.element_ty)
                store_chunk(values_ptr + row * K, v, K, BLOCK_K, i)


def launch(
    h: torch.Tensor,  # (M, K) bfloat16, float16 or float32
    y: torch.Tensor | None,  # (M, K) in h's dtype; None: no residual
    weight: torch.Tensor | None,  # (K,) floating, with y
    gate: torch.Tensor | None,  # (K,) floating, with y
    next_weight: torch.Tensor | None,  # (K,) floating; None: no norm
    next_scale: torch.Tensor | None,  # (K,) floating
    smooth: torch.Tensor | None,  # (K,) float32
    rotation: int,
    eps: float,
    h_out: torch.Tensor | None,  # (M, K) in h's dtype; written, with y
    values: torch.Tensor | None,  # (M, K) in h's dtype; written, with next_weight
    codes: torch.Tensor | None,  # (M, K) int8; written instead of values
    x_scale: torch.Tensor | None,  # (M,) float32; written, with codes
    config: Config,
) -> None:
    """Run the kernel once with the given spread, writing what is not None.

    Takes arguments that `kernels.norms` has checked and raises nothing of its own. Does nothing for
    M = 0.
    """
    m, k = h.shape
    if m == 0:
        return
    if h.stride(1) != 1:
        h = h.contiguous()  # chunks are read along K; a gather would waste most of each sector
    if y is not None and y.stride(1) != 1:
        y = y.contiguous()
    vectors = (weight, gate, next_weight, next_scale, smooth)
    norm_kernel[(m,)](
        h,
        y,
        *(None if vector is None else vector.contiguous() for vector in vectors),
        h_out,
        values,
        codes,
        x_scale,
        h.stride(0),
        0 if y is None else y.stride(0),
        eps,
        K=k,
        ROTATION=rotation,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
    )
