"""Choose a scheme per group from measured damage and modelled cost: the recipe `auto`.

To first order the final latents err by the sum over steps of what the velocity errs,

    dx = sum_b dt_b (g_b e_cond,b + (1 - g_b) e_uncond,b)

so a conditional error counts (dt g)^2 and an unconditional one (dt (1 - g))^2 at each step. The
damage of a group under a scheme is the root of its squared damages under those weights. Schemes are
then chosen so that the damage is least within a budget of time,

    minimize    sum_g sum_s d_gs^2 x_gs
    subject to  sum_s x_gs = 1 for every g,   sum_g sum_s c_gs x_gs <= budget,   x_gs in {0, 1}

the multiple-choice knapsack (Sinha and Zoltners 1979), solved to the optimum by HiGHS through
`scipy.optimize.milp`. Squares, because the errors of different groups are taken as uncorrelated:
their norms then add like the legs of a right angle.

The time of a group under a scheme is modelled from a table of one GPU, which holds one row per
(role, scheme): the time of the group's single GEMM (q, k and v stacked, w1 and w3 stacked) at M
rows, row quantization included. What is not in the table is scaled from the row that is most like
it, by multiply-accumulates: it ranks schemes, it predicts no picture's time.
`conf/latency/h200.csv` was not measured by this repository; its column `source` says how each
figure was got. It lies in `conf`, as an input, because `results` holds measurements only. Its 1.79
TB/s is the rate of the row quantization in the same reference: 5.0 ms a forward for 34 blocks, 4396
rows and 19,968 input channels a block (w2 in half of them), 3 bytes a value.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import scipy
import torch

from dit8.quant.errors import UserError
from dit8.quant.types import Group, Scheme

SCHEMES = ("bf16", "int8", "int8_rotate")


@dataclass(frozen=True)
class GemmTime:
    """One row of a latency table."""

    gpu: str
    role: str
    n: int
    k: int
    scheme: str  # one of SCHEMES
    m: int  # rows the time is for
    ms: float
    source: str


COLUMNS = tuple(field.name for field in fields(GemmTime))


def load_latency(path: str | Path) -> tuple[GemmTime, ...]:
    """Read a latency table.

    Raises:
        UserError: no such file, other columns, or a row that is not one; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"load_latency: {path} must be a latency table, got no such file; "
            "use conf/latency/h200.csv or make one with the same columns"
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            raise UserError(
                f"load_latency: {path} must have the columns {', '.join(COLUMNS)}, got "
                f"{', '.join(header) or 'none'}; correct the first line"
            )
        rows = tuple(_row(cells, f"{path}:{reader.line_num}") for cells in reader)
    if not rows:
        raise UserError(f"load_latency: {path} must have rows, got none; restore it")
    sizes = {row.m for row in rows}, {row.gpu for row in rows}
    if any(len(values) > 1 for values in sizes):
        raise UserError(
            f"load_latency: {path} must be of one GPU and one M, got {sorted(sizes[1])} and "
            f"{sorted(sizes[0])}; split the table"
        )
    return rows


def _row(cells: list[str], where: str) -> GemmTime:
    kinds = [field.type for field in fields(GemmTime)]
    try:
        row = GemmTime(*(kind(cell) for kind, cell in zip(kinds, cells, strict=True)))
    except ValueError as error:
        raise UserError(
            f"load_latency: {where} must have {len(kinds)} cells of the right types, got {cells} "
            f"({error}); correct it"
        ) from error
    positive = row.n > 0 and row.k > 0 and row.m > 0 and row.ms > 0 and math.isfinite(row.ms)
    if row.scheme not in SCHEMES or not positive:
        raise UserError(
            f"load_latency: {where} must have one of the schemes {', '.join(SCHEMES)} and positive "
            f"n, k, m and ms, got {row.scheme} {row.n} {row.k} {row.m} {row.ms}; correct it"
        )
    return row


def role_of(group: Group) -> str:
    """Name what a group does in its block: qkv, up, o, w2, text, adaln or outside.

    The last part of the group's name for those of a block, whatever the architecture.
    """
    if group.role == "text":
        return "text"
    if group.role == "rest":
        return "adaln" if "adaln" in group.name else "outside"
    return group.name.rpartition(".")[2]


