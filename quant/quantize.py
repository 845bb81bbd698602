"""Turn one branch's weights into the tensors of a W8A8 checkpoint, under a resolved recipe.

Everything that is not quantized keeps the dtype of the source, so no value of it changes: bf16
for the bundled mini and the published weights. Casting an fp32 source to bf16 here would add an
error of its own to every comparison with that source.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from quant.act_stats import absmax, max_crest
from quant.errors import UserError
from quant.int8 import dequantize, quantize_weight, relative_error
from quant.recipe import check_stats, quantized_linears
from quant.smooth import fold_all, smoothing_scale, snap_power_of_two
from quant.types import ActStats, Architecture, Fold, LayerReport, ResolvedRecipe


@dataclass(frozen=True)
class QuantizedBranch:
    """A branch ready to be written: tensors by published name (no prefix), and its table."""

    tensors: dict[str, torch.Tensor]
    reports: tuple[LayerReport, ...]


def quantize_branch(
    state_dict: Mapping[str, torch.Tensor],
    architecture: Architecture,
    branch: str,
    resolved: ResolvedRecipe,
    stats: ActStats | None,
) -> QuantizedBranch:
    """Smooth, fold and quantize one branch.

    Per-channel symmetric int8 weights; arithmetic in fp32 after an exact upcast. With the folded
    carrier, an unquantized linear that shares a fold with a quantized one absorbs the scale; a
    fold without any quantized reader is left out, so its tensors stay as they were.

    Args:
        state_dict: the branch's tensors by diffusers name; left as it is.
        architecture: describes the branch.
        branch: file prefix, also the prefix of the statistics' keys.
        resolved: which linears stay.
        stats: of this model; None only for a recipe without smoothing.

    Returns:
        tensors by published name and one report per stored linear.

    Raises:
        UserError: a linear is missing, a weight is not finite, the statistics are missing or do
            not fit, or a folded scale would round.
    """
    for linear in architecture.linears:
        if f"{linear}.weight" not in state_dict:
            raise UserError(
                f"quantize_branch: {branch} must hold {linear}.weight, got {len(state_dict)} other "
                "tensors; pass an unquantized Ideogram 4 branch"
            )
    quantized = quantized_linears(architecture, resolved, branch)
    int8_parts = {part for linear in quantized for part in linear.parts}
    folds = [fold for fold in architecture.folds if int8_parts & set(fold.targets)]
    scales = _smoothing_scales(state_dict, folds, branch, resolved, stats)
    tensors, smooth = dict(state_dict), {}
    if scales and resolved.recipe.smoothing_carrier == "folded":
        snapped = {name: snap_power_of_two(scale) for name, scale in scales.items()}
        tensors = fold_all(state_dict, folds, snapped, exact=True)
    elif scales:
        smooth = {target: scales[fold.name] for fold in folds for target in fold.targets}

    published: dict[str, torch.Tensor] = {}
    reports = []
    for linear in architecture.stored:
        weights = [tensors.pop(f"{part}.weight") for part in linear.parts]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]  # (N, K)
        vector = smooth.get(linear.parts[0])
        scaled = weight.float() if vector is None else weight.float() * vector.to(weight.device)
        codes, row_scales = quantize_weight(scaled, f"{branch}.{linear.name}")
        is_int8 = linear in quantized
        if is_int8:
            published[f"{linear.name}.wq"] = codes
            published[f"{linear.name}.ws"] = row_scales
            if vector is not None:
                published[f"{linear.name}.smooth"] = vector.clone()  # w1 and w3 share it
        else:
            published[f"{linear.name}.weight"] = weight
        biases = [tensors.pop(f"{part}.bias") for part in linear.parts if f"{part}.bias" in tensors]
        if biases:
            published[f"{linear.name}.bias"] = torch.cat(biases)
        rounded = dequantize(codes, row_scales[:, None], torch.float32)
        error = relative_error(scaled, rounded)
        fold = next(fold for fold in architecture.folds if linear.parts[0] in fold.targets)
        crest = None if stats is None else max_crest(stats, f"{branch}/{fold.name}")
        reports.append(LayerReport(branch, linear.name, crest, not is_int8, error))
    return QuantizedBranch({**tensors, **published}, tuple(reports))


def _smoothing_scales(
    state_dict: Mapping[str, torch.Tensor],
    folds: list[Fold],
    branch: str,
    resolved: ResolvedRecipe,
    stats: ActStats | None,
) -> dict[str, torch.Tensor]:
    """Compute eq. 4 for each fold from the weights as they came; empty without smoothing.

    Columns are scaled before rows, so no fold reads a column maximum that an earlier one has
    changed: taking all maxima first gives the scales that the fixed order would see.
    """
    if resolved.recipe.alpha is None:
        return {}
    if stats is None:
        raise UserError(
            f"quantize_branch: recipe {resolved.recipe.name!r} smooths and needs activation "
            "statistics, got none; run scripts/calibrate.py or set alpha=null"
        )
    check_stats(stats, resolved.model_key)
    return {
        fold.name: smoothing_scale(
            absmax(stats, f"{branch}/{fold.name}"),
            [state_dict[f"{target}.weight"] for target in fold.targets],
            resolved.recipe.alpha,
        )
        for fold in folds
    }
