"""SmoothQuant scales, and folding them into the modules that produce an activation.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)                 SmoothQuant, arXiv:2211.10438, eq. 4
    X W = (X diag(s)^-1) (diag(s) W)                            ibid., eq. 3

Dividing X by s can be left to run time (an explicit vector) or done once in the source of X, a norm
weight or the rows of the linear before. A folded scale is exact in bf16 only if it is a power of
two: then every product is the old one with another exponent and every rounding falls the same way.
So folded scales are snapped and explicit ones keep their true values.

`plan_folds` works out what smoothing does to every tensor of a branch before any is written. A
folded group multiplies the columns of its linears and divides the output channels of its source.
`to_v` and `w3` are targets of one group and sources of another; multiplication and division of a
matrix by row and column vectors commute, and powers of two round nothing, so both are applied in
one pass over the rows.

`search_alphas` chooses the migration strength of a group by the error of its output,

    alpha* = argmin over a grid of || X W^T - Q(X / s) Q(W diag(s))^T ||_F / || X W^T ||_F

over the rows that the calibration kept (quant/calibrate.py) and all linears of the group together,
with s as it will be used: snapped to powers of two where it is folded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from dit8.quant.calibrate import absmax
from dit8.quant.checkpoint.read import BranchSource, StoredWeight
from dit8.quant.errors import UserError
from dit8.quant.files import over_blocks
from dit8.quant.int8 import dequantize, quantize_rows, quantize_weight, relative_of
from dit8.quant.types import ActStats, Architecture, Group, ResolvedRecipe


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


@dataclass(frozen=True)
class FoldPlan:
    """Vectors to apply; a tensor that is not named stays as it is."""

    columns: dict[str, torch.Tensor] = field(default_factory=dict)  # linear -> (K,) factor
    rows: dict[str, torch.Tensor] = field(default_factory=dict)  # linear -> (N,) divisor
    norms: dict[str, torch.Tensor] = field(default_factory=dict)  # norm module -> (K,) divisor
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)  # group -> (K,) `.smooth`

    def absorb(self, group: Group, scale: torch.Tensor) -> None:
        """Divide the source's output channels by `scale`, multiply the targets' columns by it."""
        self.columns.update(dict.fromkeys(group.targets, scale))
        absorbing = self.norms if group.source_kind == "norm" else self.rows
        absorbing[group.source] = scale

    def weight_rows(self, weight: StoredWeight, linear: str, start: int, stop: int) -> torch.Tensor:
        """Return rows start..stop of a linear as they are quantized: (stop - start, K) fp32."""
        block = weight.rows(start, stop)
        if linear in self.columns:
            block = block * self.columns[linear]
        if linear in self.rows:
            block = block / self.rows[linear][start:stop, None]
        return block

    def tensor(self, source: BranchSource, name: str) -> torch.Tensor:
        """Return a tensor that is no linear's weight, divided if its module feeds a folded group.

        Raises:
            UserError: the division would round in the tensor's dtype.
        """
        tensor, divisor = source.tensor(name), self._divisor(name)
        return tensor if divisor is None else divided(tensor, divisor, name)

    def _divisor(self, name: str) -> torch.Tensor | None:
        module = name.rpartition(".")[0]
        return self.norms.get(module, self.rows.get(module))


def fold(
    tensors: Mapping[str, torch.Tensor],
    groups: Sequence[Group],
    scales: Mapping[str, torch.Tensor],
    *,
    exact: bool,
) -> dict[str, torch.Tensor]:
    """Fold the scales of several groups into a state dict, in the tensors' own dtypes.

    `to_v` and `w3` are targets of one group and sources of another: columns first, then rows.

    Args:
        tensors: a branch's state dict; left as it is.
        groups: with a source, in any order.
        scales: group name -> (K,) > 0.
        exact: demand that every change can be undone bit for bit, as for powers of two.

    Returns:
        the whole state dict, changed tensors replaced. A target's bias does not change.

    Raises:
        UserError: `exact` and a tensor left the range of its dtype.
    """
    plan, result = FoldPlan(), dict(tensors)
    for group in groups:
        plan.absorb(group, scales[group.name])
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module in plan.columns:
            factor = plan.columns[module].to(tensor.device)
            result[name] = (tensor * factor).to(tensor.dtype)
            if exact:
                _check_undone(result[name] / factor, tensor, factor, name)
        if (divisor := plan._divisor(name)) is not None:
            divisor = divisor.to(tensor.device)
            divisor = divisor[:, None] if tensor.ndim == 2 else divisor
            result[name] = divided(result[name], divisor, name, exact=exact)
    return result


def divided(
    tensor: torch.Tensor, divisor: torch.Tensor, name: str, *, exact: bool = True
) -> torch.Tensor:
    """Divide by powers of two in a tensor's own dtype, so that multiplying gives it back.

    Raises:
        UserError: `exact`, and a value leaves the range of the dtype.
    """
    result = (tensor / divisor).to(tensor.dtype)
    if exact:
        _check_undone(result * divisor, tensor, divisor, name)
    return result


def _check_undone(
    undone: torch.Tensor, tensor: torch.Tensor, scale: torch.Tensor, name: str
) -> None:
    if not torch.equal(undone.to(tensor.dtype), tensor):
        raise UserError(
            f"fold: {name} must fold without rounding in "
            f"{str(tensor.dtype).removeprefix('torch.')}, got scales from "
            f"{float(scale.min()):g} to {float(scale.max()):g}; use smoothing_carrier=explicit"
        )


def plan_folds(
    source: BranchSource,
    architecture: Architecture,
    branch: str,
    resolved: ResolvedRecipe,
    stats: ActStats | None,
) -> FoldPlan:
    """Compute SmoothQuant's scale (quant/smoothquant.py) of every smoothed group of a branch.

    Reads every weight of those groups once. Column maxima come from the weights as they are in the
    source: no group changes the columns that another reads.

    Raises:
        UserError: the recipe smooths and the statistics are missing or lack a group.
    """
    plan = FoldPlan()
    for group in architecture.groups:
        scheme = resolved.scheme(branch, group)
        if not scheme.is_int8 or scheme.alpha is None:
            continue
        if stats is None:
            raise UserError(
                f"plan_folds: recipe {resolved.recipe.name!r} smooths and needs activation "
                "statistics, got none; run scripts/calibrate.py or set alpha=null"
            )
        weights = [source.weight(target) for target in group.targets]
        act = absmax(stats, f"{branch}/{group.name}")
        scale = smoothing_scale(act, column_absmax(weights), scheme.alpha)
        if scheme.carrier == "explicit":
            plan.vectors[group.name] = scale
            plan.columns.update(dict.fromkeys(group.targets, scale))
            continue
        plan.absorb(group, snap_power_of_two(scale))
    return plan


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
    squares = []
    for weight in weights:
        for block in weight.blocks():
            rows = weight.rows(*block)
            exact = x @ rows.T
            codes, scales = quantize_weight(rows * scale)
            made = rounded @ dequantize(codes, scales[:, None], torch.float32).T
            squares.append(
                tuple(float(torch.linalg.vector_norm(t)) ** 2 for t in (made - exact, exact))
            )
    return relative_of(squares)


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
