import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from dit8.quant import auto
from dit8.quant.auto import Selection
from dit8.quant.errors import UserError


@dataclass(frozen=True)
class Option:
    scheme: str
    cost: float
    damage: float


@dataclass(frozen=True)
class Item:
    name: str
    options: tuple


def tables(items):
    """Costs and damages, group -> scheme -> number."""
    return (
        {item.name: {o.scheme: o.cost for o in item.options} for item in items},
        {item.name: {o.scheme: o.damage for o in item.options} for item in items},
    )


def choose_schemes(items, budget):
    return auto.choose_schemes(*tables(items), budget)


def pareto(items, points):
    return auto.pareto(*tables(items), points)


def random_items(rng, groups, schemes, spread):
    """Costs and damages over `spread` decades, so that the solver's gaps would show."""
    return [
        Item(
            f"g{i}",
            tuple(
                Option(f"s{j}", float(rng.uniform(0.1, 1)), float(10 ** rng.uniform(-spread, 0)))
                for j in range(schemes)
            ),
        )
        for i in range(groups)
    ]


def brute_force(items, budget):
    """Try every combination; return the least damage that the budget allows."""
    costs, squares = np.zeros(1), np.zeros(1)
    for item in items:
        costs = np.add.outer(costs, [option.cost for option in item.options]).ravel()
        squares = np.add.outer(squares, [option.damage**2 for option in item.options]).ravel()
    return math.sqrt(squares[costs <= budget].min())


@pytest.mark.parametrize("spread", [0.5, 2, 5])
@pytest.mark.parametrize("seed", [0, 1, 3, 19, 21])  # the last three need the exact gaps
def test_equals_brute_force(seed, spread):
    rng = np.random.default_rng(seed)
    items = random_items(rng, groups=10, schemes=3, spread=spread)
    low = sum(min(o.cost for o in item.options) for item in items)
    high = sum(max(o.cost for o in item.options) for item in items)
    for share in (0.0, 0.1, 0.3, 0.5, 1.0):
        budget = low + share * (high - low) + 1e-9
        choice = choose_schemes(items, budget)
        # 1e-6 of the largest damage is what the solver's absolute gap leaves at the very most
        assert choice.damage == pytest.approx(brute_force(items, budget), rel=1e-6, abs=1e-6)
        assert choice.cost <= budget * (1 + 1e-6)
        options = {(i.name, o.scheme): o for i in items for o in i.options}
        chosen = [options[pair] for pair in choice.schemes.items()]
        assert choice.cost == pytest.approx(sum(o.cost for o in chosen))
        assert choice.damage == pytest.approx(math.sqrt(sum(o.damage**2 for o in chosen)))


def test_minimizes_squares_not_sums():
    # one group of 0.8 (square 0.64) is worse than two of 0.5 (0.5), though its sum is smaller
    items = [
        Item("a", (Option("int8", 0, 0.8), Option("bf16", 1, 0.5))),
        Item("b", (Option("int8", 0, 0.5), Option("bf16", 1, 0.0))),
    ]
    assert choose_schemes(items, 1).schemes == {"a": "bf16", "b": "int8"}


def test_takes_the_cheaper_of_equally_damaging_options():
    item = Item("a", (Option("bf16", 2, 0.0), Option("int8", 1, 0.0), Option("rotate", 3, 0.0)))
    assert choose_schemes([item], 10).schemes == {"a": "int8"}


def test_all_damages_zero():
    items = [Item("a", (Option("x", 1, 0.0),)), Item("b", (Option("y", 2, 0.0),))]
    assert choose_schemes(items, 3) == Selection({"a": "x", "b": "y"}, 3, 0.0)


def test_nothing_to_choose():
    assert choose_schemes([], 1.0) == Selection({}, 0.0, 0.0)


def test_refuses_a_budget_below_the_cheapest_choice():
    items = [Item("a", (Option("x", 0.25, 1), Option("y", 0.5, 0)))] + [
        Item("b", (Option("x", 1.0, 1),))
    ]
    match = r"must be at least 1\.25 ms, the cheapest choice, got 1\.2 ms; allow more latency"
    with pytest.raises(UserError, match=match):
        choose_schemes(items, 1.2)
    assert choose_schemes(items, 1.25).schemes == {"a": "x", "b": "x"}


@pytest.mark.parametrize(
    ("items", "match"),
    [
        ([Item("a", ())], "a must have at least one scheme, got none"),
        ([Item("a", (Option("x", -1, 1),))], r"of a as x must be finite and >= 0, got -1 and 1"),
        ([Item("a", (Option("x", 1, math.nan),))], "finite and >= 0, got 1 and nan"),
    ],
    ids=["no scheme", "negative", "nan"],
)
def test_refuses_bad_items(items, match):
    with pytest.raises(ValueError, match=match):
        choose_schemes(items, 5)


def test_curve_rises_in_cost_falls_in_damage_and_spans_the_extremes():
    items = random_items(np.random.default_rng(1), groups=5, schemes=3, spread=2)
    curve = pareto(items, 12)
    assert len(curve) >= 4
    for before, after in itertools.pairwise(curve):
        assert after.cost > before.cost and after.damage < before.damage
    cheapest = sum(min(o.cost for o in item.options) for item in items)
    assert curve[0].cost == pytest.approx(cheapest)
    least = math.sqrt(sum(min(o.damage for o in item.options) ** 2 for item in items))
    assert curve[-1].damage == pytest.approx(least)


def test_curve_lists_equal_choices_once():
    items = [Item("a", (Option("x", 1, 0.5), Option("y", 2, 0.1)))]
    assert [choice.schemes["a"] for choice in pareto(items, 9)] == ["x", "y"]
    with pytest.raises(ValueError, match="points must be at least 2, got 1"):
        pareto(items, 1)


def test_reasons_compare_the_choice_with_every_other_option():
    options = (
        Option("int8+rotate", 0.48, 0.0031),
        Option("int8+smooth", 0.48, 0.0074),
        Option("int8", 0.36, 0.0121),
        Option("bf16", 0.6, 0.0),
    )
    assert auto.explain(*tables([Item("a", options)]), {"a": "int8+rotate"}) == {
        "a": "int8+rotate: damage 0.0031; int8+smooth would cost the same for 0.0043 more damage; "
        "int8 would save 0.12 ms for 0.009 more damage; bf16 would cost 0.12 ms more for 0.0031 "
        "less damage"
    }
    same = Item("b", (Option("x", 1, 0.5), Option("y", 2, 0.5)))
    reason = auto.explain(*tables([same]), {"b": "x"})["b"]
    assert reason == "x: damage 0.5; y would cost 1 ms more for equal damage"


def test_costs_and_damages_are_of_the_same_schemes():
    with pytest.raises(ValueError, match="must have the same groups and schemes"):
        auto.choose_schemes({"a": {"x": 1.0}}, {"a": {"y": 1.0}}, 2.0)
