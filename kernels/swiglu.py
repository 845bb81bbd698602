"""SwiGLU between the up- and the down-projection, with or without the codes that the latter reads.

    z[m, f] = silu(u[m, f]) * u[m, F + f],   silu(g) = g / (1 + exp(-g))

SwiGLU, arXiv:2002.05202, eq. 6 (without the projections, which are GEMMs of their own): u holds
w1 x and w3 x side by side, as one GEMM with both weights writes them.

All in fp32 with one rounding at the end, where torch rounds silu(g) to bf16 before the product.

Why one kernel: u is read once and codes are written, 5 bytes for each value of z. silu, product and
row quantization as separate ops move 17: at (4396, 12288) 0.27 GB instead of 0.92, once a block.
"""

import torch
import torch.nn.functional as F

from dit8.kernels.backend import backend_name
from dit8.kernels.quant_rows import X_DTYPES, check_before_codes, describe, quant_rows_reference


def swiglu_reference(u: torch.Tensor) -> torch.Tensor:  # (M, 2F) -> (M, F) float32
    """Compute silu(gate) * up in plain torch, not yet rounded."""
    gate, up = u.to(torch.float32).chunk(2, dim=1)
    return F.silu(gate) * up


def _check(op: str, u: torch.Tensor) -> None:
    """Raise ValueError where u breaks the signature of `op`."""
    if u.dtype not in X_DTYPES or u.ndim != 2 or u.shape[1] == 0 or u.shape[1] % 2:
        raise ValueError(
            f"{op}: u must be (M, 2F) bfloat16, float16 or float32 with F >= 1, got {describe(u)}; "
            "pass [w1 x | w3 x] with the leading dimensions flattened"
        )


@torch.library.custom_op("dit8::swiglu", mutates_args=(), device_types="cpu")
def _swiglu(u: torch.Tensor) -> torch.Tensor:
    return swiglu_reference(u).to(u.dtype).contiguous()


@_swiglu.register_kernel("cuda")
def _swiglu_cuda(u):
    backend_name(u.device)  # raises where the kernel cannot run: there is no other path to take
    from dit8.kernels.swiglu_triton import choose_config, launch

    values = u.new_empty(u.shape[0], u.shape[1] // 2)
    with torch.cuda.device(u.device):
        launch(u, None, 0, values, None, None, choose_config(values.shape[1]))
    return values


@_swiglu.register_fake
def _swiglu_fake(u):
    return u.new_empty(u.shape[0], u.shape[1] // 2)


def swiglu(u: torch.Tensor) -> torch.Tensor:
    """Gate one half of each row with the other: silu(u[:, :F]) * u[:, F:].

    Args:
        u: (M, 2F) bfloat16, float16 or float32; rows may be strided.

    Returns:
        (M, F) in u's dtype, row-major.

    Raises:
        ValueError: u has another shape or dtype.
        KernelError: u is on CUDA and the Triton kernel cannot run there (kernels.backend).
    """
    _check("swiglu", u)
    return _swiglu(u)


@torch.library.custom_op("dit8::swiglu_quant", mutates_args=(), device_types="cpu")
def _swiglu_quant(
    u: torch.Tensor, smooth: torch.Tensor | None, rotation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return quant_rows_reference(swiglu_reference(u), smooth, rotation)


@_swiglu_quant.register_kernel("cuda")
def _swiglu_quant_cuda(u, smooth, rotation):
    backend_name(u.device)
    from dit8.kernels.swiglu_triton import choose_config, launch

    codes = u.new_empty(u.shape[0], u.shape[1] // 2, dtype=torch.int8)
    x_scale = u.new_empty(u.shape[0], dtype=torch.float32)
    config = choose_config(codes.shape[1], rotation, smooth is not None)
    with torch.cuda.device(u.device):
        launch(u, smooth, rotation, None, codes, x_scale, config)
    return codes, x_scale


@_swiglu_quant.register_fake
def _swiglu_quant_fake(u, smooth, rotation):
    codes = u.new_empty(u.shape[0], u.shape[1] // 2, dtype=torch.int8)
    return codes, u.new_empty(u.shape[0], dtype=torch.float32)


def swiglu_quant(
    u: torch.Tensor, *, smooth: torch.Tensor | None = None, rotation: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate one half of each row with the other and quantize the result.

    Args:
        u: (M, 2F) bfloat16, float16 or float32; rows may be strided.
        smooth: (F,) float32 divisor of silu(gate) * up, or None.
        rotation: group of the Hadamard rotation of silu(gate) * up, 0 for none.

    Returns:
        codes: (M, F) int8, and x_scale: (M,) float32, as `quant_rows` makes them from the fp32 row
            (a few codes beside a tie may differ by one between CPU and CUDA: the exponential does).

    Raises:
        ValueError: a shape, dtype or device breaks the signature.
        KernelError: u is on CUDA and the Triton kernel cannot run there (kernels.backend).
    """
    _check("swiglu_quant", u)
    check_before_codes("swiglu_quant", u[:, : u.shape[1] // 2], smooth, rotation)
    return _swiglu_quant(u, smooth, rotation)
