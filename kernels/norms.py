"""RMSNorm times modulation, and the gated residual around it: the rows between two linears.

    n(x)[m, k]   = x[m, k] * rsqrt(mean_k x[m, k]^2 + eps)
    modulated    = n(x) * weight * scale                       (scale = 1 + s of adaLN)
    h'           = h + gate * n(y) * weight                    (gate = tanh of adaLN)
    normed'      = n(h') * next_weight * next_scale

RMSNorm is arXiv:1910.07467, eq. 4; the sandwich of a norm before and one after each sublayer, with
adaLN's scale and gate and no shift, is Ideogram 4's block (diffusers `Ideogram4TransformerBlock`).

Each op is one pass over the row in fp32 with one rounding at the end; `normed'` is made from h' as
it is stored, so that the block's own later reading of h' sees the same number.

Why one kernel: between the projection that ends a sublayer and the one that starts the next, torch
reads and writes rows 15 times (two norms, two products each, tanh gate, sum, then absmax, division
and rounding to codes). One pass reads h and y and writes h' and the codes: 7 bytes a value instead
of about 40, at (4396, 4608) 142 MB instead of 0.8 GB, four times a block.
"""

import torch

from dit8.kernels.backend import backend_name
from dit8.kernels.quant_rows import X_DTYPES, check_before_codes, describe, quant_rows_reference

Tensor = torch.Tensor
MaybeTensor = torch.Tensor | None


def _normalize(x: Tensor, eps: float) -> Tensor:  # (M, K) any -> float32
    x = x.to(torch.float32)
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)


