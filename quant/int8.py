"""The one definition of an int8 code: symmetric, one scale per row, fp32 arithmetic.

    scale = max|row| / 127        code = round_half_even(row / scale), in [-127, 127]

Symmetric per-channel weights and per-token activations as in SmoothQuant, arXiv:2211.10438, O1.
-128 is left out, so that a code and its negative both exist and |sum| <= K * 127^2 stays in int32
up to K = 133,144. Scale and division stay in fp32 whatever the input's dtype: a bf16 scale alone
costs about a third more error.

Beside it, how far a tensor moved: ||(A - B) diag(c)||_F / ||A diag(c)||_F.
"""

import math
from collections.abc import Iterable

import torch

from dit8.kernels.quant_rows import quant_rows_reference
from dit8.quant.errors import UserError

CODE_MAX = 127
BLOCK_VALUES = 2**20  # rows are worked on so many values at a time: fp32 temporaries of 4 MiB


def _round(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Round fp32 x / scales to codes, still fp32."""
    return (x / scales).round_().clamp_(-CODE_MAX, CODE_MAX)


def quantize_weight(
    weight: torch.Tensor, name: str = "weight", *, per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight, one scale per output channel.

    In blocks of rows that stay in the cache: 2000 M weights/s on one core of an AMD EPYC, against
    130 with temporaries as large as the weight. Every code depends on its own row alone (and on
    the largest magnitude of all, if `per_tensor`).

    Args:
        weight: (N, K) floating, upcast to fp32.
        name: of the linear, for the message.
        per_tensor: one scale for the whole weight, repeated N times: the strawman that shows what
            a scale per channel is worth.

    Returns:
        codes (N, K) int8 in [-127, 127], scales (N,) fp32 > 0; weight ~ codes * scales[:, None].

    Raises:
        ValueError: not a floating matrix, or an empty one.
        UserError: a value is NaN or infinite in fp32.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(
            f"quantize_weight: {name} must be a floating (N, K) matrix, "
            f"got {tuple(weight.shape)} {weight.dtype}"
        )
    rows = max(1, BLOCK_VALUES // weight.shape[1])
    # amax propagates NaN
    absmax = torch.cat([block.float().abs().amax(dim=1) for block in weight.split(rows)])  # (N,)
    if not torch.isfinite(absmax).all():
        raise UserError(
            f"quantize_weight: {name} {tuple(weight.shape)} must be finite, got NaN or infinity; "
            "check the source checkpoint"
        )
    if per_tensor:
        absmax = absmax.amax().repeat(len(absmax))
    scales = absmax / CODE_MAX
    scales.masked_fill_(scales == 0, 1.0)  # zeros, and a step that is no fp32 number any more
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for block, scale, out in zip(
        weight.split(rows), scales.split(rows), codes.split(rows), strict=True
    ):
        out.copy_(_round(block.float(), scale[:, None]))
    return codes, scales


def quantize_rows(
    x: torch.Tensor, smooth: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize an activation, one scale per row, after dividing its channels by `smooth`.

    Args:
        x: (..., K) floating, upcast to fp32.
        smooth: (K,) fp32 > 0, or None.

    Returns:
        codes (..., K) int8 in [-127, 127], scales (..., 1) fp32; x / smooth ~ codes * scales. A
        row with NaN or infinity has codes 0 and scale NaN, so that its product is NaN. Plain torch
        on every device; `kernels.quant_rows.quant_rows` gives the same bits by one kernel.

    Raises:
        ValueError: K is 0.
    """
    _check_columns(x)
    codes, scales = quant_rows_reference(x.reshape(-1, x.shape[-1]), smooth)
    return codes.reshape(x.shape), scales.reshape(*x.shape[:-1], 1)


def quantize_static(
    x: torch.Tensor, scale: torch.Tensor, smooth: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize an activation with one scale that was calibrated beforehand.

    Values beyond 127 * scale saturate, and a small row uses few of the codes: this is the strawman
    that dynamic scales are measured against, so it has no kernel of its own.

    Args:
        x: (..., K) floating, upcast to fp32.
        scale: () fp32 > 0: the largest magnitude seen in calibration / 127. Its value is not
            looked at.
        smooth: (K,) fp32 > 0 divisor of the channels, or None.

    Returns:
        as `quantize_rows`: codes (..., K) int8 in [-127, 127], scales (..., 1) fp32, all equal to
        `scale` but NaN for a row with NaN or infinity, which has codes 0.

    Raises:
        ValueError: K is 0, or the scale is not one fp32 value.
    """
    if scale.shape != () or scale.dtype != torch.float32:
        raise ValueError(
            f"quantize_static: scale must be () float32, got {tuple(scale.shape)} {scale.dtype}"
        )
    _check_columns(x)
    x = x.float() if smooth is None else x.float() / smooth
    broken = ~x.abs().amax(dim=-1, keepdim=True).isfinite()
    # The cast of NaN to an integer is undefined; scale NaN keeps the row from passing for a number.
    codes = _round(x, scale).masked_fill_(broken, 0).to(torch.int8)
    return codes, scale.expand(broken.shape).masked_fill(broken, torch.nan)


def _check_columns(x: torch.Tensor) -> None:
    if x.shape[-1] == 0:
        raise ValueError(f"int8: rows must have at least one column, got {tuple(x.shape)}")


def dequantize(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply codes by their scales in fp32, then round once to `dtype`.

    Args:
        codes: (..., K) int8.
        scales: fp32, broadcastable to codes: (..., 1), so a weight's scales need `[:, None]`.
    """
    return (codes.float() * scales).to(dtype)


def relative_error(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """Compare two tensors: ||A - B||_F / ||A||_F, in fp64; 0 for a zero A.

    Args:
        reference: of at least one dimension.
        approximation: of the same shape.
    """
    rows = max(1, BLOCK_VALUES * len(reference) // max(1, reference.numel()))
    return relative_of(
        (float((a.double() - b.double()).square().sum()), float(a.double().square().sum()))
        for a, b in zip(reference.split(rows), approximation.split(rows), strict=True)
    )


def error_squares(
    rows: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    column_scale: torch.Tensor | None = None,
) -> tuple[float, float]:
    """Return the squared error and the squared norm of one block.

    fp32 inside a block (half a million terms, relative rounding about 1e-6).

    Args:
        rows: (R, K) fp32, the exact weight.
        codes: (R, K) int8.
        scales: (R,) fp32.
        column_scale: (K,) or None for ones; with the input's largest magnitudes the result
            estimates the relative error of the linear's output rather than of its weight.
    """
    error = torch.addcmul(rows, codes.float(), scales[:, None], value=-1)
    if column_scale is not None:
        column_scale = column_scale.to(rows.device)
        error, rows = error * column_scale, rows * column_scale
    return tuple(float(torch.linalg.vector_norm(x)) ** 2 for x in (error, rows))


def relative_of(squares: Iterable[tuple[float, float]]) -> float:
    """Combine blocks in fp64, in order; 0 for a zero weight."""
    error = norm = 0.0
    for one, other in squares:
        error += one
        norm += other
    return math.sqrt(error / norm) if norm > 0 else 0.0
