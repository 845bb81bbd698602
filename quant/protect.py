"""Choose the down-projections that stay unquantized: the ones whose input has a few huge channels.

The FFN's down-projection reads silu(w1 x) * (w3 x), a product with no norm behind it, which is
where a DiT's outlier channels are. The papers (arXiv 2606.12280, 2606.14598) keep 17 of 34 per
branch in bf16; protecting 8 lost 1.4 CLIP. The rank is by crest: channel max / channel median of
the input, the largest over denoising steps, because one bad step spoils the picture.
"""

from collections.abc import Mapping

import torch

from dit8.quant.errors import UserError
from dit8.quant.files import over_blocks
from dit8.quant.int8 import quantize_weight
from dit8.quant.source import StoredWeight
from dit8.quant.types import RankedLayer
from dit8.quant.weight_error import error_squares, relative_of


def rounding_damage(weight: StoredWeight, act_absmax: torch.Tensor) -> float:
    """Estimate the relative output error that int8 rounding of the weight makes.

    ||(W - W_int8) diag(a)||_F / ||W diag(a)||_F with a the largest magnitudes of the input
    channels: the output error if channels were independent and as large as in the calibration.

    Args:
        weight: (N, K), unsmoothed.
        act_absmax: (K,).

    Returns:
        a ratio >= 0. It does not measure the error of rounding the activation; crest does.
    """

    def squares(block: tuple[int, int]) -> tuple[float, float]:
        rows = weight.rows(*block)
        return error_squares(rows, *quantize_weight(rows), act_absmax)

    return relative_of(over_blocks(squares, weight.blocks()))


def rank_layers(crests: Mapping[str, float], damages: Mapping[str, float]) -> list[RankedLayer]:
    """Sort layers by crest, largest first; equal crests by damage, then by name."""
    layers = [RankedLayer(name, crest, damages[name]) for name, crest in crests.items()]
    return sorted(layers, key=lambda layer: (-layer.crest, -layer.damage, layer.name))


def protected_count(protect: str | int, layers: int) -> int:
    """Turn "half" into floor(layers / 2), or check a count.

    Raises:
        UserError: the count exceeds the layers.
    """
    count = layers // 2 if protect == "half" else int(protect)
    if count > layers:
        raise UserError(
            f"protected_count: protect must be at most {layers}, the down-projections of a branch, "
            f"got {count}; use half"
        )
    return count
