"""Round weights to few bits in place: how much of a model's quality hangs on its weights.

    w_int = clamp(round(w / s), -Q, Q),   s = rowmax |w| / Q,   Q = 2^(bits - 1) - 1

per output channel, round half to even, fp32 arithmetic. It stores nothing smaller and runs nothing
faster: a probe that tells whether a model and a score can see coarse weights at all.
"""

import torch
from torch import nn

from dit8.quant.errors import UserError
from dit8.quant.types import Architecture

MAGNITUDE_BITS = -0x4001  # as int16 0xBFFF: all but bit 14, the top bit of an fp16 exponent


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


def e4m3_to_float(values: torch.Tensor) -> torch.Tensor:
    """Convert e4m3 to fp32 exactly, on a CPU about ten times faster than torch's cast.

    fp16 has the same sign and one more exponent bit. Shifted left by 7, an e4m3 code is therefore
    the fp16 of the same sign and fields; as the exponents' biases are 7 and 15, its value is
    2^-8 of the true one, subnormals included. Both codes of NaN would become 480: a tensor that
    has one goes through the cast, as does one on a GPU.

    Args:
        values: float8_e4m3fn, any shape.

    Returns:
        fp32 of the same shape; NaN where the code is NaN.
    """
    codes = values.view(torch.int8)
    if values.device.type != "cpu" or values.numel() == 0:
        return values.float()
    # 0x7F and 0xFF are NaN: the largest code read with a sign, and the largest read without.
    if int(codes.max()) == 0x7F or int(values.view(torch.uint8).max()) == 0xFF:
        return values.float()
    # The sign is extended to bits 15..7, so that the product has it in 15 and 14; 14 is cleared.
    bits = codes.to(torch.int16).mul_(2**7).bitwise_and_(MAGNITUDE_BITS)
    return bits.view(torch.float16).float().mul_(2.0**8)