def latency_scheme(scheme: Scheme) -> str:
    """Name the row of the table that a scheme is timed by; smoothing costs nothing in it."""
    if not scheme.is_int8:
        return "bf16"
    return "int8_rotate" if scheme.rotation else "int8"


def group_cost(
    table: Sequence[GemmTime],
    group: Group,
    shapes: Mapping[str, tuple[int, int]],
    scheme: str,
) -> float:
    """Model the time of all linears of a group together.

    Where the shape is not in the table, the row of the same role is scaled by multiply-accumulates,
    N K / (N_row K_row); a role that the table lacks takes the row nearest in log N and log K.

    Args:
        table: of one GPU, from `load_latency`.
        group: which linears.
        shapes: linear -> (N, K), at least the group's targets.
        scheme: one of SCHEMES, see `latency_scheme`.

    Returns:
        ms at the table's M rows.

    Raises:
        ValueError: unknown scheme, or one that the table has no row of.
    """
    rows = [row for row in table if row.scheme == scheme]
    if not rows:
        raise ValueError(f"group_cost: the table has no row of scheme {scheme!r}")
    n, k = sum(shapes[target][0] for target in group.targets), shapes[group.targets[0]][1]
    exact = [row for row in rows if (row.n, row.k) == (n, k)]
    alike = [row for row in rows if row.role == role_of(group)]

    def distance(row: GemmTime) -> float:
        return abs(math.log(row.n / n)) + abs(math.log(row.k / k))

    nearest = min(exact or alike or rows, key=distance)
    return nearest.ms * (n * k) / (nearest.n * nearest.k)


# HiGHS stops within 1e-6 of the optimum, an absolute gap that scipy cannot set. The objective is
# scaled so that the largest single d^2 is a million: what is left is 1e-12 of it.
OBJECTIVE_SCALE = 1e6
# Its rows hold to about 1e-6 of their scale, which is the budget here.
BUDGET_TOLERANCE = 1e-6
CURVE_POINTS = 25

Table = Mapping[str, Mapping[str, float]]  # group -> scheme -> ms, or -> damage


@dataclass(frozen=True)
class Selection:
    """A scheme for every group, and what that costs and does."""

    schemes: dict[str, str]  # group -> scheme
    cost: float  # ms
    damage: float  # root of the sum of squares over groups


@dataclass(frozen=True)
class AutoChoice(Selection):
    """What was chosen, the alternatives at other budgets, and why."""

    pareto: tuple[Selection, ...]  # rising cost, falling damage
    reasons: dict[str, str]  # "branch/group" -> sentence


