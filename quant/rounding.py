"""Round weights to few bits in place: how much of a model's quality hangs on its weights.

    w_int = clamp(round(w / s), -Q, Q),   s = rowmax |w| / Q,   Q = 2^(bits - 1) - 1

per output channel, round half to even, fp32 arithmetic. It stores nothing smaller and runs nothing
faster: a probe that tells whether a model and a score can see coarse weights at all.
"""

import torch
from torch import nn

from dit8.quant.errors import UserError
from dit8.quant.types import Architecture


def round_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Round a (N, K) weight to `bits` bits per output channel, in its own dtype.

    Raises:
        UserError: `bits` outside 2..8.
    """
    if not 2 <= bits <= 8:
        raise UserError(f"round_weight: bits must lie in 2..8, got {bits}")
    largest = 2 ** (bits - 1) - 1
    exact = weight.float()
    scale = exact.abs().amax(dim=1, keepdim=True) / largest  # (N, 1)
    scale = torch.where(scale == 0, 1.0, scale)
    return ((exact / scale).round().clamp(-largest, largest) * scale).to(weight.dtype)


@torch.no_grad()
def round_linears(module: nn.Module, architecture: Architecture, bits: int) -> int:
    """Round every block linear of a branch in place; returns how many.

    The text projection is no block linear and stays.
    """
    names = [name for g in architecture.groups if g.role == "block" for name in g.targets]
    for name in names:
        weight = module.get_submodule(name).weight
        weight.copy_(round_weight(weight, bits))
    return len(names)
