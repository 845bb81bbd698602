"""SmoothQuant scales, and folding them into the modules that produce an activation.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)                 SmoothQuant, arXiv:2211.10438, eq. 4
    X W = (X diag(s)^-1) (diag(s) W)                            ibid., eq. 3

Dividing X by s can be left to run time (an explicit vector) or done once in the source of X, a
norm weight or the rows of the linear before. A folded scale is exact in bf16 only if it is a power
of two: then every product is the old one with another exponent and every rounding falls the same
way. So folded scales are snapped and explicit ones keep their true values.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from quant.errors import UserError
from quant.types import Fold


def smoothing_scale(
    act_absmax: torch.Tensor, weights: Sequence[torch.Tensor], alpha: float
) -> torch.Tensor:
    """Compute eq. 4 for one activation read by several linears.

    max|W_j| is taken over all the linears, because they share one quantized activation.

    Args:
        act_absmax: (K,) fp32, largest magnitude of each channel, unsmoothed.
        weights: (N_i, K) each, any floating dtype.
        alpha: migration strength in [0, 1]; 1 moves all of the difficulty into the weights.

    Returns:
        s: (K,) fp32 > 0; 1 where the channel or its column was never other than zero.

    Raises:
        ValueError: shapes disagree.
    """
    widths = {weight.shape[-1] for weight in weights}
    if widths != {act_absmax.shape[-1]}:
        raise ValueError(
            f"smoothing_scale: weights must be (N, K) with K={act_absmax.shape[-1]}, "
            f"got K in {sorted(widths)}; the statistics belong to another layer"
        )
    columns = [weight.abs().amax(dim=0).float() for weight in weights]  # (K,) each
    weight_absmax = torch.stack(columns).amax(dim=0)
    act = act_absmax.to(weight_absmax.device)
    scale = act.pow(alpha) / weight_absmax.pow(1.0 - alpha)
    return torch.where((act > 0) & (weight_absmax > 0), scale, 1.0)


def snap_power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """Round each positive scale to the nearest power of two in the log domain, without error.

    frexp gives s = m * 2^e with m in [0.5, 1); s / m is 2^e exactly, and 2^(e - 1) is nearer when
    m < sqrt(0.5). (exp2 of a rounded log2 need not return an exact power of two.)
    """
    mantissa, _ = torch.frexp(scale)
    upper = scale / mantissa
    return torch.where(mantissa < math.sqrt(0.5), upper / 2, upper)


def fold_scale(
    tensors: Mapping[str, torch.Tensor], fold: Fold, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Divide the source's output channels by `scale`, multiply the targets' columns by it.

    Args:
        tensors: a branch's state dict; left as it is.
        fold: which modules.
        scale: (K,) > 0.

    Returns:
        the changed tensors only, in their own dtype: source weight (and bias), target weights.
        A target's bias does not change.
    """
    changed = {}
    for name in (f"{fold.source}.weight", f"{fold.source}.bias"):
        if name not in tensors:
            continue  # norms and to_v, w3 have no bias here
        source = tensors[name]
        divisor = scale.to(source.device)
        divisor = divisor[:, None] if source.ndim == 2 else divisor
        changed[name] = (source / divisor).to(source.dtype)
    for target in fold.targets:
        weight = tensors[f"{target}.weight"]  # (N, K)
        changed[f"{target}.weight"] = (weight * scale.to(weight.device)).to(weight.dtype)
    return changed


def fold_all(
    tensors: Mapping[str, torch.Tensor],
    folds: Sequence[Fold],
    scales: Mapping[str, torch.Tensor],
    *,
    exact: bool,
) -> dict[str, torch.Tensor]:
    """Apply several folds: a layer both fed and feeding gets its columns first, then its rows.

    `to_v` and `w3` are targets of a norm's fold and sources of a linear's fold; norms go first.

    Args:
        tensors: a branch's state dict; left as it is.
        folds: in any order.
        scales: fold name -> (K,) > 0.
        exact: demand that every change can be undone bit for bit, as for powers of two.

    Returns:
        the whole state dict, changed tensors replaced.

    Raises:
        UserError: `exact` and a tensor left the range of its dtype.
    """
    result = dict(tensors)
    for fold in sorted(folds, key=lambda fold: fold.source_kind == "linear"):
        scale = scales[fold.name]
        changed = fold_scale(result, fold, scale)
        if exact:
            undone = fold_scale({**result, **changed}, fold, 1.0 / scale)
            for name, tensor in undone.items():
                if not torch.equal(tensor, result[name]):
                    raise UserError(
                        f"fold_all: {name} must fold without rounding, got scales from "
                        f"{float(scale.min()):g} to {float(scale.max()):g} in {tensor.dtype}; "
                        "use smoothing_carrier=explicit"
                    )
        result.update(changed)
    return result
