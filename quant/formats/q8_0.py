"""Q8_0 of ggml: blocks of 32 weights of a row, one fp16 scale and 32 int8 codes, 34 bytes.

    scale = max|block| / 127      code = round_half_away(weight * (1 / scale))
    weight ~ fp16(scale) * code

Codes are rounded with the fp32 scale and decoded with its fp16 rounding, which is the reference in
ggml (quantize_row_q8_0_ref) and what gguf-py repeats; both give the bytes of `encode`. 8.5 bits per
weight.

A converter takes 18.6 G weights through `encode`, so passes are counted: over fp32, |x| and its
maximum, the product, the half with the sign of the product, the sum, and the cast, which truncates.
One thread of an AMD EPYC (AVX-512), torch 2.13, (128, 4608), M weights/s:

    encode 1030 (two threads 1580)        decode to fp32 or bf16 3600
"""

from collections.abc import Mapping, Sequence

import torch

from dit8.kernels.decode import decode_into, has_kernel
from dit8.quant.errors import UserError
from dit8.quant.types import Codec, TensorSpec

BLOCK = 32  # weights that share a scale
BLOCK_BYTES = 34
CODE_MAX = 127.0
HALF_BELOW = (
    0.5 - 2.0**-25
)  # the largest fp32 below 1/2; with 1/2 itself, 0.49999997 would become 1
PIECE_VALUES = 2**18  # CPU: fp32 temporaries of 1 MiB, which stay in the cache
GPU_PIECE_VALUES = 2**24  # GPU without the kernel: fp32 temporaries of 64 MiB


def refuse(n: int, k: int) -> str | None:
    """Say why a weight (n, k) cannot be stored, or None if it can."""
    if k % BLOCK:
        return f"q8_0 needs K divisible by {BLOCK}, got {k}: a block would cross two rows"
    return None


def specs(n: int, k: int) -> dict[str, TensorSpec]:
    """List what is stored for a weight (n, k)."""
    return {".weight": TensorSpec((n, k // BLOCK * BLOCK_BYTES), torch.uint8)}


def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Round a weight to int8 codes, ties away from zero.

    Args:
        weight: (N, K) fp32 on the CPU.

    Returns:
        ".weight" (N, K / 32 * 34) uint8. A block below 127 * 2^-25 decodes to zeros: its scale
        underflows in fp16.

    Raises:
        ValueError: not an fp32 matrix, or a shape that `refuse` refuses.
        UserError: a value is NaN, infinite, or so large that its scale overflows in fp16.
    """
    if weight.ndim != 2 or weight.dtype != torch.float32 or weight.shape[1] == 0:
        raise ValueError(
            f"q8_0: weight must be (N, K) float32, got {tuple(weight.shape)} {weight.dtype}"
        )
    n, k = weight.shape
    if reason := refuse(n, k):
        raise ValueError(reason)
    stored = torch.empty(n, k // BLOCK * BLOCK_BYTES, dtype=torch.uint8)
    rows = max(1, PIECE_VALUES // k)
    scratch = torch.empty(2, min(rows, n) * k // BLOCK, BLOCK)
    for piece, out in zip(weight.split(rows), stored.split(rows), strict=True):
        blocks = piece.reshape(-1, BLOCK)
        _encode_piece(blocks, out.view(-1, BLOCK_BYTES), *scratch[:, : len(blocks)])
    return {".weight": stored}


def _encode_piece(
    blocks: torch.Tensor, out: torch.Tensor, x: torch.Tensor, half: torch.Tensor
) -> None:
    """Encode blocks (B, 32) into their bytes (B, 34); x and half (B, 32) are scratch memory.

    Fresh memory for every pass would cost as much time as the passes: the system clears each page.
    """
    scales = torch.abs(blocks, out=x).amax(dim=1) / CODE_MAX  # (B,)
    halves = scales.to(torch.float16)
    if not halves.isfinite().all():
        _explain(blocks)
    inverse = 1.0 / scales
    inverse.masked_fill_(inverse.isinf(), 0.0)  # zeros, and scales below 2^-128
    torch.mul(blocks, inverse[:, None], out=x)
    torch.copysign(torch.tensor(HALF_BELOW), x, out=half)
    out[:, 2:].view(torch.int8).copy_(half.add_(x))  # the cast truncates towards zero
    out.view(torch.float16)[:, 0] = halves


def _explain(blocks: torch.Tensor) -> None:
    largest = float(blocks.abs().amax())
    if largest < float("inf"):
        raise UserError(
            f"q8_0: magnitudes must stay below {CODE_MAX * 65504:.3g}, whose scale is the largest "
            f"in fp16, got {largest:.3g}; store this model as fp8 or w8a8"
        )
    raise UserError(
        "q8_0: weights must be finite, got NaN or infinity; check the source checkpoint"
    )


def decode(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Multiply codes by their block's scale in fp32, then round once.

    Args:
        tensors: as `encode` returns them.
        dtype: of the result, floating.

    Returns:
        (N, K) on the device of the tensors.
    """
    stored = tensors[".weight"]
    n, k = stored.shape[0], stored.shape[1] // BLOCK_BYTES * BLOCK
    weight = torch.empty(n, k, dtype=dtype, device=stored.device)
    if has_kernel(stored.device):
        decode_into("q8_0", [stored], weight)
        return weight
    size = PIECE_VALUES if stored.device.type == "cpu" else GPU_PIECE_VALUES
    rows = max(1, size // k)
    for piece, out in zip(stored.split(rows), weight.split(rows), strict=True):
        blocks = piece.reshape(-1, BLOCK_BYTES)
        scales = blocks.view(torch.float16)[:, 0].float()
        values = blocks[:, 2:].view(torch.int8).float().mul_(scales[:, None])
        out.copy_(values.view(-1, k))
    return weight


def split_rows(
    tensors: Mapping[str, torch.Tensor], counts: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """Cut a stacked linear into its parts, such as q, k and v; the codes stay as they are.

    Args:
        tensors: as `encode` returns them, N rows.
        counts: rows of each part; they sum to N.

    Returns:
        One mapping per count, views of the given tensor.
    """
    return [{".weight": part} for part in tensors[".weight"].split(list(counts))]


CODEC = Codec("q8_0", refuse, specs, encode, decode, split_rows)
