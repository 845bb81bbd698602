"""TOST, the test of a difference and Holm: against scipy, statsmodels and simulation."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from dit8.eval.equivalence import (
    difference_p,
    discordant_tost,
    holm,
    score_tost_p,
    skewed_tost_p,
    tost,
    tost_p,
    worst_case_tost_p,
)
from dit8.eval.exact_match import mcnemar
from dit8.quant.errors import UserError


def keyed(values, seed: int = 0) -> dict:
    return {(f"p{i:04d}", seed): float(v) for i, v in enumerate(values)}


@pytest.fixture
def two():
    rng = np.random.default_rng(3)
    b = rng.normal(size=60)
    return b + rng.normal(0.05, 0.3, size=60), b


def test_tost_is_two_scipy_t_tests(two):
    a, b = two
    found = tost(keyed(a), keyed(b), -0.15, 0.2)
    above = scipy_stats.ttest_rel(a, b + -0.15, alternative="greater").pvalue
    below = scipy_stats.ttest_rel(a, b + 0.2, alternative="less").pvalue
    # differences of the same numbers in another order of operations
    assert found.p == pytest.approx(max(above, below), rel=1e-9)
    assert (found.low, found.high, found.method) == (-0.15, 0.2, "t")
    assert found.equivalent == (found.p <= 0.05)


def test_tost_is_statsmodels(two):
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    a, b = two
    for low, high in ((-0.15, 0.2), (-0.05, 0.05), (-1.0, 1.0)):
        expected = weightstats.ttost_paired(a, b, low, high)[0]
        assert tost(keyed(a), keyed(b), low, high).p == pytest.approx(expected, rel=1e-9)


def test_the_seeds_of_a_prompt_are_averaged(two):
    a, b = two
    once = tost(keyed(a), keyed(b), -0.2, 0.2)
    twice = tost(keyed(a) | keyed(a, 1), keyed(b) | keyed(b, 1), -0.2, 0.2)
    assert twice.p == pytest.approx(once.p, rel=1e-9)


@pytest.mark.parametrize("correct", [False, True])
def test_equal_differences_are_judged_by_their_signs(correct):
    b = np.linspace(0.0, 1.0, 6)
    inside = tost(keyed(b + 0.1), keyed(b), -0.2, 0.2, correct_skewness=correct)
    assert (inside.p, inside.method, inside.equivalent) == (2.0**-6, "signs", True)
    outside = tost(keyed(b + 0.3), keyed(b), -0.2, 0.2, correct_skewness=correct)
    assert (outside.p, outside.equivalent) == (1.0, False)
    # identical pictures of four prompts are no proof yet
    few = tost(keyed(b[:4]), keyed(b[:4]), -0.2, 0.2)
    assert (few.p, few.equivalent) == (2.0**-4, False)


def test_without_skewness_halls_correction_changes_nothing():
    x = scipy_stats.norm.ppf((np.arange(80) + 0.5) / 80)[:, None]
    # symmetric values: the skewness is zero up to rounding
    assert skewed_tost_p(x, -0.3, 0.3) == pytest.approx(tost_p(x, -0.3, 0.3), rel=1e-9)


def test_halls_statistic_by_its_equation():
    x = np.random.default_rng(12).gamma(1.0, size=40) - 1.0
    n, s = 40, (x.mean() - 0.5) / x.std(ddof=1)
    g = np.mean((x - x.mean()) ** 3) / x.std(ddof=1) ** 3
    statistic = n**0.5 * (s + g * s**2 / 3 + g**2 * s**3 / 27 + g / (6 * n))
    # skewed upwards, the upper margin is the one at which t passes too easily
    expected = scipy_stats.t.cdf(statistic, n - 1)
    assert expected > tost_p(x, -9.0, 0.5)
    assert skewed_tost_p(x, -9.0, 0.5) == pytest.approx(expected, rel=1e-9)
    # from below, Hall's would be the smaller one, and t is taken
    assert skewed_tost_p(x, -0.4, 9.0) == pytest.approx(float(tost_p(x, -0.4, 9.0)), rel=1e-9)


def test_the_correction_is_taken_when_asked_for():
    # long tail upwards and mean near the upper margin: there t passes too easily
    a = keyed(np.random.default_rng(5).gamma(1.0, size=50) + 0.2)
    b = dict.fromkeys(a, 1.0)
    plain = tost(a, b, -0.4, 0.4)
    corrected = tost(a, b, -0.4, 0.4, correct_skewness=True)
    x = np.array(list(a.values())) - 1.0
    assert (plain.method, corrected.method) == ("t", "t and Hall")
    assert corrected.p == pytest.approx(float(skewed_tost_p(x, -0.4, 0.4)), rel=1e-12)
    assert corrected.p != pytest.approx(plain.p, rel=1e-3)


EXPERIMENTS = 10_000
# binomial: 5 % and two standard errors
ALLOWED = 0.05 + 2 * np.sqrt(0.05 * 0.95 / EXPERIMENTS)


@pytest.mark.parametrize(
    ("draw", "mean", "sd"),
    [
        pytest.param(lambda g, s: g.normal(size=s), 0.0, 1.0, id="normal"),
        pytest.param(lambda g, s: g.gamma(4.0, size=s), 4.0, 2.0, id="mildly skewed"),
        pytest.param(lambda g, s: g.standard_t(3, size=s), 0.0, 3**0.5, id="heavy tails"),
    ],
)
def test_variants_on_the_margin_pass_in_5_percent_at_most(draw, mean, sd):
    x = draw(np.random.default_rng(1), (300, EXPERIMENTS)) - mean
    for sign in (1, -1):
        p = skewed_tost_p(sign * x + 0.2 * sd, -0.2 * sd, 0.2 * sd)
        assert (p <= 0.05).mean() <= ALLOWED


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("n", [50, 300])
def test_exact_match_on_the_margin_passes_in_5_percent_at_most(n, margin):
    rng = np.random.default_rng(2)
    only_a = rng.binomial(n, margin, size=EXPERIMENTS)
    assert (
        score_tost_p(only_a, np.zeros_like(only_a), n, -margin, margin) <= 0.05
    ).mean() <= ALLOWED
    # what makes another test necessary: t passes 6 to 37 % of these
    x = (np.arange(n)[:, None] < only_a).astype(float)
    with np.errstate(all="ignore"):
        assert (tost_p(x, -margin, margin) <= 0.05).mean() > ALLOWED


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("n", [50, 300])
def test_shares_on_the_margin_pass_in_5_percent_at_most(n, margin):
    rng = np.random.default_rng(3)
    changes = rng.integers(1, 4, size=(n, EXPERIMENTS)) / 3  # mean 2 / 3
    x = np.where(rng.random((n, EXPERIMENTS)) < margin * 1.5, changes, 0.0)
    assert (worst_case_tost_p(x, -margin, margin) <= 0.05).mean() <= ALLOWED


def test_the_score_test_by_its_equation():
    """Maximize the likelihood under p_a - p_b = margin on a grid instead of in closed form."""
    only_a, only_b, n, margin = 6, 9, 120, 0.08
    q = np.linspace(1e-6, (1 - margin) / 2 - 1e-6, 2_000_001)  # probability that only b is exact
    ties = n - only_a - only_b
    likelihood = only_a * np.log(q + margin) + only_b * np.log(q) + ties * np.log1p(-2 * q - margin)
    best = q[likelihood.argmax()]
    variance = n * (2 * best + margin * (1 - margin))
    expected = scipy_stats.norm.cdf((only_a - only_b - n * margin + 0.5) / np.sqrt(variance))
    # the other side is far away, so that this one is p; the grid resolves q to 2e-7
    wide = score_tost_p(only_a, only_b, n, -0.9, margin)
    assert wide == pytest.approx(expected, rel=1e-5)
    assert score_tost_p(only_b, only_a, n, -margin, 0.9) == pytest.approx(wide, rel=1e-12)


def test_the_worst_case_is_one_more_prompt():
    x = np.concatenate([np.full(8, 0.25), np.zeros(92)])
    raised, lowered = np.append(x, 1.0), np.append(x, -1.0)
    expected = max(
        scipy_stats.ttest_1samp(lowered, -0.05, alternative="greater").pvalue,
        scipy_stats.ttest_1samp(raised, 0.05, alternative="less").pvalue,
    )
    assert worst_case_tost_p(x, -0.05, 0.05) == pytest.approx(expected, rel=1e-12)
    # many changes: the largest of them
    x = np.concatenate([np.full(30, 0.25), np.full(30, -0.2), np.zeros(40)])
    raised = np.append(x, 0.25)
    expected = scipy_stats.ttest_1samp(raised, 0.05, alternative="less").pvalue
    assert worst_case_tost_p(x, -0.9, 0.05) == pytest.approx(expected, rel=1e-12)


def test_scores_of_which_most_tie_take_their_own_tests():
    a = keyed([1.0] * 60 + [0.0] * 40)
    b = a | {("p0000", 0): 0.0}
    found = discordant_tost(a, b, -0.1, 0.1)
    assert (found.method, found.equivalent) == ("score", True)
    assert found.p == score_tost_p(1, 0, 100, -0.1, 0.1)
    b = a | {("p0000", 0): 0.5}
    found = discordant_tost(a, b, -0.1, 0.1)
    assert found.method == "t with a worst case"
    x = np.array([0.5] + [0.0] * 99)
    assert found.p == worst_case_tost_p(x, -0.1, 0.1)
    # all changed alike: nothing is left for t to divide by
    b = {key: 0.5 * value + 0.2 for key, value in keyed([0.0] * 10).items()}
    assert discordant_tost(keyed([0.0] * 10), b, -0.1, 0.1).p == 1.0
    assert discordant_tost(keyed([0.0] * 10), b, -0.3, 0.3).p == 2.0**-10
    # pictures that are all alike still get a p-value
    assert 0 < discordant_tost(a, a, -0.1, 0.1).p < 0.05


def test_the_difference_is_tested_by_t_or_by_mcnemar(two):
    a, b = two
    assert difference_p(keyed(a), keyed(b)) == pytest.approx(
        scipy_stats.ttest_rel(a, b).pvalue, rel=1e-9
    )
    exact, other = keyed([1, 1, 1, 1, 0, 0]), keyed([0, 0, 0, 0, 0, 0])
    assert difference_p(exact, other) == mcnemar(exact, other).p == 0.125
    b = np.linspace(0.0, 1.0, 6)
    assert difference_p(keyed(b), keyed(b)) == 1.0
    assert difference_p(keyed(b + 0.1), keyed(b)) == 2.0**-5


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == [0.06, 0.03, 0.06]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []


def test_holm_is_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(4).random(12) ** 3
    expected = multitest.multipletests(p_values, method="holm")[1]
    assert holm(list(p_values)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("test", [tost, discordant_tost])
def test_impossible_margins_and_bad_scores_are_refused(test):
    a = keyed([0.0, 0.5, 1.0, 0.5])
    for low, high in ((0.0, 0.1), (-0.1, 0.0), (0.1, -0.1), (float("nan"), 0.1)):
        with pytest.raises(ValueError, match=r"margins must satisfy low < 0 < high, got"):
            test(a, a, low, high)
    with pytest.raises(UserError, match=r"1 values are not finite, p0001"):
        test(a | {("p0001", 0): float("inf")}, a, -0.1, 0.1)
    with pytest.raises(UserError, match=r"expected at least 3 for an interval"):
        test(keyed([0, 1]), keyed([0, 1]), -0.1, 0.1)


def test_shares_outside_their_range_are_refused():
    a = keyed([0.0, 0.5, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\], got 2.0"):
        discordant_tost(a, a, -0.1, 0.1)
