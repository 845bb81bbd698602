"""Choose a scheme per group from measured damage and modelled cost: the recipe `auto`.

To first order the final latents err by the sum over steps of what the velocity errs,

    dx = sum_b dt_b (g_b e_cond,b + (1 - g_b) e_uncond,b)

so a conditional error counts (dt g)^2 and an unconditional one (dt (1 - g))^2 at each step. The
damage of a group under a scheme is the root of its squared damages under those weights; groups are
then weighed against each other by `quant.knapsack`.

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

import torch

from dit8.quant.errors import UserError
from dit8.quant.knapsack import Choice, as_items, choose_schemes, explain, pareto
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
        damage: "branch/group" -> scheme -> (bins,) fp64, from `quant.layer_sensitivity`; a
            scheme that changes nothing, such as bf16, has zeros.
        weights: branch -> (bins,) fp64, see `guidance_weights`.
        costs: "branch/group" -> scheme -> ms, from `quant.auto`.
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