def modulated_norm_reference(x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Compute n(x) * weight * scale in plain torch: (M, K) float32, not yet rounded."""
    return _normalize(x, eps) * weight.to(torch.float32) * scale.to(torch.float32)


def gated_residual_reference(
    h: Tensor, y: Tensor, weight: Tensor, gate: Tensor, eps: float
) -> Tensor:
    """Compute h + gate * n(y) * weight in plain torch: (M, K) in h's dtype, row-major."""
    branch = _normalize(y, eps) * weight.to(torch.float32) * gate.to(torch.float32)
    return (h.to(torch.float32) + branch).to(h.dtype).contiguous()


def _check(op: str, rows: dict[str, Tensor], vectors: dict[str, Tensor]) -> None:
    """Raise ValueError on the first argument that breaks the signature of `op`."""
    (first, x), *_ = rows.items()
    for name, tensor in rows.items():
        if tensor.dtype not in X_DTYPES or tensor.ndim != 2 or tensor.shape[1] == 0:
            raise ValueError(
                f"{op}: {name} must be (M, K) bfloat16, float16 or float32 with K >= 1, got "
                f"{describe(tensor)}; flatten the leading dimensions"
            )
        if (tensor.shape, tensor.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"{op}: {name} must be {describe(x)} like {first}, got {describe(tensor)}; "
                "pass both from one block"
            )
    for name, tensor in vectors.items():
        if tensor.dtype not in X_DTYPES or tensor.shape != x.shape[1:]:
            raise ValueError(
                f"{op}: {name} must be (K,) bfloat16, float16 or float32 with K={x.shape[1]}, got "
                f"{describe(tensor)}; pass one vector for all rows"
            )
    for name, tensor in (rows | vectors).items():
        if tensor.device != x.device:
            raise ValueError(
                f"{op}: {name} must be on {x.device} like {first}, got {tensor.device}; "
                "move the block and its input to one device"
            )


def _launch(h, eps, *, y=None, weight=None, gate=None, norm=None, codes=None, smooth=None, rot=0):
    """Run the Triton kernel; returns (h', values, codes, x_scale), None for what is not asked."""
    backend_name(h.device)  # raises where the kernel cannot run: there is no other path to take
    from dit8.kernels.norms_triton import choose_config, launch

    def empty(dtype, shape=h.shape):
        return torch.empty(shape, dtype=dtype, device=h.device)

    h_out = None if y is None else empty(h.dtype)
    values = empty(h.dtype) if norm and not codes else None
    codes, x_scale = (
        (empty(torch.int8), empty(torch.float32, h.shape[:1])) if codes else (None,) * 2
    )
    next_weight, next_scale = norm or (None, None)
    vectors = (weight, gate, next_weight, next_scale, smooth)
    config = choose_config(h.shape[1], rot, y is not None)
    with torch.cuda.device(h.device):
        launch(h, y, *vectors, rot, eps, h_out, values, codes, x_scale, config)
    return h_out, values, codes, x_scale


@torch.library.custom_op("dit8::modulated_norm", mutates_args=(), device_types="cpu")
def _modulated_norm(x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> Tensor:
    return modulated_norm_reference(x, weight, scale, eps).to(x.dtype, copy=True).contiguous()


@_modulated_norm.register_kernel("cuda")
def _modulated_norm_cuda(x, weight, scale, eps):
    return _launch(x, eps, norm=(weight, scale))[1]


@_modulated_norm.register_fake
def _modulated_norm_fake(x, weight, scale, eps):
    return x.new_empty(x.shape)


def modulated_norm(x: Tensor, weight: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """Normalize each row of x and modulate it: n(x) * weight * scale, arXiv:1910.07467, eq. 4.

    Args:
        x: (M, K) bfloat16, float16 or float32; rows may be strided.
        weight: (K,) floating, the norm's weight.
        scale: (K,) floating, adaLN's 1 + s.
        eps: added to the mean square.

    Returns:
        (M, K) in x's dtype, row-major.

    Raises:
        ValueError: a shape, dtype or device breaks the signature.
        KernelError: x is on CUDA and the Triton kernel cannot run there (kernels.backend).
    """
    _check("modulated_norm", {"x": x}, {"weight": weight, "scale": scale})
    return _modulated_norm(x, weight, scale, eps)


@torch.library.custom_op("dit8::modulated_norm_quant", mutates_args=(), device_types="cpu")
def _modulated_norm_quant(
    x: Tensor, weight: Tensor, scale: Tensor, eps: float, smooth: MaybeTensor, rotation: int
) -> tuple[Tensor, Tensor]:
    return quant_rows_reference(modulated_norm_reference(x, weight, scale, eps), smooth, rotation)


@_modulated_norm_quant.register_kernel("cuda")
def _modulated_norm_quant_cuda(x, weight, scale, eps, smooth, rotation):
    norm = (weight, scale)
    return _launch(x, eps, norm=norm, codes=True, smooth=smooth, rot=rotation)[2:]


@_modulated_norm_quant.register_fake
def _modulated_norm_quant_fake(x, weight, scale, eps, smooth, rotation):
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)


def modulated_norm_quant(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    *,
    eps: float,
    smooth: MaybeTensor = None,
    rotation: int = 0,
) -> tuple[Tensor, Tensor]:
    """Normalize and modulate each row of x and quantize it: codes of n(x) * weight * scale.

    Args:
        x: (M, K) bfloat16, float16 or float32; rows may be strided.
        weight: (K,) floating, the norm's weight.
        scale: (K,) floating, adaLN's 1 + s.
        eps: added to the mean square.
        smooth: (K,) float32 divisor of the normed row, or None.
        rotation: group of the Hadamard rotation of the normed row, 0 for none.

    Returns:
        codes: (M, K) int8, and x_scale: (M,) float32, as `quant_rows` makes them from the fp32 row
            (a few codes beside a tie may differ by one between CPU and CUDA: the sums differ).

    Raises:
        ValueError: a shape, dtype or device breaks the signature.
        KernelError: x is on CUDA and the Triton kernel cannot run there (kernels.backend).
    """
    _check("modulated_norm_quant", {"x": x}, {"weight": weight, "scale": scale})
    check_before_codes("modulated_norm_quant", x, smooth, rotation)
    return _modulated_norm_quant(x, weight, scale, eps, smooth, rotation)


@torch.library.custom_op("dit8::gated_residual", mutates_args=(), device_types="cpu")
def _gated_residual(h: Tensor, y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    return gated_residual_reference(h, y, weight, gate, eps)


@_gated_residual.register_kernel("cuda")
def _gated_residual_cuda(h, y, weight, gate, eps):
    return _launch(h, eps, y=y, weight=weight, gate=gate)[0]


@_gated_residual.register_fake
def _gated_residual_fake(h, y, weight, gate, eps):
    return h.new_empty(h.shape)


def gated_residual(h: Tensor, y: Tensor, weight: Tensor, gate: Tensor, *, eps: float) -> Tensor:
    """Add a sublayer's normed and gated output to the stream: h + gate * n(y) * weight.

    Args:
        h: (M, K) bfloat16, float16 or float32, the residual stream; left alone.
        y: (M, K) in h's dtype, the sublayer's output.
        weight: (K,) floating, the weight of the norm behind the sublayer.
        gate: (K,) floating, adaLN's gate after tanh.
        eps: added to the mean square.

    Returns:
        (M, K) in h's dtype, row-major.

    Raises:
        ValueError: a shape, dtype or device breaks the signature.
        KernelError: h is on CUDA and the Triton kernel cannot run there (kernels.backend).
    """
    _check("gated_residual", {"h": h, "y": y}, {"weight": weight, "gate": gate})
    return _gated_residual(h, y, weight, gate, eps)


@torch.library.custom_op("dit8::gated_residual_norm", mutates_args=(), device_types="cpu")
def _gated_residual_norm(
    h: Tensor,
    y: Tensor,
    weight: Tensor,
    gate: Tensor,
    next_weight: Tensor,
    next_scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    h = gated_residual_reference(h, y, weight, gate, eps)
    return h, modulated_norm_reference(h, next_weight, next_scale, eps).to(h.dtype)


@_gated_residual_norm.register_kernel("cuda")
def _gated_residual_norm_cuda(h, y, weight, gate, next_weight, next_scale, eps):
    norm = (next_weight, next_scale)
    return _launch(h, eps, y=y, weight=weight, gate=gate, norm=norm)[:2]


@_gated_residual_norm.register_fake
def _gated_residual_norm_fake(h, y, weight, gate, next_weight, next_scale, eps):
    return h.new_empty(h.shape), h.new_empty(h.shape)


def gated_residual_norm(
    h: Tensor,
    y: Tensor,
    weight: Tensor,
    gate: Tensor,
    next_weight: Tensor,
    next_scale: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Add a sublayer's output to the stream and norm it for the next sublayer.

    h' = h + gate * n(y) * weight and n(h') * next_weight * next_scale, from the rounded h'.

    Args:
        h, y, weight, gate, eps: as in `gated_residual`; eps serves both norms.
        next_weight, next_scale: (K,) floating, as weight and scale of `modulated_norm`.

    Returns:
        h': (M, K) and the normed rows: (M, K), both in h's dtype, row-major.

    Raises:
        ValueError: a shape, dtype or device breaks the signature.
        KernelError: h is on CUDA and the Triton kernel cannot run there (kernels.backend).
    """
    vectors = dict(weight=weight, gate=gate, next_weight=next_weight, next_scale=next_scale)
    _check("gated_residual_norm", {"h": h, "y": y}, vectors)
    return _gated_residual_norm(h, y, weight, gate, next_weight, next_scale, eps)


@torch.library.custom_op("dit8::gated_residual_norm_quant", mutates_args=(), device_types="cpu")
def _gated_residual_norm_quant(
    h: Tensor,
    y: Tensor,
    weight: Tensor,
    gate: Tensor,
    next_weight: Tensor,
    next_scale: Tensor,
    eps: float,
    smooth: MaybeTensor,
    rotation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    h = gated_residual_reference(h, y, weight, gate, eps)
    normed = modulated_norm_reference(h, next_weight, next_scale, eps)
    return h, *quant_rows_reference(normed, smooth, rotation)


@_gated_residual_norm_quant.register_kernel("cuda")
def _gated_residual_norm_quant_cuda(
    h, y, weight, gate, next_weight, next_scale, eps, smooth, rotation
):
    options = dict(codes=True, smooth=smooth, rot=rotation, norm=(next_weight, next_scale))
    h_out, _, codes, x_scale = _launch(h, eps, y=y, weight=weight, gate=gate, **options)
    return h_out, codes, x_scale


@_gated_residual_norm_quant.register_fake
def _gated_residual_norm_quant_fake(
    h, y, weight, gate, next_weight, next_scale, eps, smooth, rotation
):
    codes = h.new_empty(h.shape, dtype=torch.int8)
    return h.new_empty(h.shape), codes, h.new_empty(h.shape[:1], dtype=torch.float32)


def gated_residual_norm_quant(
    h: Tensor,
    y: Tensor,
    weight: Tensor,
    gate: Tensor,
    next_weight: Tensor,
    next_scale: Tensor,
    *,
    eps: float,
    smooth: MaybeTensor = None,
    rotation: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a sublayer's output to the stream, norm it for the next sublayer and quantize that.

    Args:
        h, y, weight, gate, next_weight, next_scale, eps: as in `gated_residual_norm`.
        smooth, rotation: as in `modulated_norm_quant`.

    Returns:
        h': (M, K) in h's dtype, codes: (M, K) int8, x_scale: (M,) float32.

    Raises:
        ValueError: a shape, dtype or device breaks the signature.
        KernelError: h is on CUDA and the Triton kernel cannot run there (kernels.backend).
    """
    vectors = dict(weight=weight, gate=gate, next_weight=next_weight, next_scale=next_scale)
    _check("gated_residual_norm_quant", {"h": h, "y": y}, vectors)
    check_before_codes("gated_residual_norm_quant", h, smooth, rotation)
    return _gated_residual_norm_quant(
        h, y, weight, gate, next_weight, next_scale, eps, smooth, rotation
    )
