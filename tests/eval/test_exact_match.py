"""Few changes: McNemar's test and the two intervals, against published values and other code."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from dit8.eval.exact_match import (
    FEW,
    FEW_SHARES,
    adjusted_wald,
    discordant_interval,
    mcnemar,
    newcombe,
)
from dit8.eval.stats import paired_interval, wilson_interval
from dit8.quant.errors import UserError


def fourfold(both: int, only_a: int, only_b: int, neither: int) -> tuple[dict, dict]:
    """Return scores of two variants with these counts, one picture a prompt."""
    pairs = [(1.0, 1.0)] * both + [(1.0, 0.0)] * only_a
    pairs += [(0.0, 1.0)] * only_b + [(0.0, 0.0)] * neither
    keys = [(f"p{i:04d}", 0) for i in range(len(pairs))]
    a, b = ({key: pair[i] for key, pair in zip(keys, pairs, strict=True)} for i in (0, 1))
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 0), (3, 11), (40, 22)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(only_a, only_b):
    found = mcnemar(*fourfold(20, only_a, only_b, 7))
    assert (found.n, found.both, found.only_a, found.only_b, found.neither) == (
        *(27 + only_a + only_b, 20, only_a, only_b),
        7,
    )
    expected = 1.0
    if only_a + only_b:
        expected = scipy_stats.binomtest(only_a, only_a + only_b).pvalue
    # sums of up to 63 probabilities in fp64
    assert found.p == pytest.approx(expected, rel=1e-12)


def test_mcnemar_is_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    expected = tables.mcnemar([[20, 9], [3, 7]], exact=True).pvalue
    assert mcnemar(*fourfold(20, 9, 3, 7)).p == pytest.approx(expected, rel=1e-12)


def test_the_seeds_of_a_prompt_are_exchanged_together():
    surplus = {"p0": (3, 0), "p1": (1, 0), "p2": (0, 2), "p3": (1, 1), "p4": (2, 0)}
    a, b = {}, {}
    for prompt, (first, second) in surplus.items():
        for seed in range(5):
            a[prompt, seed] = float(seed < first)
            b[prompt, seed] = float(seed >= 5 - second)
    found = mcnemar(a, b)
    sums = [
        sum(s * w for s, w in zip(sign, (3, 1, 2, 2), strict=True))
        for sign in itertools.product((-1, 1), repeat=4)
    ]
    assert found.p == np.mean([abs(total) >= 4 for total in sums])
    assert (found.n, found.only_a, found.only_b) == (5, 7, 3)
    # ten discordant pictures taken as independent would look like another experiment
    assert found.p != pytest.approx(scipy_stats.binomtest(7, 10).pvalue)


def test_only_a_whole_score_is_exact():
    a, b = fourfold(5, 0, 0, 5)
    assert mcnemar({key: 0.99 * value for key, value in a.items()}, b).only_b == 5


@pytest.mark.parametrize(
    ("table", "ends"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, method 10
        ((14, 5, 0, 22), (0.011, 0.226)),  # Altman and others, Statistics with Confidence, 2000
    ],
)
def test_newcombe_gives_the_published_intervals(table, ends):
    digits = 4 if ends[0] == 0.0569 else 3
    low, high = newcombe(*table, 0.95)
    assert (round(float(low), digits), round(float(high), digits)) == ends
    swapped = newcombe(table[0], table[2], table[1], table[3], 0.95)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), rel=1e-12)


def test_newcombe_of_independent_proportions_adds_wilsons_distances():
    # 10 * 40 = 20 * 20: no correlation
    first, second = wilson_interval(30, 90), wilson_interval(30, 90)
    low, high = newcombe(10, 20, 20, 40, 0.95)
    assert high == pytest.approx(np.hypot(first.high - 1 / 3, 1 / 3 - second.low), rel=1e-12)
    assert low == -high


def test_newcombe_takes_arrays_and_empty_margins():
    low, high = newcombe(np.array([10, 0]), np.array([0, 0]), np.array([0, 0]), 290, 0.95)
    assert low.shape == (2,) and np.isfinite([low, high]).all()
    # no pair differs: the interval still has a length
    assert (low < 0).all() and (high > 0).all()


def test_the_adjusted_wald_interval_of_pairs_is_bonett_and_prices():
    differences = np.array([1.0] * 5 + [-1.0] * 2 + [0.0] * 93)
    p12, p21, n = (5 + 1) / 102, (2 + 1) / 102, 102
    half = 1.959963984540054 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / n)
    low, high = adjusted_wald(differences, 0.95)
    assert (low, high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), rel=1e-12)
    # and keeps the scale of smaller changes
    assert adjusted_wald(differences / 8, 0.95) == pytest.approx((low / 8, high / 8), rel=1e-12)


def test_the_adjusted_wald_interval_stays_inside_what_is_possible():
    low, high = adjusted_wald(np.array([[0.0, 1.0]] * 3), 0.95)
    assert low[0] == -high[0] and -1 < low[0] < 0
    assert high[1] == 1.0


def test_the_number_of_discordant_pairs_decides_the_method():
    few = discordant_interval(*fourfold(150, FEW - 6, 5, 131))
    assert (few.method, few.n) == ("newcombe", 300)
    assert few.estimate == pytest.approx((FEW - 11) / 300, rel=1e-12)
    low, high = newcombe(150, FEW - 6, 5, 131, 0.95)
    assert (few.low, few.high) == (low, high)
    a, b = fourfold(150, FEW - 5, 5, 130)
    assert discordant_interval(a, b, seed=3) == paired_interval(a, b, seed=3)
    assert discordant_interval(a, b).method == "bca"


def test_variants_that_agree_everywhere_keep_an_interval():
    a, _ = fourfold(150, 0, 0, 150)
    found = discordant_interval(a, a)
    assert (found.estimate, found.method) == (0.0, "newcombe")
    assert found.low < 0 < found.high


def test_shares_and_several_seeds_take_the_adjusted_interval():
    a, b = fourfold(150, FEW_SHARES // 2, FEW_SHARES // 2 - 1, 100)
    thirds = {key: value / 3 for key, value in a.items()}
    found = discordant_interval(thirds, {key: value / 3 for key, value in b.items()})
    assert found.method == "adjusted wald"
    twice = [{**s, **{(prompt, 1): v for (prompt, _), v in s.items()}} for s in (a, b)]
    found = discordant_interval(*twice)
    assert (found.method, found.n) == ("adjusted wald", len(a))
    a, b = fourfold(150, FEW_SHARES // 2, FEW_SHARES // 2, 100)
    twice = [{**s, **{(prompt, 1): v for (prompt, _), v in s.items()}} for s in (a, b)]
    assert discordant_interval(*twice).method == "bca"


def test_wider_levels_give_wider_intervals():
    pair = fourfold(10, 3, 1, 10)
    narrow, wide = (discordant_interval(*pair, level=level) for level in (0.9, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("judge", [mcnemar, discordant_interval])
def test_bad_scores_are_named(judge):
    a, b = fourfold(3, 1, 1, 3)
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\], got 1.5"):
        judge(a | {("p0000", 0): 1.5}, b)
    with pytest.raises(UserError, match=r"1 values are not finite, p0000"):
        judge(a | {("p0000", 0): float("nan")}, b)
    with pytest.raises(UserError, match=r"1 samples are missing from the second variant, p0000"):
        judge(a, {key: value for key, value in b.items() if key != ("p0000", 0)})
    with pytest.raises(UserError, match=r"got 2 prompts, expected at least 3"):
        judge(*fourfold(1, 1, 0, 0))
