"""Prompts needed: against statsmodels, and by trying the number found."""

import numpy as np
import pytest
import scipy

from dit8.eval.equivalence import tost_p
from dit8.eval.margins import load_margins
from dit8.eval.power import difference_power, equivalence_power, prompts_needed
from dit8.quant.errors import UserError


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5, 1.0, 2.0])
def test_prompts_for_a_difference_are_statsmodels(effect):
    power = pytest.importorskip("statsmodels.stats.power")
    exact = power.TTestPower().solve_power(effect, alpha=0.05, power=0.8)
    assert prompts_needed(0.3, 0.3 * effect) == np.ceil(exact)


def test_one_prompt_fewer_is_not_enough():
    for goal, reached in (("difference", difference_power), ("equivalence", equivalence_power)):
        n = prompts_needed(1.0, 0.3, goal=goal, power=0.9)
        assert reached(0.3, n, 0.05) >= 0.9 > reached(0.3, n - 1, 0.05)


@pytest.mark.parametrize("effect", [0.2, 0.7])
def test_equivalence_is_shown_as_often_as_asked_for(effect):
    n = prompts_needed(2.0, 2.0 * effect, goal="equivalence")
    x = np.random.default_rng(6).normal(scale=2.0, size=(n, 10_000))
    shown = (tost_p(x, -2.0 * effect, 2.0 * effect) <= 0.05).mean()
    # binomial standard error sqrt(0.8 * 0.2 / 10000) = 0.004; one prompt moves the power by 0.02
    assert 0.8 - 0.012 <= shown <= 0.82 + 0.012


def test_the_power_of_few_prompts_is_that_of_a_simulation():
    """At n = 4 one degree of freedom more or less moves it by several hundredths."""
    n, effect, draws = 4, 2.0, 40_000
    sample = np.random.default_rng(0).standard_normal((draws, n))
    t = scipy.stats.t.isf(0.05, n - 1)
    error = t * sample.std(axis=1, ddof=1) / np.sqrt(n)
    share = (np.abs(sample.mean(axis=1)) + error < effect).mean()
    expected = equivalence_power(effect, n, 0.05)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


def test_few_prompts_have_no_power_of_equivalence():
    # t s / sqrt(n) exceeds the margin for every s that is likely
    assert 0.0 <= equivalence_power(0.1, 3, 0.05) < 0.001
    assert equivalence_power(50.0, 3, 0.05) == pytest.approx(1.0, abs=1e-3)


def test_the_goals_and_levels_order_as_they_should():
    difference = prompts_needed(1.0, 0.2)
    assert prompts_needed(1.0, 0.2, goal="equivalence") > difference
    assert prompts_needed(1.0, 0.2, alpha=0.01) > difference
    assert prompts_needed(1.0, 0.2, power=0.9) > difference
    assert prompts_needed(0.0, 0.2) == prompts_needed(0.01, 0.2, goal="equivalence") == 3


def test_the_reason_of_the_exact_match_margin_holds():
    margin = load_margins()["ocr_exact"].value
    # one picture in twelve changes, both ways alike: variance 1 / 12
    assert prompts_needed((1 / 12) ** 0.5, margin, goal="equivalence") <= 300


def test_arguments_outside_their_range_are_refused():
    for sd, margin in ((-1.0, 0.1), (1.0, 0.0), (float("nan"), 0.1), (1.0, float("inf"))):
        with pytest.raises(ValueError, match=r"need sd >= 0 and margin > 0, got"):
            prompts_needed(sd, margin)
    for alpha, power in ((0.0, 0.8), (0.05, 1.0), (0.9, 0.8)):
        with pytest.raises(ValueError, match=r"need 0 < alpha < power < 1, got"):
            prompts_needed(1.0, 0.1, alpha=alpha, power=power)
    with pytest.raises(ValueError, match=r"goal must be one of difference, equivalence, got 'x'"):
        prompts_needed(1.0, 0.1, goal="x")


def test_a_hopeless_margin_is_named():
    with pytest.raises(UserError, match=r"more than 1000000 prompts .* declare a wider margin"):
        prompts_needed(1.0, 0.001)
