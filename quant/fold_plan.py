"""What smoothing does to every tensor of a branch, worked out before any is written.

A folded group multiplies the columns of its linears and divides the output channels of its source.
`to_v` and `w3` are targets of one group and sources of another; multiplication and division of a
matrix by row and column vectors commute, and powers of two round nothing, so both are applied in
one pass over the rows.
"""

from dataclasses import dataclass, field

import torch

from dit8.quant.act_stats import absmax
from dit8.quant.errors import UserError
from dit8.quant.smooth import column_absmax, smoothing_scale, snap_power_of_two
from dit8.quant.source import BranchSource, StoredWeight
from dit8.quant.types import ActStats, Architecture, ResolvedRecipe


@dataclass(frozen=True)
class FoldPlan:
    """Vectors to apply; a tensor that is not named stays as it is."""

    columns: dict[str, torch.Tensor] = field(default_factory=dict)  # linear -> (K,) factor
    rows: dict[str, torch.Tensor] = field(default_factory=dict)  # linear -> (N,) divisor
    norms: dict[str, torch.Tensor] = field(default_factory=dict)  # norm module -> (K,) divisor
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)  # group -> (K,) `.smooth`

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
        tensor = source.tensor(name)
        module = name.rpartition(".")[0]
        divisor = self.norms.get(module, self.rows.get(module))
        return tensor if divisor is None else divided(tensor, divisor, name)


def divided(tensor: torch.Tensor, divisor: torch.Tensor, name: str) -> torch.Tensor:
    """Divide by powers of two in a tensor's own dtype, so that multiplying gives it back.

    Raises:
        UserError: a value leaves the range of the dtype.
    """
    result = (tensor.float() / divisor).to(tensor.dtype)
    if not torch.equal((result.float() * divisor).to(tensor.dtype), tensor):
        raise UserError(
            f"fold_plan: {name} must fold without rounding in "
            f"{str(tensor.dtype).removeprefix('torch.')}, got scales from "
            f"{float(divisor.min()):g} to {float(divisor.max()):g}; use smoothing_carrier=explicit"
        )
    return result


def plan_folds(
    source: BranchSource,
    architecture: Architecture,
    branch: str,
    resolved: ResolvedRecipe,
    stats: ActStats | None,
) -> FoldPlan:
    """Compute SmoothQuant's scale (quant/smooth.py) of every smoothed group of a branch.

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
        scale = snap_power_of_two(scale)
        plan.columns.update(dict.fromkeys(group.targets, scale))
        absorbing = plan.norms if group.source_kind == "norm" else plan.rows
        absorbing[group.source] = scale
    return plan
