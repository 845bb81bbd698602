"""Put a W8A8 checkpoint into a pipeline: all of it, or nothing.

Every check and every new module comes before the first change, so an error leaves the pipeline as
it was. The pipeline brings its unquantized weights; those no recipe touches (embeddings, time
embedding, adaLN, in and out projections, the other norms) must equal the checkpoint's, which finds
a checkpoint of another model even when all shapes agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from models.ideogram4 import architecture, branch_modules
from quant.checkpoint import load_checkpoint
from quant.errors import UserError
from quant.layout import check_tensors, expected_tensors
from quant.linear import Int8Linear, check_gemm, check_swappable, swap_linears
from quant.recipe import quantized_linears
from quant.types import Architecture, ResolvedRecipe

Pipeline = TypeVar("Pipeline")


@dataclass(frozen=True)
class _Plan:
    """What will change in one branch."""

    module: nn.Module
    linears: dict[str, Int8Linear]
    parameters: dict[str, torch.Tensor]  # diffusers name -> values


def load_quantized(
    pipeline: Pipeline,
    path: str | Path,
    gemm: str = "fused",
    *,
    model_key: str | None = None,
) -> Pipeline:
    """Exchange the linears of both branches for those of a checkpoint.

    Args:
        pipeline: a stock `Ideogram4Pipeline` of the model that was quantized; changed in place.
        path: the .safetensors file.
        gemm: "fused" (integer product) or "fake_quant" (product in the compute dtype).
        model_key: of the pipeline's model, when known. Without it a model that differs only in
            the weights that recipes touch (a planted one) is not told apart.

    Returns:
        the same pipeline: Int8Linear where quantized, stock linears and norms with the stored
        values elsewhere, on the devices and in the dtypes that were there.

    Raises:
        UserError: unknown `gemm`; a missing, extra, mis-shaped or non-finite tensor; a checkpoint
            of another model; a pipeline already quantized.
    """
    check_gemm(gemm)
    checkpoint = load_checkpoint(path)
    modules = branch_modules(pipeline)
    resolved = checkpoint.resolved
    if model_key is not None and resolved.model_key != model_key:
        raise UserError(
            f"load_quantized: {path} must be made from model {model_key}, got model "
            f"{resolved.model_key}; quantize this model with scripts/quantize.py"
        )
    if checkpoint.branches.keys() != modules.keys():
        raise UserError(
            f"load_quantized: {path} must hold the branches {', '.join(modules)}, got "
            f"{', '.join(checkpoint.branches) or 'none'}; quantize with scripts/quantize.py"
        )
    plans = [
        _plan(module, checkpoint.branches[branch], resolved, branch, str(path), gemm)
        for branch, module in modules.items()
    ]
    for plan in plans:
        swap_linears(plan.module, plan.linears)
        current = plan.module.state_dict()
        for name, tensor in plan.parameters.items():
            current[name].copy_(tensor)
    return pipeline


def _plan(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    resolved: ResolvedRecipe,
    branch: str,
    path: str,
    gemm: str,
) -> _Plan:
    """Check one branch's tensors and build what replaces its linears; change nothing."""
    branch_architecture = architecture(len(module.layers))
    check_swappable(module, branch_architecture.linears)
    current = module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in current.items()}
    expected = expected_tensors(shapes, branch_architecture, resolved, branch)
    where = f"{path} ({branch})"
    check_tensors(tensors, expected, where)
    _check_same_model(tensors, current, branch_architecture, where)

    rest, linears, parameters = dict(tensors), {}, {}
    int8 = set(quantized_linears(branch_architecture, resolved, branch))
    for stored in branch_architecture.stored:
        fields = ("wq", "ws", "smooth", "bias", "weight")
        values = {field: rest.pop(f"{stored.name}.{field}", None) for field in fields}
        rows = [current[f"{part}.weight"].shape[0] for part in stored.parts]
        start = 0
        for part, count in zip(stored.parts, rows, strict=True):
            old = current[f"{part}.weight"]
            # rows of q, k and v are contiguous slices of the stored one; smooth is shared
            own = {
                field: value[start : start + count]
                for field, value in values.items()
                if value is not None and field != "smooth"
            }
            start += count
            if stored not in int8:
                parameters |= {f"{part}.{field}": value for field, value in own.items()}
                continue
            smooth, bias = values["smooth"], own.get("bias")
            linears[part] = Int8Linear(
                own["wq"].to(old.device),
                own["ws"].to(old.device),
                None if smooth is None else smooth.to(old.device),
                None if bias is None else bias.to(old.device, old.dtype),
                gemm=gemm,
            )
    return _Plan(module, linears, parameters | rest)


def _check_same_model(
    tensors: Mapping[str, torch.Tensor],
    current: Mapping[str, torch.Tensor],
    branch_architecture: Architecture,
    where: str,
) -> None:
    """Compare the tensors that no recipe changes, in the pipeline's dtype, bit for bit."""
    touched = set(branch_architecture.linears) | {fold.source for fold in branch_architecture.folds}
    for name, tensor in current.items():
        if name.rpartition(".")[0] in touched:
            continue
        stored = tensors[name].to(tensor.device, tensor.dtype)
        if not torch.equal(stored, tensor):
            raise UserError(
                f"load_quantized: {where} is of another model: {name!r} must equal the pipeline's, "
                "got other values; quantize this model with scripts/quantize.py"
            )
