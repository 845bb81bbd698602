"""Check that `.smooth` means what it is taken for: the divisor of the activation.

    y = (x / s) (W diag(s))^T          stored: s and the int8 codes of W diag(s)

A file whose `.smooth` is the factor of the activation instead looks the same and draws noise. With
the unquantized weight at hand the two readings are told apart by their distance to it. Without it:
smoothing multiplies large weights' columns by small s and the reverse, so the codes' columns are
more alike than W's; read the wrong way round, W's columns get the spread of s twice.
"""

import torch

from dit8.quant.errors import UserError
from dit8.quant.linear import Int8Linear

# int8 rounding moves a weight by about 1 %. Outliers make s and with it the rounding coarser: 9 %
# at an activation channel 1000 times the others, 27 % at 10,000. Another weight is 140 % away.
USUAL_ERROR, LARGEST_ERROR = 0.1, 0.5
# The wrong reading spreads columns by s^2 more than the right one. Only a clear case is refused:
SPREAD_RATIO = 4.0


def check_effective_weight(linear: Int8Linear, weight: torch.Tensor, name: str, where: str) -> None:
    """Compare wq * ws / smooth with the unquantized weight, or with what a weight looks like.

    Args:
        linear: with a `.smooth` vector.
        weight: (N, K) of the pipeline, perhaps without storage.
        name: of the linear, for the message.
        where: file and branch, for the message.

    Raises:
        UserError: the reading as a divisor cannot be right.
    """
    stored = linear.wq.float() * linear.ws[:, None]
    divided, multiplied = stored / linear.smooth, stored * linear.smooth
    if weight.is_meta:
        if _spread(divided) > SPREAD_RATIO * _spread(multiplied):
            raise UserError(
                f"load_quantized: {name}.smooth in {where} must be the divisor of the activation, "
                "got values that make the columns of the weight more unequal than the opposite "
                "reading does; invert the vectors, or quantize the model again"
            )
        return
    error = _distance(divided, weight)
    opposite = _distance(multiplied, weight)
    if error > LARGEST_ERROR or (error > USUAL_ERROR and opposite < error):
        advice = "invert the vectors" if opposite < LARGEST_ERROR else "quantize this model again"
        raise UserError(
            f"load_quantized: {name} in {where} must approximate the pipeline's weight once its "
            f"columns are divided by .smooth, got a relative difference of {error:.2f} (the "
            f"opposite reading: {opposite:.2f}); {advice}"
        )


def _spread(weight: torch.Tensor) -> float:
    """Largest column magnitude over the median one."""
    columns = weight.abs().amax(dim=0)
    return float(columns.amax() / columns.median().clamp(min=torch.finfo(torch.float32).tiny))


def _distance(approximation: torch.Tensor, weight: torch.Tensor) -> float:
    reference = weight.float()
    return float(
        torch.linalg.vector_norm(approximation - reference) / torch.linalg.vector_norm(reference)
    )
