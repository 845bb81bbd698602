"""How far int8 moves a weight: ||(W - W_int8) diag(c)||_F / ||W diag(c)||_F, over row blocks."""

import math

import torch


class ErrorSum:
    """Accumulate the relative error block by block.

    fp32 inside a block (at most 128 x 53,248 terms, relative rounding about 1e-6), fp64 between.
    """

    def __init__(self) -> None:
        self._error = self._norm = 0.0

    def add(
        self,
        rows: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor,
        column_scale: torch.Tensor | None = None,
    ) -> None:
        """Add a block.

        Args:
            rows: (R, K) fp32, the exact weight.
            codes: (R, K) int8.
            scales: (R,) fp32.
            column_scale: (K,) or None for ones; with the input's largest magnitudes the result
                estimates the relative error of the linear's output rather than of its weight.
        """
        error = rows - codes.float() * scales[:, None]
        if column_scale is not None:
            column_scale = column_scale.to(rows.device)
            error, rows = error * column_scale, rows * column_scale
        self._error += float(torch.linalg.vector_norm(error)) ** 2
        self._norm += float(torch.linalg.vector_norm(rows)) ** 2

    def relative(self) -> float:
        """Return the ratio; 0 for a zero weight."""
        return math.sqrt(self._error / self._norm) if self._norm > 0 else 0.0
