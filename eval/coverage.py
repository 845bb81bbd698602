"""Simulate how often intervals cover the truth, and how often the tests of equivalence err.

A 95 % interval is a promise about repetition: of many experiments 95 % should yield one that
contains the true difference. Here the truth is known because the data are drawn. Each case draws
per-prompt differences for thousands of experiments and asks every method, the one the project uses
among them. For a test of equivalence the truth is put on the margin, where calling it equivalent
is an error that may happen in 5 % of experiments at most.

BCa here is `eval.stats` written for many experiments at once. The mean of a resample is a product
W x / n with the resample's counts W, and `eval.stats` draws the same resamples for every data set
of n prompts, so that one matrix serves all experiments; for the mean the jackknife of the
acceleration is sum(d^3) / (6 sum(d^2)^1.5), d = x - mean (Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, eq. 14.15). A test holds it to the interval of `eval.stats`.
"""

import warnings
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy

from dit8.eval.coverage_cases import CLUSTERS, EXACT, INTERVAL, SCORES, Case, draw_block
from dit8.eval.equivalence import ALPHA, score_tost_p, skewed_tost_p, tost_p, worst_case_tost_p
from dit8.eval.exact_match import FEW, FEW_SHARES, adjusted_wald, newcombe
from dit8.eval.stats import BATCH, LEVEL, RESAMPLES

BLOCK = 1000  # experiments at once: 80 MB of resampled means


@dataclass(frozen=True)
class Cell:
    """Hold what one method did in one case.

    Args:
        used: the method is the one that `eval.verdict.compare` takes for such data.
        rate: share of experiments whose interval covers the truth, or that err.
        too_low, too_high: shares of intervals that end below the truth, or begin above it.
        width: mean length of the intervals; nan for tests.
    """

    case: Case
    method: str
    used: bool
    experiments: int
    rate: float
    too_low: float
    too_high: float
    width: float

    @property
    def error(self) -> float:
        """Return the standard error that the rate has if it is nominal."""
        nominal = LEVEL if self.case.question == INTERVAL else ALPHA
        return (nominal * (1 - nominal) / self.experiments) ** 0.5


def simulate(case: Case, experiments: int, seed: int) -> list[Cell]:
    """Run the experiments of one case; the same arguments give the same cells.

    Args:
        case: of `eval.coverage_cases.cases`.
        experiments: how many, drawn in blocks of 1000.
        seed: of the data; each case derives its own generator from it.

    Returns:
        one cell per method, the one in use last.
    """
    generator = np.random.default_rng([seed, zlib.crc32(repr(case).encode())])
    try_all = _try_intervals if case.question == INTERVAL else _try_tests
    sums: dict[str, np.ndarray] = {}
    for start in range(0, experiments, BLOCK):
        tried = try_all(case, generator, min(BLOCK, experiments - start))
        for method, counted in tried.items():
            sums[method] = sums.get(method, 0.0) + np.array(counted)
    last = list(sums)[-1]
    return [
        Cell(case, method, method == last, experiments, *map(float, total / experiments))
        for method, total in sums.items()
    ]


