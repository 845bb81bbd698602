"""NF4 as bitsandbytes and diffusers store it: 16 levels, one fp32 magnitude per 64 weights.

    weight = level[code] * absmax        absmax = max|block|        code = the nearest level

The levels are quantiles of a normal distribution scaled to [-1, 1]: QLoRA, arXiv:2305.14314,
section 3 and appendix E. Blocks run over the flattened (N, K) matrix, so with K divisible by 64
every row is its own blocks and q, k and v split exactly; other shapes are refused. Absmax is not
quantized again ("double quantization"), as in the published files.

Encoding is bitsandbytes' own, on the CPU, so that the codes are those its users get. Decoding needs
nothing but torch and equals `bitsandbytes.functional.dequantize_4bit` bit for bit: one lookup turns
a byte into two fp32 levels; `kernels.decode` does it on a GPU. One thread of an AMD EPYC (AVX-512),
torch 2.13, (4608, 4608), M weights/s:

    encode 42        decode to fp32 970, to bf16 1440        bitsandbytes' decode to fp32 1280

The JSON beside the codes carries the shape, which the flat codes have lost. Its "dtype" is what
bitsandbytes returns when it dequantizes; always bfloat16 here, in which the real model computes, so
that a file equals byte for byte what bitsandbytes makes of a bf16 model. Our decoder takes the
dtype from its caller.
"""

import json
from collections.abc import Mapping, Sequence

import torch

from dit8.kernels.decode import decode_into, has_kernel
from dit8.quant.errors import UserError
from dit8.quant.types import Codec, TensorSpec

# what diffusers needs to find in config.json to load the weights through bitsandbytes
CONFIG = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}
BLOCK = 64
LEVELS = 16
STATE = ".weight.quant_state.bitsandbytes__nf4"
ENCODE_VALUES = 2**21  # bitsandbytes makes several fp32 copies of what it encodes: 8 MiB each
DECODE_VALUES = 2**19  # CPU: fp32 temporaries of 2 MiB, which stay in a core's cache
GPU_DECODE_VALUES = 2**23  # GPU without the kernel: fp32 temporaries of 32 MiB


def refuse(n: int, k: int) -> str | None:
    """Say why a weight (n, k) cannot be stored, or None if it can."""
    if k % BLOCK:
        return f"nf4 needs K divisible by {BLOCK}, got {k}: a block would cross two rows"
    return None


