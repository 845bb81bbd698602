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

from dit8.quant.errors import UserError
from dit8.quant.files import over_blocks
from dit8.quant.source import StoredWeight
from dit8.quant.types import Group


def column_absmax(weights: Sequence[StoredWeight]) -> torch.Tensor:
    """Return max|W_j| over all the linears that share one quantized activation: (K,) fp32.

    Raises:
        ValueError: widths disagree.
    """
    widths = {weight.shape[1] for weight in weights}
    if len(widths) != 1:
        raise ValueError(f"column_absmax: weights must have one K, got {sorted(widths)}")
    maxima = [
        over_blocks(lambda block, w=weight: w.rows(*block).abs().amax(dim=0), weight.blocks())
        for weight in weights
    ]
    return torch.stack([part for parts in maxima for part in parts]).amax(dim=0)


def smoothing_scale(
    act_absmax: torch.Tensor, weight_absmax: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Compute eq. 4 for one activation.

    Args:
        act_absmax: (K,) fp32, largest magnitude of each channel, unsmoothed.
        weight_absmax: (K,) fp32, see `column_absmax`.
        alpha: migration strength in [0, 1]; 1 moves all of the difficulty into the weights.

    Returns:
        s: (K,) fp32 > 0; 1 where the channel or its column was never other than zero.

    Raises:
        ValueError: shapes disagree.
    """
    if act_absmax.shape != weight_absmax.shape:
        raise ValueError(
            f"smoothing_scale: act_absmax must be {tuple(weight_absmax.shape)} like the weight's "
            f"columns, got {tuple(act_absmax.shape)}; the statistics belong to another layer"
        )
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
    tensors: Mapping[str, torch.Tensor], group: Group, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Divide the source's output channels by `scale`, multiply the targets' columns by it.

    Args:
        tensors: a branch's state dict; left as it is.
        group: which modules; its source is one of the tensors' modules.
        scale: (K,) > 0.

    Returns:
        the changed tensors only, in their own dtype: source weight (and bias), target weights.
        A target's bias does not change.
    """
    changed = {}
    for name in (f"{group.source}.weight", f"{group.source}.bias"):
        if name not in tensors:
            continue  # norms and to_v, w3 have no bias here
        source = tensors[name]
        divisor = scale.to(source.device)
        divisor = divisor[:, None] if source.ndim == 2 else divisor
        changed[name] = (source / divisor).to(source.dtype)
    for target in group.targets:
        weight = tensors[f"{target}.weight"]  # (N, K)
        changed[f"{target}.weight"] = (weight * scale.to(weight.device)).to(weight.dtype)
    return changed


def fold_all(
    tensors: Mapping[str, torch.Tensor],
    groups: Sequence[Group],
    scales: Mapping[str, torch.Tensor],
    *,
    exact: bool,
) -> dict[str, torch.Tensor]:
    """Fold several groups: a layer both fed and feeding gets its columns first, then its rows.

    `to_v` and `w3` are targets of one group and sources of another; the norms' groups go first.

    Args:
        tensors: a branch's state dict; left as it is.
        groups: in any order.
        scales: group name -> (K,) > 0.
        exact: demand that every change can be undone bit for bit, as for powers of two.

    Returns:
        the whole state dict, changed tensors replaced.

    Raises:
        UserError: `exact` and a tensor left the range of its dtype.
    """
    result = dict(tensors)
    for group in sorted(groups, key=lambda group: group.source_kind == "linear"):
        scale = scales[group.name]
        changed = fold_scale(result, group, scale)
        if exact:
            undone = fold_scale({**result, **changed}, group, 1.0 / scale)
            for name, tensor in undone.items():
                if not torch.equal(tensor, result[name]):
                    raise UserError(
                        f"fold_all: {name} must fold without rounding, got scales from "
                        f"{float(scale.min()):g} to {float(scale.max()):g} in {tensor.dtype}; "
                        "use smoothing_carrier=explicit"
                    )
        result.update(changed)
    return result
