"""How far int8 moves a weight: ||(W - W_int8) diag(c)||_F / ||W diag(c)||_F, over row blocks."""

import math
from collections.abc import Iterable

import torch


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
