"""Make the module of one stored linear: find out how it is stored, check it, split its rows.

A linear must be there in exactly one way, with every tensor that way has, of the right shape.
Files of ours and of others go through the same checks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dit8.quant.checkpoint.read import FLOATS
from dit8.quant.checkpoint.stored import REMEDY, StoredBranch
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.linear import Int8Linear, WeightOnlyLinear
from dit8.quant.types import Architecture, Scheme, TensorSpec

Dtypes = tuple[torch.dtype, ...]
# every tensor that a linear may consist of, in the order of the formats
KNOWN = tuple(
    dict.fromkeys(
        suffix
        for target in FORMATS.values()
        for group in target.suffixes
        for suffix in sorted(group)
    )
) + (".bias",)


@dataclass(frozen=True)
class Found:
    """One linear as a file has it: perhaps several modules stacked."""

    name: str  # its name in the file
    parts: tuple[str, ...]  # modules, in row order
    kind: str  # a format's name; "plain" for an unquantized weight
    suffixes: tuple[str, ...]  # of the tensors it consists of, the bias included


def find_linears(stored: StoredBranch, architecture: Architecture) -> Iterator[Found]:
    """Find every linear of the architecture, under its published name or its modules' own.

    Raises:
        UserError: a linear is missing, there in two ways, or not in a known one.
    """
    for linear in architecture.stored:
        names = {linear.name: linear.parts}
        if not _suffixes(stored, linear.name):
            names = {part: (part,) for part in linear.parts}
        for name, parts in names.items():
            suffixes = _suffixes(stored, name)
            if not suffixes:
                raise UserError(
                    f"load_quantized: {stored.where} must hold the linear {linear.name}, got no "
                    f"tensor of {name!r} among {len(stored.specs)}; {REMEDY}"
                )
            yield Found(name, parts, _kind(stored, name, suffixes), suffixes)


def _suffixes(stored: StoredBranch, name: str) -> tuple[str, ...]:
    return tuple(suffix for suffix in KNOWN if f"{name}{suffix}" in stored.specs)


def _kind(stored: StoredBranch, name: str, suffixes: tuple[str, ...]) -> str:
    """Tell the format of a linear from the tensors it has."""
    found = set(suffixes) - {".bias"}
    for kind, target in FORMATS.items():
        needed, optional = target.suffixes
        if needed == {".weight"} or not needed <= found <= needed | optional:
            continue
        own = target.codec and target.codec.specs(256, 256)[".weight"].dtype
        # others store scaled floats of other types under these names
        if not (own and own.is_floating_point) or stored.specs[f"{name}.weight"].dtype == own:
            return kind
    if found == {".weight"}:
        block = stored.blocks.get(f"{name}.weight")
        if block is not None:
            return block
        if stored.specs[f"{name}.weight"].dtype in FLOATS:
            return "plain"
    types = ", ".join(f"{s} {_describe(stored.specs[f'{name}{s}'])}" for s in suffixes)
    raise UserError(
        f"load_quantized: the linear {name} in {stored.where} must be stored in one known way "
        f"({', '.join(FORMATS)}), got {types}; {REMEDY}"
    )


def _describe(spec: TensorSpec) -> str:
    return f"{tuple(spec.shape)} {_names((spec.dtype,))}"


def _names(dtypes: Dtypes) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def read_linear(
    stored: StoredBranch, found: Found, shapes: list[tuple[int, int]]
) -> dict[str, torch.Tensor]:
    """Read a linear's tensors, after checking their shapes, and their values.

    Args:
        stored: the branch's file.
        found: the linear.
        shapes: (N, K) of each of its parts.

    Returns:
        suffix -> tensor.

    Raises:
        UserError: names the tensor that has another shape or type, is not finite or not positive.
    """
    n, k = sum(shape[0] for shape in shapes), shapes[0][1]
    expected = _expected(found.kind, n, k)
    for suffix in found.suffixes:
        name, spec = f"{found.name}{suffix}", stored.specs[f"{found.name}{suffix}"]
        shape, dtypes = expected.get(suffix, (spec.shape, (spec.dtype,)))
        if tuple(spec.shape) != shape or spec.dtype not in dtypes:
            raise UserError(
                f"load_quantized: {name!r} in {stored.where} must be {shape} {_names(dtypes)}, got "
                f"{_describe(spec)}; {REMEDY}"
            )
    tensors = {suffix: stored.read(f"{found.name}{suffix}") for suffix in found.suffixes}
    for suffix, tensor in tensors.items():
        check_values(tensor, f"{found.name}{suffix}", stored.where)
        is_divisor = suffix in (".ws", ".smooth", ".x_scale") and bool((tensor <= 0).any())
        # zero is what others write for a row of zeros
        if is_divisor or (suffix == ".weight_scale" and bool((tensor < 0).any())):
            raise UserError(
                f"load_quantized: '{found.name}{suffix}' in {stored.where} must be positive, got "
                f"{float(tensor.min()):g}; {REMEDY}"
            )
    return tensors


def _expected(kind: str, n: int, k: int) -> dict[str, tuple[tuple[int, ...], Dtypes]]:
    """List the shape and the types that a linear's tensors may have."""
    bias = {".bias": ((n,), FLOATS)}
    if kind == "plain":
        return {".weight": ((n, k), FLOATS)} | bias
    if FORMATS[kind].layout is not None:
        return FORMATS[kind].layout.expected(n, k) | bias
    specs = FORMATS[kind].codec.specs(n, k)
    # a quantizer's own JSON has no fixed length
    fixed = {s: (x.shape, (x.dtype,)) for s, x in specs.items() if "quant_state" not in s}
    return fixed | bias


