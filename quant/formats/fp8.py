"""FP8 as the official weights store it: e4m3 values with one fp32 scale per output row.

    scale = max|row| / 448        value = e4m3(row / scale)        weight ~ value * scale

e4m3 ("fn": finite, NaN but no infinity) has 4 exponent and 3 mantissa bits and ends at 448; see
"FP8 Formats for Deep Learning", arXiv:2209.05433, section 3. Only the weight is stored so:
the linear runs in the dtype of its input, which makes this format the reference for quality and
not for speed.

A converter reads 18.6 G such values. torch's cast to fp32 is scalar code on a CPU, so
`e4m3_to_float` moves the bits instead. AMD EPYC (AVX-512), torch 2.13, (128, 4608), G values/s:

    threads    torch's cast    lookup (index_select)    e4m3_to_float
    1          0.38            1.8                      4.6
    2          0.74            -                        8.2
"""

from collections.abc import Mapping, Sequence

import torch

from dit8.kernels.decode import decode_into, has_kernel
from dit8.quant.errors import UserError
from dit8.quant.rounding import e4m3_to_float
from dit8.quant.types import Codec, TensorSpec

VALUE_MAX = 448.0  # the largest finite e4m3 value
BLOCK_VALUES = 2**19  # fp32 temporaries of 2 MiB, which stay in a core's cache


def refuse(n: int, k: int) -> str | None:
    """Accept every shape: a row is scaled by itself, whatever its length."""
    return None


def specs(n: int, k: int) -> dict[str, TensorSpec]:
    """List what is stored for a weight (n, k)."""
    return {
        ".weight": TensorSpec((n, k), torch.float8_e4m3fn),
        ".weight_scale": TensorSpec((n,), torch.float32),
    }


def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Round a weight to e4m3, ties to even.

    Args:
        weight: (N, K) fp32.

    Returns:
        ".weight" (N, K) float8_e4m3fn, ".weight_scale" (N,) fp32 > 0; a row of zeros, or one so
        small that its scale underflows, has zeros and scale 1.

    Raises:
        ValueError: not an fp32 matrix.
        UserError: a value is NaN or infinite.
    """
    if weight.ndim != 2 or weight.dtype != torch.float32 or weight.shape[1] == 0:
        raise ValueError(
            f"fp8: weight must be (N, K) float32, got {tuple(weight.shape)} {weight.dtype}"
        )
    n, k = weight.shape
    values = torch.empty(n, k, dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(n, dtype=torch.float32, device=weight.device)
    for rows, value, scale in _row_blocks(weight, values, scales):
        # Two reductions without a copy of |rows|; torch.aminmax along a row is 20 times slower.
        absmax = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
        if not absmax.isfinite().all():
            raise UserError(
                f"fp8: weight {(n, k)} must be finite, got NaN or infinity; "
                "check the source checkpoint"
            )
        scale.copy_(absmax / VALUE_MAX)
        scale.masked_fill_(scale == 0, 1.0)
        # A subnormal scale is rounded so coarsely that row / scale can reach 672. Past 464 the cast
        # gives 448 or NaN, depending on torch's release (2.13: 448, 2.11: NaN).
        value.copy_((rows / scale[:, None]).clamp_(-VALUE_MAX, VALUE_MAX))
    return {".weight": values, ".weight_scale": scales}


def decode(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Multiply the values by their row's scale in fp32, then round once.

    Args:
        tensors: as `encode` returns them.
        dtype: of the result, floating.

    Returns:
        (N, K) on the device of the tensors.
    """
    values, scales = tensors[".weight"], tensors[".weight_scale"]
    if has_kernel(values.device):
        weight = torch.empty(values.shape, dtype=dtype, device=values.device)
        decode_into("fp8", [values, scales], weight)
        return weight
    if values.device.type != "cpu":
        # Exact in every dtype of 16 bits and more; torch multiplies a mixed pair in fp32 and
        # rounds at the end, without an fp32 copy of the weight.
        return values.to(dtype).mul_(scales[:, None])
    weight = torch.empty(values.shape, dtype=dtype)
    for rows, value, scale in _row_blocks(weight, values, scales):
        rows.copy_(e4m3_to_float(value).mul_(scale[:, None]))
    return weight


def split_rows(
    tensors: Mapping[str, torch.Tensor], counts: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """Cut a stacked linear into its parts, such as q, k and v; the codes stay as they are.

    Args:
        tensors: as `encode` returns them, N rows.
        counts: rows of each part; they sum to N.

    Returns:
        One mapping per count, views of the given tensors.
    """
    pieces = [tensor.split(list(counts)) for tensor in tensors.values()]
    return [dict(zip(tensors, part, strict=True)) for part in zip(*pieces, strict=True)]


def _row_blocks(weight: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> zip:
    rows = max(1, BLOCK_VALUES // weight.shape[1])
    return zip(weight.split(rows), values.split(rows), scales.split(rows), strict=True)


CODEC = Codec("fp8", refuse, specs, encode, decode, split_rows)
