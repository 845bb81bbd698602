"""Put a checkpoint of any format into a pipeline: all of it, or nothing.

Every check and every new module comes before the first change, so an error leaves the pipeline as
it was. Weights are read one linear at a time, straight to their device; a pipeline made with
`models.pipeline.load_pipeline(..., branches=False)` brings none of its own, so the quantized ones
are the only copy in memory.

In a file of other programs `.smooth` must be the divisor of the activation:

    y = (x / s) (W diag(s))^T          stored: s and the int8 codes of W diag(s)

A file whose `.smooth` is the factor of the activation instead looks the same and draws noise. With
the unquantized weight at hand the two readings are told apart by their distance to it. Without it:
smoothing multiplies large weights' columns by small s and the reverse, so the codes' columns are
more alike than W's; read the wrong way round, W's columns get the spread of s twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from dit8.quant.architectures import architecture_of_module, branches_of
from dit8.quant.checkpoint.build_linear import (
    build_modules,
    check_values,
    find_linears,
    read_linear,
)
from dit8.quant.checkpoint.read import FLOATS
from dit8.quant.checkpoint.stored import REMEDY, StoredBranch, StoredCheckpoint, open_checkpoint
from dit8.quant.errors import UserError
from dit8.quant.linear import Int8Linear, check_gemm, check_swappable, refuse_saving, swap_linears
from dit8.quant.lora import refuse_lora
from dit8.quant.types import Architecture

# int8 rounding moves a weight by about 1 %. Outliers make s and with it the rounding coarser: 9 %
# at an activation channel 1000 times the others, 27 % at 10,000. Another weight is 140 % away.
USUAL_ERROR, LARGEST_ERROR = 0.1, 0.5
# The wrong reading spreads columns by s^2 more than the right one. Only a clear case is refused:
SPREAD_RATIO = 4.0


def check_effective_weight(linear: Int8Linear, weight: torch.Tensor, name: str, where: str) -> None:
    """Compare wq * ws / smooth with the unquantized weight, or with what a weight looks like.

    Args:
        linear: with a `.smooth` vector.
        weight: (N, K) of the pipeline, perhaps without storage.
        name: of the linear, for the message.
        where: file and branch, for the message.

    Raises:
        UserError: the reading as a divisor cannot be right.
    """
    stored = linear.wq.float() * linear.ws[:, None]
    divided, multiplied = stored / linear.smooth, stored * linear.smooth
    if weight.is_meta:
        if _spread(divided) > SPREAD_RATIO * _spread(multiplied):
            raise UserError(
                f"load_quantized: {name}.smooth in {where} must be the divisor of the activation, "
                "got values that make the columns of the weight more unequal than the opposite "
                "reading does; invert the vectors, or quantize the model again"
            )
        return
    error = _distance(divided, weight)
    opposite = _distance(multiplied, weight)
    if error > LARGEST_ERROR or (error > USUAL_ERROR and opposite < error):
        advice = "invert the vectors" if opposite < LARGEST_ERROR else "quantize this model again"
        raise UserError(
            f"load_quantized: {name} in {where} must approximate the pipeline's weight once its "
            f"columns are divided by .smooth, got a relative difference of {error:.2f} (the "
            f"opposite reading: {opposite:.2f}); {advice}"
        )


def _spread(weight: torch.Tensor) -> float:
    """Largest column magnitude over the median one."""
    columns = weight.abs().amax(dim=0)
    return float(columns.amax() / columns.median().clamp(min=torch.finfo(torch.float32).tiny))


def _distance(approximation: torch.Tensor, weight: torch.Tensor) -> float:
    reference = weight.float()
    return float(
        torch.linalg.vector_norm(approximation - reference) / torch.linalg.vector_norm(reference)
    )


Pipeline = TypeVar("Pipeline")


@dataclass(frozen=True)
class _Plan:
    """What will change in one branch."""

    module: nn.Module
    linears: dict[str, nn.Module]
    parameters: dict[str, torch.Tensor]  # diffusers name -> values


def load_quantized(
    pipeline: Pipeline,
    path: str | Path,
    gemm: str = "fused",
    *,
    model_key: str | None = None,
    device: str | torch.device | None = None,
) -> Pipeline:
    """Exchange the linears of a pipeline's transformers for those of a checkpoint.

    Reads what `scripts/quantize.py` writes, in all of `quant.formats`, and the published files of
    the same formats, with the original or diffusers' names, sharded or not.

    In a file that dit8 did not write, `.smooth` is taken as the divisor of the activation, as in
    ours, and every linear that has one is checked against the opposite reading.

    Args:
        pipeline: a stock pipeline of a known architecture; changed in place.
        path: a .safetensors or .gguf file, or a folder; see `open_checkpoint` (stored.py).
        gemm: of int8 linears: "fused" (integer product) or "fake_quant" (in the compute dtype).
        model_key: of the pipeline's model, when known; a checkpoint that names its source must
            name this one.
        device: where weights go that the pipeline does not have yet; default: the CPU.

    Returns:
        the same pipeline: quantized modules where the file has them, stock linears and norms with
        the file's values elsewhere, on the devices and in the dtypes that were there. It and its
        quantized branches then refuse diffusers' `save_pretrained` and LoRA.

    Raises:
        UserError: unknown `gemm`; a missing, extra, mis-shaped or non-finite tensor; a checkpoint
            of another model; a pipeline already quantized.
    """
    check_gemm(gemm)
    branches = branches_of(type(pipeline).__name__)
    modules = {branch: getattr(pipeline, attribute) for branch, attribute in branches.items()}
    with open_checkpoint(path, branches) as checkpoint:
        if None not in (model_key, checkpoint.model_key) and checkpoint.model_key != model_key:
            raise UserError(
                f"load_quantized: {path} must be made from model {model_key}, got model "
                f"{checkpoint.model_key}; quantize this model with scripts/quantize.py"
            )
        place = torch.device(device or "cpu")
        plans = [
            _plan(module, branch, checkpoint, gemm, place) for branch, module in modules.items()
        ]
    for plan in plans:
        swap_linears(plan.module, plan.linears)
        _assign(plan.module, plan.parameters)
    linears = [linear for plan in plans for linear in plan.linears.values()]
    if linears:
        refuse_lora(pipeline, branches.values())
        refuse_saving(pipeline, linears)  # itself, or it would save what comes before a branch
    return pipeline


def _plan(
    module: nn.Module, branch: str, checkpoint: StoredCheckpoint, gemm: str, device: torch.device
) -> _Plan:
    """Check one branch's tensors and build what replaces its linears; change nothing."""
    stored = checkpoint.branches[branch]
    architecture = architecture_of_module(module)
    check_swappable(module, architecture.linears)
    current = module.state_dict()
    linears: dict[str, nn.Module] = {}
    parameters: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for found in find_linears(stored, architecture):
        shapes = [tuple(current[f"{part}.weight"].shape) for part in found.parts]
        old = current[f"{found.parts[0]}.weight"]
        place = device if old.is_meta else old.device
        tensors = read_linear(stored, found, shapes)
        used |= {f"{found.name}{suffix}" for suffix in found.suffixes}
        has_bias = f"{found.parts[0]}.bias" in current
        if has_bias != (".bias" in tensors):
            raise UserError(
                f"load_quantized: {found.name} in {stored.where} must "
                f"{'have' if has_bias else 'not have'} a bias; {REMEDY}"
            )
        if found.kind == "plain":
            counts = [shape[0] for shape in shapes]
            for suffix, tensor in tensors.items():
                for part, rows in zip(found.parts, tensor.split(counts), strict=True):
                    parameters[f"{part}{suffix}"] = rows.to(place, old.dtype)
            continue
        scheme = None
        if checkpoint.resolved is not None:
            group = next(g for g in architecture.groups if found.parts[0] in g.targets)
            scheme = checkpoint.resolved.scheme(branch, group)
        built = build_modules(
            found, tensors, shapes, scheme, gemm=gemm, device=place, dtype=old.dtype
        )
        for part, linear in built.items():
            # a merged LoRA moves the weight away from the pipeline's, as it should
            if getattr(linear, "smooth", None) is not None and checkpoint.lora is None:
                check_effective_weight(linear, current[f"{part}.weight"], part, stored.where)
        linears |= built
    rest = _rest(stored, architecture, current, used)
    _check_same_model(rest, current, architecture, stored.where)
    for name, tensor in rest.items():
        place = device if current[name].is_meta else current[name].device
        parameters[name] = tensor.to(place, current[name].dtype)
    return _Plan(module, linears, parameters)