def specs(n: int, k: int) -> dict[str, TensorSpec]:
    """List what `encode` makes of a weight (n, k); another writer's JSON may be longer."""
    return {
        ".weight": TensorSpec((n * k // 2, 1), torch.uint8),
        ".weight.absmax": TensorSpec((n * k // BLOCK,), torch.float32),
        ".weight.quant_map": TensorSpec((LEVELS,), torch.float32),
        STATE: TensorSpec(tuple(make_state(n, k).shape), torch.uint8),
    }


def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Encode a whole weight with bitsandbytes, a piece of its rows at a time.

    Args:
        weight: (N, K) fp32; all rows, since the JSON states their number.

    Returns:
        ".weight" (N * K / 2, 1) uint8, two codes a byte, the first in the high half;
        ".weight.absmax" (N * K / 64,) fp32; ".weight.quant_map" (16,) fp32, the levels;
        ".weight.quant_state.bitsandbytes__nf4" uint8, JSON. On the CPU.

    Raises:
        ValueError: not an fp32 matrix, or a shape that `refuse` refuses.
        UserError: bitsandbytes is not installed, or a value is NaN or infinite.
    """
    if weight.ndim != 2 or weight.dtype != torch.float32 or 0 in weight.shape:
        raise ValueError(
            f"nf4: weight must be (N, K) float32, got {tuple(weight.shape)} {weight.dtype}"
        )
    n, k = weight.shape
    if reason := refuse(n, k):
        raise ValueError(reason)
    quantize_4bit = _import_quantizer()
    codes = torch.empty(n * k // 2, 1, dtype=torch.uint8)
    absmax = torch.empty(n * k // BLOCK)
    rows = max(1, ENCODE_VALUES // k)
    for start in range(0, n, rows):
        piece = weight[start : start + rows].cpu()
        if not torch.isfinite(piece).all():
            raise UserError(
                f"nf4: weight {(n, k)} must be finite, got NaN or infinity; "
                "check the source checkpoint"
            )
        made, state = quantize_4bit(
            piece, blocksize=BLOCK, quant_type="nf4", compress_statistics=False
        )
        first, size = start * k, piece.numel()
        codes[first // 2 : (first + size) // 2] = made
        absmax[first // BLOCK : (first + size) // BLOCK] = state.absmax
    return {
        ".weight": codes,
        ".weight.absmax": absmax,
        ".weight.quant_map": state.code.clone(),  # bitsandbytes keeps its own for the next call
        STATE: make_state(n, k),
    }


def decode(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Look the levels up and multiply them by their block's magnitude in fp32, then round once.

    Args:
        tensors: as `encode` returns them, on one device; the JSON may stay on the CPU, which
            spares a GPU one synchronization.
        dtype: of the result, floating.

    Returns:
        (N, K) on the device of the codes.

    Raises:
        UserError: the JSON is damaged, describes another format, or does not fit the codes.
    """
    n, k = _shape(tensors)
    codes, absmax = tensors[".weight"].flatten(), tensors[".weight.absmax"]
    levels = tensors[".weight.quant_map"]
    weight = torch.empty(n * k, dtype=dtype, device=codes.device)
    if has_kernel(codes.device):
        decode_into("nf4", [codes, absmax, levels], weight.view(n, k))
        return weight.view(n, k)
    pairs = _pairs(levels)
    size = DECODE_VALUES if codes.device.type == "cpu" else GPU_DECODE_VALUES
    pieces = (weight.split(size), codes.split(size // 2), absmax.split(size // BLOCK))
    for out, byte, scale in zip(*pieces, strict=True):
        values = pairs.index_select(0, byte.int()).view(torch.float32).view(-1, BLOCK)
        out.copy_(values.mul_(scale[:, None]).flatten())
    return weight.view(n, k)


def split_rows(
    tensors: Mapping[str, torch.Tensor], counts: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """Cut a stacked linear into its parts, such as q, k and v; the codes stay as they are.

    Args:
        tensors: as `encode` returns them, N rows.
        counts: rows of each part; they must sum to N.

    Returns:
        One mapping per count, with views of the codes and magnitudes and its own shape in the JSON.

    Raises:
        UserError: the JSON is damaged, describes another format, or does not fit the codes or N.
    """
    n, k = _shape(tensors)
    if sum(counts) != n:
        raise UserError(
            f"nf4: the quant_state must describe {sum(counts)} rows, got shape {(n, k)}; "
            "the file is damaged or of another model"
        )
    codes = tensors[".weight"].split([count * k // 2 for count in counts])
    absmax = tensors[".weight.absmax"].split([count * k // BLOCK for count in counts])
    state = _unpack(tensors[STATE])
    return [
        {
            ".weight": own_codes,
            ".weight.absmax": own_absmax,
            ".weight.quant_map": tensors[".weight.quant_map"].clone(),
            STATE: _pack(state | {"shape": [count, k]}),
        }
        for count, own_codes, own_absmax in zip(counts, codes, absmax, strict=True)
    ]


def _import_quantizer():
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        raise UserError(
            f"nf4: encoding needs the package bitsandbytes, got {error}; "
            "run pip install 'dit8[nf4]'"
        ) from error
    return quantize_4bit


def _pairs(levels: torch.Tensor) -> torch.Tensor:
    """Tabulate both levels of every byte, (256,) int64 that are two fp32 each."""
    both = torch.cartesian_prod(levels, levels)  # (256, 2): high half, low half
    return both.view(torch.int64).flatten()


def make_state(n: int, k: int) -> torch.Tensor:
    """Write the JSON that stands beside the codes of a weight (n, k), as uint8."""
    return _pack({"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": [n, k]})


def _pack(state: Mapping) -> torch.Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def _unpack(packed: torch.Tensor) -> dict:
    text = bytes(packed.cpu().numpy())
    try:
        state = json.loads(text)
    except ValueError as error:  # of the JSON or of its UTF-8
        raise UserError(
            f"nf4: the quant_state must be JSON, got {text[:80]!r}; the file is damaged"
        ) from error
    if not isinstance(state, dict):
        raise UserError(
            f"nf4: the quant_state must be a JSON object, got {text[:80]!r}; the file is damaged"
        )
    return state


def _shape(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Read (N, K) and make sure that the rest of the JSON and the codes agree with it."""
    state = _unpack(tensors[STATE])
    kind, blocksize = state.get("quant_type"), state.get("blocksize")
    nested = any(key.startswith("nested_") for key in state)
    if (kind, blocksize) != ("nf4", BLOCK) or nested:
        raise UserError(
            f"nf4: the quant_state must describe nf4 in blocks of {BLOCK} without double "
            f"quantization, got {json.dumps(state)}; quantize with bnb_4bit_quant_type=nf4 and "
            "bnb_4bit_use_double_quant=False"
        )
    shape = state.get("shape")
    codes, absmax = tensors[".weight"].numel(), tensors[".weight.absmax"].numel()
    is_matrix = isinstance(shape, list) and [type(size) for size in shape] == [int, int]
    is_matrix = is_matrix and min(shape) > 0
    if not is_matrix or shape[0] * shape[1] != 2 * codes or 2 * codes != BLOCK * absmax:
        raise UserError(
            f"nf4: the quant_state's shape must fit {codes} bytes of codes and {absmax} "
            f"magnitudes, got {shape!r}; the file is damaged"
        )
    if reason := refuse(*shape):
        raise UserError(f"{reason}; the file cannot be read by rows")
    return tuple(shape)


CODEC = Codec("nf4", refuse, specs, encode, decode, split_rows, by_rows=False)
