import pytest
import torch

from dit8.quant.auto import CURVE_POINTS, choose, guidance_weights, weighted_damage
from dit8.quant.errors import UserError


def bins(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_guidance_weights_by_hand():
    # (dt g)^2: 36 and 1; (dt (1 - g))^2: 16 and 0; together 53
    conditional, unconditional = guidance_weights([3.0, 1.0], [2.0, 1.0])
    torch.testing.assert_close(conditional, bins(36, 1) / 53)
    torch.testing.assert_close(unconditional, bins(16, 0) / 53)


@pytest.mark.parametrize(
    ("guidance", "steps"), [([1.0], [1.0, 2.0]), ([], []), ([1.0], [0.0])], ids=["n", "none", "0"]
)
def test_guidance_weights_refuse(guidance, steps):
    with pytest.raises(ValueError, match="one positive step size per guidance, got"):
        guidance_weights(guidance, steps)


def test_weighted_damage_by_hand():
    assert weighted_damage(bins(3, 4), bins(1, 0.25)) == pytest.approx(13**0.5)
    with pytest.raises(ValueError, match=r"both be \(bins,\), got \(2,\) and \(3,\)"):
        weighted_damage(bins(1, 2), bins(1, 2, 3))


@pytest.fixture
def problem():
    """Two groups that differ only in the branch, and so in the weight of their damage."""
    schemes = {"int8": bins(0.2, 0.2), "bf16": bins(0.0, 0.0)}
    damage = {"conditional/w2": schemes, "unconditional/w2": schemes}
    costs = {group: {"int8": 1.0, "bf16": 2.0} for group in damage}
    conditional, unconditional = guidance_weights([3.0, 3.0], [1.0, 1.0])
    return damage, {"conditional": conditional, "unconditional": unconditional}, costs


def test_spends_the_budget_where_the_weight_is(problem):
    result = choose(*problem, budget=3.0)
    assert result.schemes == {"conditional/w2": "bf16", "unconditional/w2": "int8"}
    assert result.cost == 3.0
    assert result.damage == pytest.approx(0.2 * (4 / 13) ** 0.5)  # (1 - g)^2 of g^2 + (1 - g)^2
    damage, weights, costs = problem
    swapped = {"conditional": weights["unconditional"], "unconditional": weights["conditional"]}
    other = choose(damage, swapped, costs, budget=3.0)
    assert other.schemes == {"conditional/w2": "int8", "unconditional/w2": "bf16"}


def test_gives_the_curve_and_the_reasons(problem):
    result = choose(*problem, budget=3.0)
    assert [round(choice.cost, 9) for choice in result.pareto] == [2.0, 3.0, 4.0]
    assert result.pareto[-1].damage == 0.0
    assert len(result.pareto) <= CURVE_POINTS
    assert result.reasons == {
        "conditional/w2": "bf16: damage 0; int8 would save 1 ms for 0.17 more damage",
        "unconditional/w2": "int8: damage 0.11; bf16 would cost 1 ms more for 0.11 less damage",
    }


def test_refuses_what_the_budget_cannot_pay(problem):
    with pytest.raises(UserError, match="at least 2 ms, the cheapest choice, got 1.5 ms"):
        choose(*problem, budget=1.5)
