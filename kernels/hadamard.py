"""Spread outlier channels over a group of channels, on both sides of a product.

    x W^T = (x R)(W R)^T,   R = diag(H, ..., H),   H = H^T = H^-1 of order g = 4^p

Because R is orthogonal the product is unchanged in real arithmetic, whatever the data: nothing is
calibrated. W R is made once, when the weight is quantized; x R at run time, before the activation
is rounded. One channel of size a becomes g channels of size a / sqrt(g), so its row needs a scale
that is up to sqrt(g) = 16 times smaller. This is the group-wise rotation of ConvRot,
arXiv:2512.03673, with 8 bits instead of 4, and the matrix of comfy-kitchen's "convrot" weights.

H is the p-fold Kronecker power of h / 2, h = J - 2P of order 4 with J all ones and P the exchange
matrix. It is *regular*: every row and column of H sums to 1. The usual Sylvester matrix has a
column of ones instead, so it sums a group's common offset m into one coefficient sqrt(g) m and
makes an outlier where there was none; a regular one gives m to every coefficient. No orthogonal
matrix is safe from all inputs: this one gathers a group that looks like one of its own rows.

The entries are +-2^-p, so every product is exact and only the sums are rounded. One core of an AMD
EPYC: 190 M values/s for g = 256, fp32.
"""

import functools

import torch

from dit8.kernels.backend import KernelError

SMALLEST_GROUP = 4
LARGEST_GROUP = 256


@functools.cache
def _build(group: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # the cached tensor must serve autograd as well
        one = torch.ones(4, 4, dtype=dtype, device=device)
        seed = one - 2 * torch.eye(4, dtype=dtype, device=device).flip(0)
        matrix = seed
        while matrix.shape[0] < group:
            matrix = torch.kron(matrix, seed)
        return matrix / group**0.5


def regular_hadamard(group: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return H, made once for each order, device and dtype: do not write to it.

    Args:
        group: the order, a power of 4.
        device: where it lies.
        dtype: float32 or float64; its entries +-1/sqrt(group) are exact in either.

    Returns:
        (group, group), symmetric, its own inverse, rows and columns summing to 1.

    Raises:
        ValueError: the order is no power of 4 from 4 on.
    """
    if not _is_power_of_4(group):
        raise ValueError(f"regular_hadamard: group must be a power of 4 >= 4, got {group}")
    return _build(group, device, dtype)


# As torch.compiler.assume_constant_result does, without its import of Dynamo (1.3 s a process):
# Dynamo would trace into a cached function and build the matrix anew in every compiled call.
regular_hadamard._dynamo_marked_constant = True


def _is_power_of_4(group: int) -> bool:
    return group >= SMALLEST_GROUP and group & (group - 1) == 0 and group.bit_length() % 2 == 1


def is_group(k: int, group: int) -> bool:
    """Tell whether rows of K values can be rotated in groups of this order."""
    return _is_power_of_4(group) and k > 0 and k % group == 0


def check_group(k: int, group: int) -> None:
    """Make sure that rows of K values can be rotated in groups of this order.

    Raises:
        KernelError: the group is no power of 4 from 4 on, or does not divide K.
    """
    if not is_group(k, group):
        raise KernelError(
            f"rotate: the group must be a power of 4 >= 4 that divides K={k}, got {group}; take "
            "the group that kernels.hadamard.largest_group names, or do not rotate this linear"
        )


def largest_group(k: int, limit: int = LARGEST_GROUP) -> int:
    """Find the largest power of 4 that divides K: the larger the group, the flatter the row.

    Args:
        k: in features.
        limit: the group is at most this. 256 is what comfy-kitchen's fused int8 kernels take.

    Returns:
        a power of 4 from 4 to `limit`.

    Raises:
        KernelError: not even 4 divides K, or `limit` is below 4.
    """
    group = SMALLEST_GROUP
    while group * 4 <= limit and k % (group * 4) == 0:
        group *= 4
    if group > limit or not is_group(k, group):
        raise KernelError(
            f"largest_group: K must be divisible by a power of 4 from 4 to {limit}, got K={k}; "
            "leave this linear out of the rotation"
        )
    return group


def rotate(x: torch.Tensor, group: int) -> torch.Tensor:
    """Multiply every group of the last dimension by H; doing it twice gives x back.

    Args:
        x: (..., K) floating; a weight's rows or an activation's.
        group: order of H, a power of 4 that divides K.

    Returns:
        (..., K) in x's dtype: summed in fp32 (fp64 for fp64) and rounded once. NaN and infinity
        spread over their group. BLAS chooses the order of the sums, so the last fp32 bit may
        differ from one machine to another.

    Raises:
        ValueError: x is not floating.
        KernelError: as `check_group`.
    """
    if not x.is_floating_point():
        raise ValueError(f"rotate: x must be (..., K) floating, got {tuple(x.shape)} {x.dtype}")
    check_group(x.shape[-1], group)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    matrix = regular_hadamard(group, x.device, compute)
    with torch.autocast(x.device.type, enabled=False):  # it would multiply in bf16
        groups = x.to(compute).unflatten(-1, (-1, group))  # (..., K / group, group)
        return (groups @ matrix).flatten(-2).to(x.dtype)
