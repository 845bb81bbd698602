"""Choose a scheme per group from measured damage and modelled cost: the recipe `auto`.

To first order the final latents err by the sum over steps of what the velocity errs,

    dx = sum_b dt_b (g_b e_cond,b + (1 - g_b) e_uncond,b)

so a conditional error counts (dt g)^2 and an unconditional one (dt (1 - g))^2 at each step. The
damage of a group under a scheme is the root of its squared damages under those weights; groups are
then weighed against each other by `quant.knapsack`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dit8.quant.knapsack import Choice, as_items, choose_schemes, explain, pareto

CURVE_POINTS = 25


@dataclass(frozen=True)
class AutoChoice:
    """What was chosen, the alternatives at other budgets, and why."""

    schemes: dict[str, str]  # "branch/group" -> scheme
    cost: float
    damage: float  # root of the sum of squares over groups
    pareto: tuple[Choice, ...]  # rising cost, falling damage
    reasons: dict[str, str]  # "branch/group" -> sentence


def guidance_weights(
    guidance: Sequence[float], step_sizes: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weigh the squared damage of each timestep bin, conditional and unconditional.

    Takes the velocities of both branches and all steps as equally large.

    Args:
        guidance: g of each bin.
        step_sizes: time that the bin's steps cover, positive.

    Returns:
        two (bins,) fp64 that sum to 1 together.

    Raises:
        ValueError: lengths differ, no bins, or a step size that is not positive.
    """
    if len(guidance) != len(step_sizes) or not guidance or min(step_sizes) <= 0:
        raise ValueError(
            f"guidance_weights: need one positive step size per guidance, got {len(guidance)} and "
            f"{list(step_sizes)}"
        )
    g = torch.tensor(guidance, dtype=torch.float64)
    dt = torch.tensor(step_sizes, dtype=torch.float64)
    conditional, unconditional = (dt * g) ** 2, (dt * (1 - g)) ** 2
    total = (conditional + unconditional).sum()
    return conditional / total, unconditional / total


def weighted_damage(damage: torch.Tensor, weights: torch.Tensor) -> float:
    """Compute sqrt(sum_b w_b d_b^2).

    Args:
        damage: (bins,) fp64 >= 0.
        weights: (bins,) fp64 >= 0.

    Raises:
        ValueError: shapes differ.
    """
    if damage.shape != weights.shape or damage.ndim != 1:
        raise ValueError(
            f"weighted_damage: damage and weights must both be (bins,), got "
            f"{tuple(damage.shape)} and {tuple(weights.shape)}"
        )
    return math.sqrt(float((weights * damage.square()).sum()))


def choose(
    damage: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, torch.Tensor],
    costs: Mapping[str, Mapping[str, float]],
    budget: float,
) -> AutoChoice:
    """Choose a scheme for every group.

    Args:
        damage: "branch/group" -> scheme -> (bins,) fp64, from `quant.sensitivity`; a scheme that
            changes nothing, such as bf16, has zeros.
        weights: branch -> (bins,) fp64, see `guidance_weights`.
        costs: "branch/group" -> scheme -> ms, from `quant.latency`.
        budget: ms that all groups of both branches may take together.

    Returns:
        the choice, the Pareto curve over all budgets and a reason per group.

    Raises:
        UserError: the budget is below the cheapest choice.
        ValueError: damage and costs have other groups or schemes, or shapes disagree.
    """
    damages = {
        group: {
            scheme: weighted_damage(d, weights[group.partition("/")[0]])
            for scheme, d in row.items()
        }
        for group, row in damage.items()
    }
    items = as_items(costs, damages)
    chosen = choose_schemes(items, budget)
    curve = tuple(pareto(items, CURVE_POINTS))
    return AutoChoice(chosen.schemes, chosen.cost, chosen.damage, curve, explain(items, chosen))