def _rest(
    stored: StoredBranch,
    architecture: Architecture,
    current: Mapping[str, torch.Tensor],
    used: set[str],
) -> dict[str, torch.Tensor]:
    """Read every tensor that belongs to no linear; none may be missing, extra or mis-shaped."""
    linear_names = {f"{m}.{kind}" for m in architecture.linears for kind in ("weight", "bias")}
    expected = {name: tuple(t.shape) for name, t in current.items() if name not in linear_names}
    left = stored.specs.keys() - used
    missing, extra = sorted(expected.keys() - left), sorted(left - expected.keys())
    for kind, names in (("misses", missing), ("has too much:", extra)):
        if names:
            raise UserError(
                f"load_quantized: {stored.where} {kind} {len(names)} tensors, first {names[0]!r}; "
                f"{REMEDY}"
            )
    tensors = {}
    for name, shape in expected.items():
        spec = stored.specs[name]
        if tuple(spec.shape) != shape or spec.dtype not in FLOATS:
            raise UserError(
                f"load_quantized: {name!r} in {stored.where} must be {shape} floating, got "
                f"{tuple(spec.shape)} {str(spec.dtype).removeprefix('torch.')}; {REMEDY}"
            )
        tensors[name] = stored.read(name)
        check_values(tensors[name], name, stored.where)
    return tensors


def _check_same_model(
    rest: Mapping[str, torch.Tensor],
    current: Mapping[str, torch.Tensor],
    architecture: Architecture,
    where: str,
) -> None:
    """Compare what no recipe changes with the pipeline's own values, bit for bit.

    The narrower of the two dtypes counts: file and pipeline may be one model rounded twice.
    """
    touched = {group.source for group in architecture.groups}
    for name, tensor in rest.items():
        if current[name].is_meta or name.rpartition(".")[0] in touched:
            continue
        own = current[name]
        dtype = min(own.dtype, tensor.dtype, key=lambda dtype: dtype.itemsize)
        if not torch.equal(tensor.to(own.device, dtype), own.to(dtype)):
            raise UserError(
                f"load_quantized: {where} is of another model: {name!r} must equal the pipeline's, "
                "got other values; quantize this model with scripts/quantize.py"
            )


def _assign(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> None:
    """Give parameters their values; one without storage gets the tensor itself, not a copy."""
    for name, tensor in parameters.items():
        parent, _, child = name.rpartition(".")
        owner = module.get_submodule(parent)
        old = getattr(owner, child)
        if old.is_meta:
            setattr(owner, child, nn.Parameter(tensor, requires_grad=False))
        else:
            old.data.copy_(tensor)