def bca(values: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Compute the interval of `eval.stats` for many data sets at once.

    Args:
        values: (n prompts, data sets) float64.
        level: confidence level.

    Returns:
        (low, high), each (data sets,).
    """
    n, mean = len(values), values.mean(axis=0)
    means = np.sort((_resamples(n) @ values / n).T, axis=1)
    below = (means < mean[:, None]).sum(axis=1) + (means <= mean[:, None]).sum(axis=1)
    bias = scipy.special.ndtri(below / (2 * RESAMPLES))
    deviation = values - mean
    with np.errstate(invalid="ignore", divide="ignore"):
        square = (deviation**2).sum(axis=0)
        acceleration = (deviation**3).sum(axis=0) / (6 * square**1.5)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + scipy.special.ndtri(tail)
        with np.errstate(invalid="ignore"):
            quantile = scipy.special.ndtr(bias + z / (1 - acceleration * z))
        # where BCa is undefined eval.stats takes the percentile interval
        place = np.where(np.isfinite(quantile), quantile, tail) * (RESAMPLES - 1)
        left = np.minimum(place.astype(int), RESAMPLES - 2)
        lower, upper = (np.take_along_axis(means, i[:, None], 1)[:, 0] for i in (left, left + 1))
        ends.append(lower + (place - left) * (upper - lower))
    constant = np.ptp(values, axis=0) == 0.0
    return np.where(constant, mean, ends[0]), np.where(constant, mean, ends[1])


def conditional(
    only_a: np.ndarray, only_b: np.ndarray, n: int, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the interval from Clopper and Pearson's for the discordant pairs, taken as given."""
    tail, pairs = (1 - level) / 2, only_a + only_b
    low = np.where(only_a > 0, scipy.stats.beta.ppf(tail, np.maximum(only_a, 1), only_b + 1), 0.0)
    high = np.where(only_b > 0, scipy.stats.beta.isf(tail, only_a + 1, np.maximum(only_b, 1)), 1.0)
    return pairs / n * (2 * low - 1), pairs / n * (2 * high - 1)


def _try_intervals(
    case: Case, generator: np.random.Generator, size: int
) -> dict[str, tuple[float, float, float, float]]:
    """Count covering, too low and too high intervals, and add up their lengths."""
    x, truth, pictures = draw_block(case, generator, size)
    intervals = {"bca": bca(x)}
    if case.data in SCORES:
        half = scipy.stats.t.isf((1 - LEVEL) / 2, case.n - 1) * x.std(axis=0, ddof=1) / case.n**0.5
        intervals = {"t": (x.mean(axis=0) - half, x.mean(axis=0) + half)} | intervals
    elif case.data == CLUSTERS:
        intervals = {"bca over pictures": bca(pictures)} | intervals
    else:
        threshold = FEW if case.data == EXACT else FEW_SHARES
        if case.data == EXACT:
            only_a, only_b = (x > 0).sum(axis=0), (x < 0).sum(axis=0)
            both = generator.binomial(case.n - only_a - only_b, 0.5)  # half of the ties are exact
            neither = case.n - only_a - only_b - both
            intervals["conditional"] = conditional(only_a, only_b, case.n)
            intervals["newcombe"] = newcombe(both, only_a, only_b, neither, LEVEL)
        else:
            intervals["adjusted wald"] = adjusted_wald(x, LEVEL)
        closed = list(intervals)[-1]
        chosen = zip(intervals[closed], intervals["bca"], strict=True)
        few = np.count_nonzero(x, axis=0) < threshold
        intervals[f"{closed} below {threshold}, then bca"] = tuple(
            np.where(few, end, other) for end, other in chosen
        )
    counted = {}
    for method, (low, high) in intervals.items():
        below, above = int((high < truth).sum()), int((low > truth).sum())
        counted[method] = (size - below - above, below, above, float((high - low).sum()))
    return counted


def _try_tests(
    case: Case, generator: np.random.Generator, size: int
) -> dict[str, tuple[float, float, float, float]]:
    """Count experiments that call a difference as large as the margin equivalent."""
    x, truth, _ = draw_block(case, generator, size)
    if case.data in SCORES:
        x = x - truth + case.margin
    margins = (-case.margin, case.margin)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        # differences all equal: t is infinite, as the signs' test says too
        warnings.simplefilter("ignore", RuntimeWarning)
        tests = {"t": tost_p(x, *margins)}
    if case.data in SCORES:
        tests["t and Hall"] = skewed_tost_p(x, *margins)
    elif case.data == EXACT:
        only_a, only_b = (x > 0).sum(axis=0), (x < 0).sum(axis=0)
        tests["score"] = score_tost_p(only_a, only_b, case.n, *margins)
    else:
        tests["t with a worst case"] = worst_case_tost_p(x, *margins)
    nan = float("nan")
    return {method: (float((p <= ALPHA).sum()), nan, nan, nan) for method, p in tests.items()}


@lru_cache(maxsize=4)
def _resamples(n: int) -> np.ndarray:
    """Count how often each prompt is in each resample that `eval.stats` draws; (resamples, n)."""
    generator = np.random.default_rng(0)
    counts = []
    for start in range(0, RESAMPLES, BATCH):
        drawn = generator.integers(0, n, size=(min(BATCH, RESAMPLES - start), n))
        cells = drawn + n * np.arange(len(drawn))[:, None]
        counts.append(np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape))
    return np.concatenate(counts).astype(np.float64)
