"""What a checkpoint's branch must hold, derived from the model and the recipe; and the check.

Strict in both directions: the set of tensors is known before the file is opened, so anything
missing, extra, of another shape or type, or not finite is an error that names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from quant.errors import UserError
from quant.recipe import quantized_linears
from quant.types import Architecture, ResolvedRecipe

WIDE = (torch.float32, torch.bfloat16, torch.float16)
AGAIN = "quantize this model again with scripts/quantize.py"


@dataclass(frozen=True)
class TensorSpec:
    """Shape and admissible dtypes of one stored tensor."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]


def expected_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    architecture: Architecture,
    resolved: ResolvedRecipe,
    branch: str,
) -> dict[str, TensorSpec]:
    """List the tensors of one branch by published name, without the branch prefix.

    Args:
        shapes: the unquantized branch's tensors, diffusers name -> shape.
        architecture: describes the branch.
        resolved: which linears stay unquantized, and whether smoothing is explicit.
        branch: file prefix.
    """
    rest = {name: tuple(shape) for name, shape in shapes.items()}
    recipe = resolved.recipe
    is_explicit = recipe.alpha is not None and recipe.smoothing_carrier == "explicit"
    int8 = set(quantized_linears(architecture, resolved, branch))
    specs = {}
    for linear in architecture.stored:
        parts = [rest.pop(f"{part}.weight") for part in linear.parts]
        n, k = sum(part[0] for part in parts), parts[0][1]
        biases = [rest.pop(f"{part}.bias", None) for part in linear.parts]
        if linear in int8:
            specs[f"{linear.name}.wq"] = TensorSpec((n, k), (torch.int8,))
            specs[f"{linear.name}.ws"] = TensorSpec((n,), (torch.float32,))
            if is_explicit:
                specs[f"{linear.name}.smooth"] = TensorSpec((k,), (torch.float32,))
        else:
            specs[f"{linear.name}.weight"] = TensorSpec((n, k), WIDE)
        if all(bias is not None for bias in biases):
            specs[f"{linear.name}.bias"] = TensorSpec((n,), WIDE)
    return {name: TensorSpec(shape, WIDE) for name, shape in rest.items()} | specs


def check_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, TensorSpec], where: str
) -> None:
    """Compare tensors with what is expected, names first, then shapes, types and values.

    Args:
        tensors: by published name.
        expected: from `expected_tensors`.
        where: file and branch, for the message.

    Raises:
        UserError: one sentence naming the first tensor that is wrong.
    """
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected)
    if missing:
        raise UserError(
            f"check_tensors: {where} misses {len(missing)} of {len(expected)} tensors, first "
            f"{missing[0]!r}; {AGAIN}"
        )
    if extra:
        raise UserError(
            f"check_tensors: {where} has {len(extra)} tensors too many, first {extra[0]!r}; {AGAIN}"
        )
    for name, spec in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype not in spec.dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in spec.dtypes)
            raise UserError(
                f"check_tensors: {name!r} in {where} must be {spec.shape} {wanted}, got "
                f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}; {AGAIN}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"check_tensors: {name!r} in {where} must be finite, got NaN or infinity; {AGAIN}"
            )
        if name.endswith((".ws", ".smooth")) and not bool((tensor > 0).all()):
            raise UserError(
                f"check_tensors: {name!r} in {where} must be positive, got {float(tensor.min())}; "
                f"{AGAIN}"
            )
