"""Plant outlier channels that change no output: a test-bed for smoothing and protection.

For a few channels j of an activation, multiply what produces channel j by a power of two f and
divide column j of every linear that reads it by f. In floating point the output stays the same bit
for bit (every product is the old one; only exponents move), yet the activation now has channels
f times larger, which is what int8 activations suffer from in large models.

Such outliers are static, per channel, and exactly what SmoothQuant-style division removes; a real
model's are partly token- and step-dependent. Results on a planted model say that the laboratory
detects and repairs outliers, nothing about any other model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dit8.quant.smoothquant import fold
from dit8.quant.types import Architecture, Group


@dataclass(frozen=True)
class Planted:
    """What was done to one activation."""

    group: str
    channels: tuple[int, ...]
    factors: tuple[float, ...]  # one per channel


def plant_outliers(
    state_dict: Mapping[str, torch.Tensor],
    architecture: Architecture,
    seed: int,
    fraction: float = 0.01,
    factors: Sequence[float] = (8.0, 16.0, 32.0, 64.0),
    groups: Sequence[Group] | None = None,
) -> tuple[dict[str, torch.Tensor], tuple[Planted, ...]]:
    """Make chosen channels of chosen activations larger without changing the function.

    Args:
        state_dict: one branch, any floating dtype; left as it is.
        architecture: describes the branch.
        seed: the channels and their factors depend on it and the shapes alone.
        fraction: of the channels of each activation, at least one channel.
        factors: powers of two >= 1; each channel draws one.
        groups: where to plant; None for all with a source: norm -> linears, rows of to_v ->
            to_out, rows of w3 -> w2, text norm -> text projection.

    Returns:
        the new state dict, and what was planted, group by group.

    Raises:
        ValueError: `fraction` outside (0, 1], or a factor that is no power of two >= 1.
        UserError: a value would leave its dtype's range, so the function would change.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"plant_outliers: fraction must lie in (0, 1], got {fraction}")
    if not factors or any(f < 1 or math.frexp(f)[0] != 0.5 for f in factors):
        raise ValueError(f"plant_outliers: factors must be powers of two >= 1, got {factors}")
    generator = torch.Generator().manual_seed(seed)
    chosen = [g for g in architecture.groups if g.source] if groups is None else groups
    scales, planted = {}, []
    for group in chosen:
        width = state_dict[f"{group.targets[0]}.weight"].shape[1]
        count = max(1, round(fraction * width))
        channels = torch.randperm(width, generator=generator)[:count]
        drawn = torch.randint(len(factors), (count,), generator=generator)
        values = torch.tensor(factors, dtype=torch.float32)[drawn]
        scale = torch.ones(width)
        scale[channels] = 1.0 / values  # folding divides the source
        scales[group.name] = scale
        planted.append(Planted(group.name, tuple(channels.tolist()), tuple(values.tolist())))
    return fold(state_dict, chosen, scales, exact=True), tuple(planted)