def choose_schemes(costs: Table, damages: Table, budget: float) -> Selection:
    """Solve the multiple-choice knapsack above.

    Args:
        costs: group -> scheme -> ms.
        damages: of the same groups and schemes, relative errors.
        budget: largest total cost; kept to one part in a million.

    Returns:
        the optimum; of equally damaging schemes the cheapest, then the first.

    Raises:
        UserError: no choice is that cheap; says what the cheapest one costs.
        ValueError: the tables disagree, a group without schemes, or a number that is negative or
            not finite.
    """
    _check(costs, damages)
    least = sum(min(row.values()) for row in costs.values())
    if budget < least * (1 - BUDGET_TOLERANCE):
        raise UserError(
            f"choose_schemes: the budget must be at least {least:.6g} ms, the cheapest choice, "
            f"got {budget:.6g} ms; allow more latency"
        )
    kept = [(g, s) for g in damages for s in _undominated(costs[g], damages[g])]
    if not kept:
        return Selection({}, 0.0, 0.0)
    squares = np.array([damages[g][s] ** 2 for g, s in kept])
    times = np.array([costs[g][s] for g, s in kept])
    place = {group: index for index, group in enumerate(damages)}
    groups = np.array([place[g] for g, _ in kept])
    one_each = scipy.sparse.csr_array(
        (np.ones(len(kept)), (groups, np.arange(len(kept)))), shape=(len(damages), len(kept))
    )
    unit = max(budget, least) or 1.0
    result = scipy.optimize.milp(
        squares * (OBJECTIVE_SCALE / (squares.max() or 1.0)),
        integrality=np.ones(len(kept)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(one_each, 1, 1),
            scipy.optimize.LinearConstraint(times[None] / unit, -np.inf, max(budget, least) / unit),
        ],
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise RuntimeError(f"choose_schemes: HiGHS found no solution: {result.message}")
    schemes = {g: s for (g, s), x in zip(kept, result.x, strict=True) if x > 0.5}
    cost = sum(costs[g][s] for g, s in schemes.items())
    return Selection(schemes, cost, math.sqrt(sum(damages[g][s] ** 2 for g, s in schemes.items())))


def pareto(costs: Table, damages: Table, points: int) -> list[Selection]:
    """Trace least damage against cost, from the cheapest choice to the least damaging one.

    Args:
        costs, damages: as in `choose_schemes`.
        points: budgets tried, equally spaced, >= 2; equal choices are listed once.

    Returns:
        choices of rising cost and falling damage.

    Raises:
        ValueError: `points` below 2; see `choose_schemes`.
    """
    if points < 2:
        raise ValueError(f"pareto: points must be at least 2, got {points}")
    _check(costs, damages)
    kept = {g: _undominated(costs[g], damages[g]) for g in damages}  # rising cost, falling damage
    low, high = (sum(costs[g][schemes[end]] for g, schemes in kept.items()) for end in (0, -1))
    curve: list[Selection] = []
    for budget in np.linspace(low, high, points):
        found = choose_schemes(costs, damages, float(budget))
        if not curve or found.damage < curve[-1].damage:
            curve.append(found)
    return curve


def explain(costs: Table, damages: Table, schemes: Mapping[str, str]) -> dict[str, str]:
    """Say for every group what its scheme does and what each other one would change."""
    reasons = {}
    for group, chosen in schemes.items():
        parts = [f"{chosen}: damage {damages[group][chosen]:.2g}"]
        for other, damage in damages[group].items():
            if other != chosen:
                cost = _cost(costs[group][other] - costs[group][chosen])
                change = _damage(damage - damages[group][chosen])
                parts.append(f"{other} would {cost} for {change}")
        reasons[group] = "; ".join(parts)
    return reasons


def _cost(ms: float) -> str:
    if abs(ms) < 5e-7:
        return "cost the same"
    return f"cost {ms:.2g} ms more" if ms > 0 else f"save {-ms:.2g} ms"


def _damage(change: float) -> str:
    if change == 0:
        return "equal damage"
    return f"{abs(change):.2g} {'more' if change > 0 else 'less'} damage"


def _undominated(costs: Mapping[str, float], damages: Mapping[str, float]) -> list[str]:
    """Sort schemes by cost and drop what costs more, or as much, without damaging less."""
    kept: list[str] = []
    for scheme in sorted(damages, key=lambda scheme: (costs[scheme], damages[scheme])):
        if not kept or damages[scheme] < damages[kept[-1]]:
            kept.append(scheme)
    return kept


def _check(costs: Table, damages: Table) -> None:
    if {g: set(s) for g, s in costs.items()} != {g: set(s) for g, s in damages.items()}:
        raise ValueError("choose_schemes: costs and damages must have the same groups and schemes")
    for group, row in damages.items():
        if not row:
            raise ValueError(f"choose_schemes: {group} must have at least one scheme, got none")
        for scheme, damage in row.items():
            if not all(math.isfinite(v) and v >= 0 for v in (costs[group][scheme], damage)):
                raise ValueError(
                    f"choose_schemes: cost and damage of {group} as {scheme} must be finite and "
                    f">= 0, got {costs[group][scheme]} and {damage}"
                )


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
        damage: "branch/group" -> scheme -> (bins,) fp64, from `quant.layer_sensitivity`; a
            scheme that changes nothing, such as bf16, has zeros.
        weights: branch -> (bins,) fp64, see `guidance_weights`.
        costs: "branch/group" -> scheme -> ms, see `group_cost`.
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
    chosen = choose_schemes(costs, damages, budget)
    curve = tuple(pareto(costs, damages, CURVE_POINTS))
    reasons = explain(costs, damages, chosen.schemes)
    return AutoChoice(chosen.schemes, chosen.cost, chosen.damage, curve, reasons)
