"""Decode a weight stored in few bits, in one pass where Triton runs: before a product in bf16.

What the bits mean is `quant.formats`'s affair, whose `decode` functions are the reference. They ask
`has_kernel` and call `decode_into`, which gives the same bits in less time. This is no fallback
that changes a number, so it has no name in the ledger.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch

from kernels.backend import OLDEST_CAPABILITY


@cache
def has_kernel(device: torch.device) -> bool:
    """Tell whether the kernels run on a device: a GPU of compute capability 8.0 on, with Triton."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def decode_into(name: str, stored: Sequence[torch.Tensor], weight: torch.Tensor) -> None:
    """Decode into `weight`; see `kernels.decode_triton.launch` for the tensors of each format.

    Args:
        name: fp8, q8_0, q4_k or nf4.
        stored: on a device that `has_kernel` accepts.
        weight: (N, K) floating, contiguous, there too; written.
    """
    from kernels.decode_triton import choose_config, launch

    contiguous = [tensor.contiguous() for tensor in stored]
    launch(name, contiguous, weight, choose_config(name, weight.shape[1]))