def check_values(tensor: torch.Tensor, name: str, where: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        UserError: names the tensor.
    """
    if tensor.dtype == torch.float8_e4m3fn:
        finite = not bool(((tensor.view(torch.uint8) & 0x7F) == 0x7F).any())
    else:
        finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
    if not finite:
        raise UserError(
            f"load_quantized: {name!r} in {where} must be finite, got NaN or infinity; {REMEDY}"
        )


def build_modules(
    found: Found,
    tensors: Mapping[str, torch.Tensor],
    shapes: list[tuple[int, int]],
    scheme: Scheme | None,
    *,
    gemm: str,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, nn.Module]:
    """Make one quantized module for each part; rows of q, k and v are slices of the stored ones.

    Args:
        found: the linear, of any kind but "plain".
        tensors: from `read_linear`.
        shapes: (N, K) of each part.
        scheme: what the recipe says; its rotation is not in the tensors. None: no recipe.
        gemm: for the int8 kinds.
        device: where the buffers go.
        dtype: of the bias.
    """
    counts = [shape[0] for shape in shapes]
    biases = [None] * len(counts)
    if ".bias" in tensors:
        biases = [part.to(device, dtype) for part in tensors[".bias"].split(counts)]
    target = FORMATS[found.kind]
    if target.layout is None:
        own = {suffix: tensor.to(device) for suffix, tensor in tensors.items() if suffix != ".bias"}
        return {
            part: WeightOnlyLinear(target.codec, piece, shape, bias)
            for part, piece, shape, bias in zip(
                found.parts, target.codec.split_rows(own, counts), shapes, biases, strict=True
            )
        }
    rotation = 0 if scheme is None else scheme.rotation
    weight = target.layout.decode(tensors, found.name, rotation)
    smooth, x_scale = (
        None if tensor is None else tensor.to(device) for tensor in (weight.smooth, weight.x_scale)
    )
    codes, scales = weight.codes.to(device).split(counts), weight.scales.to(device).split(counts)
    options = {"gemm": gemm, "rotation": weight.rotation, "x_scale": x_scale}
    return {
        part: Int8Linear(wq, ws, smooth, bias, **options)
        for part, wq, ws, bias in zip(found.parts, codes, scales, biases, strict=True)
    }
