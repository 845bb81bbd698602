"""Decode a weight stored in few bits in one pass, where Triton runs.

What the bits mean is `quant.formats`'s affair, whose `decode` functions are the reference. They ask
`has_kernel` and call `decode_into`, which gives the same bits in less time. This is no fallback
that changes a number, so it has no name in the ledger.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import torch

from dit8.kernels.backend import OLDEST_CAPABILITY

# format -> elements of its stored tensors for a weight (N, K)
SIZES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "fp8": lambda n, k: (n * k, n),  # values, scales
    "q8_0": lambda n, k: (n * (k // 32) * 34,),
    "q4_k": lambda n, k: (n * (k // 256) * 144,),
    "nf4": lambda n, k: (n * k // 2, n * k // 64, 16),  # codes, absmax, levels
}
CODES = (torch.uint8, torch.float8_e4m3fn)


@cache
def has_kernel(device: torch.device) -> bool:
    """Tell whether the kernels run on a device: a GPU of compute capability 8.0 on, with Triton."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def decode_into(name: str, stored: Sequence[torch.Tensor], weight: torch.Tensor) -> None:
    """Decode into `weight`.

    Args:
        name: fp8, q8_0, q4_k or nf4.
        stored: on a device that `has_kernel` accepts: fp8 (N, K) float8_e4m3fn and (N,) fp32; q8_0
            (N, K / 32 * 34) and q4_k (N, K / 256 * 144) uint8; nf4 its codes uint8, absmax and
            levels fp32.
        weight: (N, K) floating, contiguous, there too; written.

    Raises:
        ValueError: an unknown name, or tensors of other sizes or dtypes; a kernel would read beyond
            their ends.
    """
    from dit8.kernels.decode_triton import choose_config, launch

    if name not in SIZES:
        raise ValueError(f"decode_into: name must be among {', '.join(SIZES)}, got {name!r}")
    wanted = SIZES[name](*weight.shape)
    got = tuple(tensor.numel() for tensor in stored)
    floats = all(tensor.dtype == torch.float32 for tensor in stored[1:])
    if got != wanted or stored[0].dtype not in CODES or not floats:
        dtypes = ", ".join(str(tensor.dtype) for tensor in stored)
        raise ValueError(
            f"decode_into: {name} of {tuple(weight.shape)} must have {wanted} elements, the first "
            f"tensor of bytes and others of float32, got {got} of {dtypes}"
        )
    contiguous = [tensor.contiguous() for tensor in stored]
    # Triton launches on the current device, whichever the pointers belong to
    with torch.cuda.device(weight.device):
        launch(name, contiguous, weight, choose_config(name, weight.shape[1]))
