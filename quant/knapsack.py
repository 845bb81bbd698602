"""Choose one scheme for every group so that the damage is least within a budget of time.

    minimize    sum_g sum_s d_gs^2 x_gs
    subject to  sum_s x_gs = 1 for every g,   sum_g sum_s c_gs x_gs <= budget,   x_gs in {0, 1}

the multiple-choice knapsack (Sinha and Zoltners 1979), solved to the optimum by HiGHS through
`scipy.optimize.milp`. Squares, because the errors of different groups are taken as uncorrelated:
their norms then add like the legs of a right angle.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from dit8.quant.errors import UserError

# HiGHS stops within 1e-6 of the optimum, an absolute gap that scipy cannot set. The objective is
# scaled so that the largest single d^2 is a million: what is left is 1e-12 of it.
OBJECTIVE_SCALE = 1e6
# Its rows hold to about 1e-6 of their scale, which is the budget here.
BUDGET_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Option:
    """What one scheme makes of a group."""

    scheme: str
    cost: float  # ms
    damage: float  # relative error, weighted over timesteps


@dataclass(frozen=True)
class Item:
    """A group and what may become of it."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Choice:
    """A scheme for every group, and what that costs and does."""

    schemes: dict[str, str]  # item -> scheme
    cost: float
    damage: float  # root of the sum of squares


def choose_schemes(items: Sequence[Item], budget: float) -> Choice:
    """Solve the problem above.

    Args:
        items: with unique names and one option at least.
        budget: largest total cost; kept to one part in a million.

    Returns:
        the optimum; of equally damaging options the cheapest, then the first.

    Raises:
        UserError: no choice is that cheap; says what the cheapest one costs.
        ValueError: an item without options, two of one name, or a number that is negative or not
            finite.
    """
    _check(items)
    least = sum(min(option.cost for option in item.options) for item in items)
    if budget < least * (1 - BUDGET_TOLERANCE):
        raise UserError(
            f"choose_schemes: the budget must be at least {least:.6g} ms, the cheapest choice, "
            f"got {budget:.6g} ms; allow more latency"
        )
    kept = [_undominated(item) for item in items]
    pairs = [(index, option) for index, options in enumerate(kept) for option in options]
    if not pairs:
        return Choice({}, 0.0, 0.0)
    squares = np.array([option.damage**2 for _, option in pairs])
    costs = np.array([option.cost for _, option in pairs])
    groups = np.array([index for index, _ in pairs])
    one_each = scipy.sparse.csr_array(
        (np.ones(len(pairs)), (groups, np.arange(len(pairs)))), shape=(len(items), len(pairs))
    )
    unit = max(budget, least) or 1.0
    result = scipy.optimize.milp(
        squares * (OBJECTIVE_SCALE / (squares.max() or 1.0)),
        integrality=np.ones(len(pairs)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(one_each, 1, 1),
            scipy.optimize.LinearConstraint(costs[None] / unit, -np.inf, max(budget, least) / unit),
        ],
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise RuntimeError(f"choose_schemes: HiGHS found no solution: {result.message}")
    chosen = [pair for pair, x in zip(pairs, result.x, strict=True) if x > 0.5]
    return _choice(items, [option for _, option in chosen])


def pareto(items: Sequence[Item], points: int) -> list[Choice]:
    """Trace least damage against cost, from the cheapest choice to the least damaging one.

    Args:
        items: as in `choose_schemes`.
        points: budgets tried, equally spaced, >= 2; equal choices are listed once.

    Returns:
        choices of rising cost and falling damage.

    Raises:
        ValueError: `points` below 2; see `choose_schemes`.
    """
    if points < 2:
        raise ValueError(f"pareto: points must be at least 2, got {points}")
    _check(items)
    kept = [_undominated(item) for item in items]
    low = sum(options[0].cost for options in kept)  # by rising cost and falling damage
    high = sum(options[-1].cost for options in kept)
    curve: list[Choice] = []
    for budget in np.linspace(low, high, points):
        choice = choose_schemes(items, float(budget))
        if not curve or choice.damage < curve[-1].damage:
            curve.append(choice)
    return curve


def explain(items: Sequence[Item], choice: Choice) -> dict[str, str]:
    """Say for every group what its scheme does and what each other one would change."""
    return {item.name: _reason(item, choice.schemes[item.name]) for item in items}


def _reason(item: Item, scheme: str) -> str:
    chosen = next(option for option in item.options if option.scheme == scheme)
    parts = [f"{scheme}: damage {chosen.damage:.2g}"]
    for option in item.options:
        if option is not chosen:
            cost, damage = option.cost - chosen.cost, option.damage - chosen.damage
            parts.append(f"{option.scheme} would {_cost(cost)} for {_damage(damage)}")
    return "; ".join(parts)


def _cost(ms: float) -> str:
    if abs(ms) < 5e-7:
        return "cost the same"
    return f"cost {ms:.2g} ms more" if ms > 0 else f"save {-ms:.2g} ms"


def _damage(change: float) -> str:
    if change == 0:
        return "equal damage"
    return f"{abs(change):.2g} {'more' if change > 0 else 'less'} damage"


def _undominated(item: Item) -> list[Option]:
    """Sort by cost and drop what costs more, or as much, without damaging less."""
    kept: list[Option] = []
    for option in sorted(item.options, key=lambda option: (option.cost, option.damage)):
        if not kept or option.damage < kept[-1].damage:
            kept.append(option)
    return kept


def _choice(items: Sequence[Item], options: Sequence[Option]) -> Choice:
    schemes = {item.name: o.scheme for item, o in zip(items, options, strict=True)}
    damage = math.sqrt(sum(option.damage**2 for option in options))
    return Choice(schemes, sum(option.cost for option in options), damage)


def _check(items: Sequence[Item]) -> None:
    names = [item.name for item in items]
    if len(set(names)) != len(names):
        raise ValueError(f"choose_schemes: items must have unique names, got {sorted(names)}")
    for item in items:
        if not item.options:
            raise ValueError(f"choose_schemes: {item.name} must have at least one option, got none")
        for option in item.options:
            if not all(math.isfinite(v) and v >= 0 for v in (option.cost, option.damage)):
                raise ValueError(
                    f"choose_schemes: cost and damage of {item.name} as {option.scheme} must be "
                    f"finite and >= 0, got {option.cost} and {option.damage}"
                )


def as_items(
    costs: Mapping[str, Mapping[str, float]], damages: Mapping[str, Mapping[str, float]]
) -> list[Item]:
    """Join costs and damages, group -> scheme -> number, into items.

    Raises:
        ValueError: the two have other groups or schemes.
    """
    if {g: set(s) for g, s in costs.items()} != {g: set(s) for g, s in damages.items()}:
        raise ValueError("as_items: costs and damages must have the same groups and schemes")
    return [
        Item(group, tuple(Option(scheme, costs[group][scheme], d) for scheme, d in row.items()))
        for group, row in damages.items()
    ]
