"""Choose SmoothQuant's migration strength for every group by the error of its output.

    alpha* = argmin over a grid of || X W^T - Q(X / s) Q(W diag(s))^T ||_F / || X W^T ||_F

over the rows that the calibration kept (quant/act_stats.py) and all linears of the group together,
with s as it will be used: snapped to powers of two where it is folded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from dit8.quant.act_stats import absmax
from dit8.quant.errors import UserError
from dit8.quant.int8 import dequantize, quantize_rows, quantize_weight
from dit8.quant.smooth import column_absmax, smoothing_scale, snap_power_of_two
from dit8.quant.source import BranchSource, StoredWeight
from dit8.quant.types import ActStats, Architecture, ResolvedRecipe


def output_error(
    samples: torch.Tensor, weights: Sequence[StoredWeight], scale: torch.Tensor
) -> float:
    """Measure the relative output error of a group in W8A8 after dividing its input by `scale`.

    Args:
        samples: (R, K) rows of the activation.
        weights: (N_i, K) each.
        scale: (K,) > 0.
    """
    x = samples.float()
    codes, row_scales = quantize_rows(x, scale)
    rounded = dequantize(codes, row_scales, torch.float32)
    error = norm = 0.0
    for weight in weights:
        for block in weight.blocks():
            rows = weight.rows(*block)
            exact = x @ rows.T
            codes, scales = quantize_weight(rows * scale)
            made = rounded @ dequantize(codes, scales[:, None], torch.float32).T
            error += float(torch.linalg.vector_norm(made - exact)) ** 2
            norm += float(torch.linalg.vector_norm(exact)) ** 2
    return math.sqrt(error / norm) if norm > 0 else 0.0


def search_alphas(
    resolved: ResolvedRecipe,
    architecture: Architecture,
    stats: ActStats,
    sources: Mapping[str, BranchSource],
) -> ResolvedRecipe:
    """Replace the strength of every smoothed group by the best of the recipe's grid.

    Returns:
        the recipe with its schemes and reasons filled in. Ties go to the first of the grid.

    Raises:
        UserError: the statistics hold no sample rows.
    """
    schemes, reasons = dict(resolved.schemes), dict(resolved.reasons)
    for branch, source in sources.items():
        for group in architecture.groups:
            key = f"{branch}/{group.name}"
            scheme = schemes[key]
            if not scheme.is_int8 or group.role == "rest":
                continue
            if key not in stats.samples:
                raise UserError(
                    f"search_alphas: the statistics must hold sample rows of {key}, got none; "
                    "calibrate with calibration.samples above 0"
                )
            weights = [source.weight(target) for target in group.targets]
            act, columns = absmax(stats, key), column_absmax(weights)
            errors = {}
            for alpha in resolved.recipe.alpha_grid:
                scale = smoothing_scale(act, columns, alpha)
                if group.source is not None and resolved.recipe.smoothing_carrier == "folded":
                    scale = snap_power_of_two(scale)
                errors[alpha] = output_error(stats.samples[key], weights, scale)
            best = min(errors, key=errors.get)
            carrier = "explicit" if group.source is None else resolved.recipe.smoothing_carrier
            schemes[key] = replace(scheme, alpha=best, carrier=carrier)
            listed = ", ".join(f"{alpha:g}: {error:.4f}" for alpha, error in errors.items())
            reasons[key] = f"alpha {best:g} has the smallest output error ({listed})"
    return replace(resolved, schemes=schemes, reasons=reasons)
