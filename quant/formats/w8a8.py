"""Int8 weights and activations, in two layouts: dit8's own, and ComfyUI's.

    y = (q(t(x)) wq^T) * x_scale * ws^T + bias       what `quant.linear.Int8Linear` computes

dit8's own layout, `w8a8`, has what a recipe may ask for:

    .wq         int8 (N, K)
    .ws         fp32 (N,)
    .smooth     fp32 (K,), where t divides by a vector
    .x_scale    fp32 (), where the activation has one calibrated scale

A rotation stands in the recipe of the header, not in a tensor.

`comfy` is row-wise int8 as ComfyUI stores it and comfy-kitchen computes it, plain or rotated
("convrot"):

    W R ~ weight * weight_scale        y = (q(x R) weight^T) * x_scale * weight_scale^T + bias

with R as in `kernels.hadamard` (the identity without "convrot") and q a scale per row, from the
row: what `quant.linear.Int8Linear` computes. Three tensors a linear:

    .weight         int8 (N, K)
    .weight_scale   fp32 (N, 1)
    .comfy_quant    uint8, the bytes of {"format": "int8_tensorwise"} or of
                    {"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}

A smoothing vector and a static activation scale have no place in it. A bias is stored as in any
other file and is not looked at here.

Verified by a test on the package comfy-kitchen 0.2.40 (CPU): its layout TensorWiseINT8Layout
dequantizes these tensors to our weight and multiplies as we do. Read in ComfyUI's source
(comfy/ops.py and quant_ops.py at 0271a469), not run: names, JSON keys, their defaults, and that the
keys may lie one level down in "params"; other keys are ignored there and here. Not verified: a file
of ours in ComfyUI itself, and comfy-kitchen's CUDA kernels.

The scale is (N, 1) and not (N,): comfy-kitchen's linear takes both, but its dequantization
broadcasts the scale as it is, and (N,) would scale the columns. It is fp32 because nothing casts it
on the way: a stored bf16 scale is only widened where it is multiplied, which costs 0.6 % (Gaussian
rows of 4608 values) to 22 % (uniform rows of 512) more weight error. comfy-kitchen's own quantizer
(eager backend) keeps fp32 scales but divides a bf16 weight by their bf16 value: 5.5 and 32 % more
error in the same two cases, and some codes of -128, which are read here like any other. It gives
an fp32 weight our codes and scales bit for bit. A bf16 activation it treats like a bf16 weight.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

from dit8.kernels.hadamard import check_group, is_group
from dit8.quant.errors import UserError
from dit8.quant.types import Int8Layout, Int8Weight, Scheme, TensorSpec

FORMAT = "int8_tensorwise"  # the name is older than the row scales
DEFAULT_GROUP = 256  # ComfyUI's, where "convrot" comes without a group
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _accept(scheme: Scheme, name: str) -> None:
    """Own layout: whatever a recipe asks for."""


def _specs(n: int, k: int, scheme: Scheme) -> dict[str, TensorSpec]:
    specs = {".wq": TensorSpec((n, k), torch.int8), ".ws": TensorSpec((n,), torch.float32)}
    if scheme.has_vector:
        specs[".smooth"] = TensorSpec((k,), torch.float32)
    if scheme.static:
        specs[".x_scale"] = TensorSpec((), torch.float32)
    return specs


def _encode(weight: Int8Weight) -> dict[str, torch.Tensor]:
    made = {".wq": weight.codes, ".ws": weight.scales}
    if weight.smooth is not None:
        made[".smooth"] = weight.smooth.clone()  # linears of a group share it
    if weight.x_scale is not None:
        made[".x_scale"] = weight.x_scale
    return made


def _decode(tensors: Mapping[str, torch.Tensor], name: str, rotation: int) -> Int8Weight:
    smooth, x_scale = tensors.get(".smooth"), tensors.get(".x_scale")
    return Int8Weight(tensors[".wq"], tensors[".ws"], smooth, x_scale, rotation)


def _expected(n: int, k: int) -> dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]:
    exact = (torch.float32,)
    scales = {".ws": ((n,), exact), ".smooth": ((k,), exact), ".x_scale": ((), exact)}
    return {".wq": ((n, k), (torch.int8,))} | scales


W8A8 = Int8Layout(
    check=_accept,
    specs=_specs,
    encode=_encode,
    decode=_decode,
    needed=frozenset({".wq", ".ws"}),
    optional=frozenset({".smooth", ".x_scale"}),
    expected=_expected,
)


def _config(rotation: int) -> bytes:
    # The keys, their order and the spaces are those ComfyUI saves.
    config: dict[str, Any] = {"format": FORMAT}
    if rotation:
        config |= {"convrot": True, "convrot_groupsize": rotation}
    return json.dumps(config).encode()


def comfy_specs(n: int, k: int, rotation: int) -> dict[str, TensorSpec]:
    """List what is stored for a weight (n, k).

    Raises:
        UserError: the rotation's group does not divide K.
    """
    if rotation:
        check_group(k, rotation)
    return {
        ".weight": TensorSpec((n, k), torch.int8),
        ".weight_scale": TensorSpec((n, 1), torch.float32),
        ".comfy_quant": TensorSpec((len(_config(rotation)),), torch.uint8),
    }


def encode_comfy(wq: torch.Tensor, ws: torch.Tensor, rotation: int) -> dict[str, torch.Tensor]:
    """Name the codes and scales of a weight as ComfyUI does; the numbers stay as they are.

    Args:
        wq: (N, K) int8, of W R.
        ws: (N,) fp32.
        rotation: group of R, a power of 4 that divides K; 0: none.

    Returns:
        suffix -> tensor, as `comfy_specs` lists them.

    Raises:
        ValueError: shapes or dtypes are not those above.
        UserError: the rotation's group does not divide K.
    """
    if wq.ndim != 2 or wq.dtype != torch.int8:
        raise ValueError(f"comfy: wq must be (N, K) int8, got {_describe(wq)}")
    n, k = wq.shape
    if ws.shape != (n,) or ws.dtype != torch.float32:
        raise ValueError(f"comfy: ws must be ({n},) float32, got {_describe(ws)}")
    if rotation:
        check_group(k, rotation)
    config = torch.frombuffer(bytearray(_config(rotation)), dtype=torch.uint8)
    return {".weight": wq, ".weight_scale": ws.unsqueeze(1), ".comfy_quant": config}


def decode_comfy(tensors: Mapping[str, torch.Tensor], name: str = "linear") -> Int8Weight:
    """Read codes, row scales and the rotation, from this project's files or another's.

    Args:
        tensors: suffix -> tensor, as `comfy_specs` lists them. The scale may also be a single
            value, for the whole weight, and bf16 or fp16, which is widened.
        name: of the linear, for the messages.

    Returns:
        codes, scales and rotation.

    Raises:
        UserError: a tensor is missing or not as `comfy_specs` says, a scale is not positive and
            finite, or `.comfy_quant` asks for something else: another format, or products of
            dequantized weights.
    """
    for suffix in (".weight", ".weight_scale", ".comfy_quant"):
        if suffix not in tensors:
            raise UserError(
                f"comfy: {name} must have {name}{suffix}, got {', '.join(tensors) or 'nothing'}; "
                "download the file again"
            )
    wq, scale = tensors[".weight"], tensors[".weight_scale"]
    if wq.ndim != 2 or wq.dtype != torch.int8:
        raise UserError(
            f"comfy: {name}.weight must be (N, K) int8, got {_describe(wq)}; choose an "
            f"{FORMAT} file"
        )
    n, k = wq.shape
    if scale.dtype not in SCALE_DTYPES or (scale.shape != (n, 1) and scale.numel() != 1):
        raise UserError(
            f"comfy: {name}.weight_scale must be ({n}, 1) or a single value, in float32, bfloat16 "
            f"or float16, got {_describe(scale)}; choose an {FORMAT} file with row scales"
        )
    ws = scale.float().reshape(-1)
    if not bool(((ws > 0) & ws.isfinite()).all()):
        raise UserError(
            f"comfy: {name}.weight_scale must be positive and finite, got values from "
            f"{float(ws.min()):g} to {float(ws.max()):g}; download the file again"
        )
    rotation = _read_rotation(tensors[".comfy_quant"], k, name)
    return Int8Weight(wq, ws.expand(n).contiguous(), rotation=rotation)


def _read_rotation(stored: torch.Tensor, k: int, name: str) -> int:
    if stored.dtype != torch.uint8 or stored.ndim != 1:
        raise UserError(
            f"comfy: {name}.comfy_quant must be the bytes of a JSON object in uint8, got "
            f"{_describe(stored)}; download the file again"
        )
    text = bytes(stored.tolist())
    try:
        config = json.loads(text)
    except ValueError as error:  # also bytes that are no text
        raise UserError(
            f"comfy: {name}.comfy_quant must hold a JSON object, got {text[:40]!r} ({error}); "
            "download the file again"
        ) from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(
            f"comfy: {name}.comfy_quant must name the format {FORMAT}, got {text[:80]!r}; choose a "
            "file in that format"
        )
    if config.get("full_precision_matrix_mult", False):
        raise UserError(
            f"comfy: {name} must allow int8 products, got full_precision_matrix_mult in "
            f"{name}.comfy_quant; choose a file without it"
        )
    nested = config.get("params")
    config = (nested if isinstance(nested, dict) else {}) | config
    if not config.get("convrot", False):
        return 0
    group = config.get("convrot_groupsize", DEFAULT_GROUP)
    if not isinstance(group, int) or not is_group(k, group):
        raise UserError(
            f"comfy: convrot_groupsize in {name}.comfy_quant must be a power of 4 that divides "
            f"K={k}, got {group!r}; download the file again"
        )
    return group


def _describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _check_comfy(scheme: Scheme, name: str) -> None:
    if scheme.has_vector or scheme.static:
        raise UserError(
            f"convert: format comfy carries codes, row scales and a rotation, got a scheme with "
            f"{'a smoothing vector' if scheme.has_vector else 'a static scale'} for {name}; use "
            "smoothing_carrier=folded and activation_scale=token, or format=w8a8"
        )


COMFY = Int8Layout(
    check=_check_comfy,
    specs=lambda n, k, scheme: comfy_specs(n, k, scheme.rotation),
    encode=lambda weight: encode_comfy(weight.codes, weight.scales, weight.rotation),
    decode=lambda tensors, name, _: decode_comfy(tensors, name),
    needed=frozenset({".weight", ".weight_scale", ".comfy_quant"}),
    optional=frozenset(),
    expected=lambda n, k: {".weight": ((n, k), (torch.int8,))},
)
