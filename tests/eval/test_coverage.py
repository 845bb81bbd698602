"""The simulation: its BCa is that of eval.stats, its cases have the truth they claim."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from dit8.eval import coverage
from dit8.eval.coverage import bca, conditional, simulate
from dit8.eval.coverage_cases import (
    CHANGES,
    CLUSTERS,
    INTERVAL,
    SCORES,
    TOST,
    Case,
    cases,
    draw_block,
)
from dit8.eval.stats import mean_interval


@pytest.mark.parametrize("n", [3, 50, 300])
def test_bca_is_that_of_eval_stats(n):
    rng = np.random.default_rng(5)
    columns = [
        rng.normal(size=n),
        rng.lognormal(0.0, 1.5, size=n),
        rng.choice([0.0, 0.0, 0.0, 0.0, 1.0, -1.0], size=n),
        np.eye(n)[0],
        np.full(n, 0.25),
        1e-200 * rng.gamma(1.0, size=n),  # BCa is undefined: the percentile interval
    ]
    low, high = bca(np.stack(columns, axis=1))
    for i, column in enumerate(columns):
        found = mean_interval({(f"p{k:03d}", 0): v for k, v in enumerate(column)})
        # the same resamples, their means summed in another order
        assert low[i] == pytest.approx(found.low, rel=1e-9, abs=1e-13 * abs(column).max())
        assert high[i] == pytest.approx(found.high, rel=1e-9, abs=1e-13 * abs(column).max())


def test_the_cases_ask_what_they_should():
    found = cases()
    assert len(set(found)) == len(found)
    questions = {(case.question, case.data) for case in found}
    assert questions == {(q, d) for q in (INTERVAL, TOST) for d in (*SCORES, *CHANGES)} | {
        (INTERVAL, CLUSTERS)
    }
    assert {case.n for case in found} == {50, 100, 300}
    assert all(0 < case.changed <= case.n / 2 for case in found if case.data in CHANGES)
    assert all((case.margin > 0) == (case.question == TOST) for case in found)


@pytest.mark.parametrize("data", SCORES)
def test_scores_have_the_mean_and_deviation_they_claim(data):
    draw, mean, sd = SCORES[data]
    x = draw(np.random.default_rng(0), (1_000_000, 1))
    # five standard errors
    assert abs(x.mean() - mean) < 5 * sd / 1000
    if data in list(SCORES)[:4]:  # beyond these the fourth moment is infinite, or needs more draws
        assert x.std() == pytest.approx(sd, rel=0.01)


@pytest.mark.parametrize("data", CHANGES)
def test_the_truth_of_a_test_lies_on_its_margin(data):
    for case in (case for case in cases() if (case.question, case.data) == (TOST, data)):
        _, truth, _ = draw_block(case, np.random.default_rng(0), 1)
        # changes and direction are kept to six digits
        assert truth == pytest.approx(case.margin, rel=1e-5)


def test_changes_come_as_often_and_as_large_as_asked_for():
    case = Case(INTERVAL, "thirds", 300, 30, 0.75)
    x, truth, _ = draw_block(case, np.random.default_rng(1), 2000)
    changed = np.count_nonzero(x) / 2000
    assert changed == pytest.approx(30, abs=5 * (27 / 2000) ** 0.5)
    assert (x > 0).sum() / np.count_nonzero(x) == pytest.approx(0.75, abs=0.01)
    assert truth == pytest.approx(0.1 * 0.5 * 2 / 3, rel=1e-12)
    assert x.mean() == pytest.approx(truth, rel=0.05)


def test_half_of_a_clusters_variance_is_the_prompts():
    case = Case(INTERVAL, CLUSTERS, 50)
    x, truth, pictures = draw_block(case, np.random.default_rng(2), 2000)
    assert truth == 0.0 and pictures.shape == (200, 2000)
    assert pictures.var() == pytest.approx(2.0, rel=0.02)
    assert x.var() == pytest.approx(1.0 + 1.0 / 4, rel=0.02)


def test_the_conditional_interval_is_clopper_and_pearsons():
    low, high = conditional(np.array([7]), np.array([2]), 100)
    ends = scipy_stats.binomtest(7, 9).proportion_ci(0.95, method="exact")
    assert (low[0], high[0]) == pytest.approx(
        (0.09 * (2 * ends.low - 1), 0.09 * (2 * ends.high - 1))
    )
    # nothing differs: it has no length, which is one of its faults
    assert conditional(np.array([0]), np.array([0]), 100) == (np.array([0.0]), np.array([0.0]))


def test_the_counts_are_those_of_the_intervals(monkeypatch):
    """Feed intervals with known positions: two cover, one ends below, one begins above."""
    case = Case(INTERVAL, "normal", 50)
    ends = np.array([-1.0, -1.0, -2.0, 0.5]), np.array([1.0, 0.0, -1.5, 2.0])
    monkeypatch.setattr(coverage, "bca", lambda x: ends)
    (found,) = [cell for cell in simulate(case, 4, 0) if cell.used]
    assert (found.method, found.rate, found.too_low, found.too_high) == ("bca", 0.5, 0.25, 0.25)
    assert found.width == (2.0 + 1.0 + 0.5 + 1.5) / 4


def test_the_same_seed_gives_the_same_cells_and_another_does_not():
    case = Case(INTERVAL, "exact match", 50, 5, 0.75)
    first = simulate(case, 1500, 0)
    assert simulate(case, 1500, 0) == first
    assert [cell.method for cell in first] == [
        *("bca", "conditional", "newcombe"),
        "newcombe below 20, then bca",
    ]
    assert [cell.used for cell in first] == [False, False, False, True]
    assert simulate(case, 1500, 1) != first
    other = simulate(replace(case, upward=0.5), 1500, 0)
    assert other[0].too_low != first[0].too_low


def test_methods_in_use_are_those_of_the_verdict():
    used = {}
    for case in (Case(TOST, data, 50, 5, 1.0, 0.1) for data in CHANGES):
        used[case.data] = [cell.method for cell in simulate(case, 10, 0) if cell.used]
    assert used == {
        "exact match": ["score"],
        "thirds": ["t with a worst case"],
        "edit distances": ["t with a worst case"],
    }
    cells = simulate(Case(TOST, "normal", 50, margin=0.5), 10, 0)
    assert [cell.method for cell in cells] == ["t", "t and Hall"]


def test_a_short_simulation_finds_what_is_known():
    """Rates of 2000 experiments, within four standard errors of 95 % and 5 %."""
    normal = [c for c in simulate(Case(INTERVAL, "normal", 300), 2000, 3) if c.used][0]
    assert normal.rate == pytest.approx(0.95, abs=4 * normal.error)
    assert normal.error == pytest.approx((0.95 * 0.05 / 2000) ** 0.5, rel=1e-12)
    few = {c.method: c for c in simulate(Case(INTERVAL, "exact match", 300, 2, 0.75), 2000, 3)}
    assert few["bca"].rate < 0.85 and few["conditional"].rate < 0.85
    assert few["newcombe"].rate > 0.95
    test = {c.method: c for c in simulate(Case(TOST, "exact match", 300, 6, 1.0, 0.02), 2000, 3)}
    assert test["t"].rate > 0.1 and test["score"].rate < 0.05
