"""The one definition of an int8 code: symmetric, one scale per row, fp32 arithmetic.

    scale = max|row| / 127        code = round_half_even(row / scale), in [-127, 127]

Symmetric per-channel weights and per-token activations as in SmoothQuant, arXiv:2211.10438, O1.
-128 is left out, so that a code and its negative both exist and |sum| <= K * 127^2 stays in int32
up to K = 133,144. Scale and division stay in fp32 whatever the input's dtype: a bf16 scale alone
costs about a third more error.
"""

import math

import torch

from quant.errors import UserError

CODE_MAX = 127
ERROR_ROWS = 512


def _encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round fp32 (..., K) to codes (..., K) and scales (..., 1)."""
    if x.shape[-1] == 0:
        raise ValueError(f"int8: rows must have at least one column, got {tuple(x.shape)}")
    absmax = x.abs().amax(dim=-1, keepdim=True)  # (..., 1)
    scales = absmax / CODE_MAX
    # A row of zeros, or one so small that its step underflows, gets zero codes and scale 1.
    scales = scales.masked_fill(scales == 0, 1.0)
    broken = ~absmax.isfinite()
    scales = scales.masked_fill(broken, torch.nan)
    codes = torch.round(x / scales).clamp_(-CODE_MAX, CODE_MAX)
    # The cast of NaN to an integer is undefined; scale NaN keeps the row from passing for a number.
    codes = codes.masked_fill(broken, 0).to(torch.int8)
    return codes, scales


def quantize_weight(
    weight: torch.Tensor, name: str = "weight"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight, one scale per output channel.

    Args:
        weight: (N, K) floating, upcast to fp32.
        name: of the linear, for the message.

    Returns:
        codes (N, K) int8 in [-127, 127], scales (N,) fp32 > 0; weight ~ codes * scales[:, None].

    Raises:
        ValueError: not a floating matrix.
        UserError: a value is NaN or infinite in fp32.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"quantize_weight: {name} must be a floating (N, K) matrix, "
            f"got {tuple(weight.shape)} {weight.dtype}"
        )
    weight = weight.float()
    if not torch.isfinite(weight).all():
        raise UserError(
            f"quantize_weight: {name} {tuple(weight.shape)} must be finite, got NaN or infinity; "
            "check the source checkpoint"
        )
    codes, scales = _encode(weight)
    return codes, scales.squeeze(-1)


def quantize_rows(
    x: torch.Tensor, smooth: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize an activation, one scale per row, after dividing its channels by `smooth`.

    Args:
        x: (..., K) floating, upcast to fp32.
        smooth: (K,) fp32 > 0, or None.

    Returns:
        codes (..., K) int8 in [-127, 127], scales (..., 1) fp32; x / smooth ~ codes * scales. A
        row with NaN or infinity has codes 0 and scale NaN, so that its product is NaN. Equal bit
        for bit to `kernels.quant_rows.quant_rows`, which is the fast form for a GPU.
    """
    x = x.float()
    return _encode(x if smooth is None else x / smooth)


def dequantize(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply codes by their scales in fp32, then round once to `dtype`.

    Args:
        codes: (..., K) int8.
        scales: fp32, broadcastable to codes: (..., 1), so a weight's scales need `[:, None]`.
    """
    return (codes.float() * scales).to(dtype)


def relative_error(
    reference: torch.Tensor, approximation: torch.Tensor, column_scale: torch.Tensor | None = None
) -> float:
    """Compare two matrices: ||(A - B) diag(c)||_F / ||A diag(c)||_F, in fp64; 0 for a zero A.

    Args:
        reference: (N, K).
        approximation: (N, K).
        column_scale: (K,) or None for ones; with the input's largest magnitudes it estimates the
            relative error of the linear's output rather than of its weight.
    """
    weight = 1.0 if column_scale is None else column_scale.double()
    error = norm = 0.0
    # fp64 copies of ERROR_ROWS rows at a time: the text projection has 245 M weights.
    pairs = zip(reference.split(ERROR_ROWS), approximation.split(ERROR_ROWS), strict=True)
    for a, b in pairs:
        error += float(((a.double() - b.double()) * weight).square().sum())
        norm += float((a.double() * weight).square().sum())
    return math.sqrt(error / norm) if norm > 0 else 0.0
