"""Compare shares of which most pairs tie, such as texts read exactly: few prompts decide.

When few of 300 pairs differ, a resample often contains none or one of them and the bootstrap
interval is too short (results/tables/coverage_map.md). Two closed forms stand in for it.

Exact match, one picture a prompt, every value 0 or 1, under 20 discordant pairs: Newcombe's
interval for paired proportions (Statistics in Medicine 17:2635, 1998, method 10). With Wilson's
intervals (l1, u1) and (l2, u2) of the two proportions p1, p2 and the correlation phi of the
fourfold table,

    low  = p1 - p2 - sqrt((p1 - l1)^2 - 2 phi (p1 - l1) (u2 - p2) + (u2 - p2)^2),

and high with the other two distances. The exact interval of the discordant pairs' odds, carried
over to the difference, is not used: it takes their number for given, and the map shows that it
covers about half of what it should where all differ in one direction.

Shares of several texts, or several pictures a prompt, under 60 changed prompts, since changes of
unequal size take BCa longer to average out: the adjusted Wald interval of Bonett and Price (Journal
of Educational and Behavioral Statistics 37:479, 2012), which counts one more change in each
direction. They add whole discordant pairs; here the largest change seen is added, so that the
interval keeps the scale of the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from dit8.eval.run import Interval
from dit8.eval.stats import LEVEL, RESAMPLES, paired_interval, prompt_differences
from dit8.models.types import SampleKey

FEW = 20  # discordant pairs from which on the bootstrap is trusted
FEW_SHARES = 60  # the same for changed prompts whose values are no mere 0 and 1

SHARE = (0.0, 1.0)  # bounds of scores of which most pairs may tie

Values = Mapping[SampleKey, float]


@dataclass(frozen=True)
class Discordance:
    """Hold how two variants disagree on which pictures are exact.

    Args:
        n: number of prompts.
        both, only_a, only_b, neither: pictures that are exact (score 1) in both, one or none.
        p: two-sided p-value of McNemar's exact test, see `mcnemar`.
    """

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    p: float


def mcnemar(a: Values, b: Values) -> Discordance:
    """Test whether two variants are exact equally often (McNemar's exact test).

    A picture is exact when its score is 1: all of its texts were read. If the variants do not
    differ, each prompt's surplus of exact pictures is as likely to be the other variant's; p is
    the share of all such exchanges that lead to a total surplus as large as the one seen. With one
    picture a prompt this is the binomial test of the discordant pairs; with several the seeds of a
    prompt move together. Computed exactly, by convolution.

    Args:
        a, b: score in [0, 1] per (prompt id, seed), with the same keys.

    Raises:
        UserError: a key without partner, a non-finite value, fewer than three prompts.
        ValueError: a score outside [0, 1].
    """
    n = len(share_differences(a, b))
    cells = {(x, y): 0 for x in (True, False) for y in (True, False)}
    surplus: dict[str, int] = {}
    for key in a:
        exact = (a[key] == 1.0, b[key] == 1.0)
        cells[exact] += 1
        surplus[key[0]] = surplus.get(key[0], 0) + int(exact[0]) - int(exact[1])
    counts = (cells[pair] for pair in ((True, True), (True, False), (False, True), (False, False)))
    return Discordance(n, *counts, _exchange_p([s for s in surplus.values() if s]))


def discordant_interval(
    a: Values, b: Values, *, level: float = LEVEL, n_resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Estimate the mean of a - b over prompts, for scores in [0, 1] of which most pairs tie.

    `method` says what was done: "newcombe" or "adjusted wald" where few prompts changed (see the
    module), else what `paired_interval` did.

    Args:
        a, b: score in [0, 1] per (prompt id, seed), with the same keys.
        level, n_resamples, seed: as for `paired_interval`.

    Raises:
        UserError: a key without partner, a non-finite value, fewer than three prompts.
        ValueError: a score outside [0, 1].
    """
    differences, fourfold = share_differences(a, b), is_fourfold(a, b)
    if np.count_nonzero(differences) >= (FEW if fourfold else FEW_SHARES):
        return paired_interval(a, b, level=level, n_resamples=n_resamples, seed=seed)
    n, estimate = len(differences), float(np.mean(differences))
    if fourfold:
        table = mcnemar(a, b)
        low, high = newcombe(table.both, table.only_a, table.only_b, table.neither, level)
        return Interval(estimate, float(low), float(high), n, "newcombe")
    low, high = adjusted_wald(differences, level)
    return Interval(estimate, float(low), float(high), n, "adjusted wald")


def delta_interval(bounds: tuple[float, float], a: Values, b: Values) -> Interval:
    """Estimate the mean of a - b with the interval that suits scores of these bounds.

    Shares, in [0, 1], are compared by `discordant_interval`, others by `paired_interval`.

    Raises:
        what the two raise.
    """
    return discordant_interval(a, b) if bounds == SHARE else paired_interval(a, b)


def share_differences(a: Values, b: Values) -> np.ndarray:
    """Return `prompt_differences` of scores in [0, 1]; ValueError for a score outside."""
    differences = prompt_differences(a, b)
    outside = [value for values in (a, b) for value in values.values() if not 0 <= value <= 1]
    if outside:
        raise ValueError(f"exact_match: scores must lie in [0, 1], got {outside[0]}")
    return differences


def is_fourfold(a: Values, b: Values) -> bool:
    """Tell whether the pairs form a fourfold table: one picture a prompt, every score 0 or 1."""
    prompts = {prompt_id for prompt_id, _ in a}
    return len(prompts) == len(a) and {*a.values(), *b.values()} <= {0.0, 1.0}


def newcombe(
    both: np.ndarray | int,
    only_a: np.ndarray | int,
    only_b: np.ndarray | int,
    neither: np.ndarray | int,
    level: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute Newcombe's interval of p_a - p_b from the counts of a fourfold table.

    Args:
        both, only_a, only_b, neither: counts, scalars or arrays of one shape.
        level: confidence level.

    Returns:
        (low, high), float64 of that shape.
    """
    both, only_a, only_b, neither = (
        np.asarray(count, dtype=np.float64) for count in (both, only_a, only_b, neither)
    )
    n = both + only_a + only_b + neither
    z = ndtri(0.5 + level / 2)
    (p1, l1, u1), (p2, l2, u2) = (_wilson(both + only, n, z) for only in (only_a, only_b))
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = both * neither - only_a * only_b
    # a positive correlation narrows the interval: it is taken down by n / 2, not below zero
    covariance = np.where(covariance > 0, np.maximum(covariance - n / 2, 0.0), covariance)
    phi = covariance / np.sqrt(np.where(margins > 0, margins, np.inf))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(x * x - 2 * phi * x * y + y * y)

    difference = (only_a - only_b) / n
    return (
        difference - distance(p1 - l1, u2 - p2),
        difference + distance(u1 - p1, p2 - l2),
    )


def adjusted_wald(differences: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the interval of a mean with one more change in each direction (see the module).

    Where nothing changed, a change by 1 is added, the largest there can be.

    Args:
        differences: (n, ...) float64 in [-1, 1], prompts along the first axis.
        level: confidence level.

    Returns:
        (low, high), float64 of the remaining shape, within [-1, 1].
    """
    n = len(differences) + 2
    largest = np.abs(differences).max(axis=0)
    largest = np.where(largest > 0, largest, 1.0)
    mean = differences.sum(axis=0) / n
    square = ((differences**2).sum(axis=0) + 2 * largest**2) / n
    half = ndtri(0.5 + level / 2) * np.sqrt((square - mean**2) / n)
    return np.maximum(mean - half, -1.0), np.minimum(mean + half, 1.0)


def _wilson(successes: np.ndarray, n: np.ndarray, z: float) -> tuple[np.ndarray, ...]:
    """Return the proportion and the ends of Wilson's interval."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, centre - half, centre + half


def _exchange_p(surplus: list[int]) -> float:
    """Return the share of sign patterns whose sum is at least as far from zero as the sum seen."""
    share = np.ones(1)  # of every possible sum, from -reach to reach
    for size in map(abs, surplus):
        step = np.zeros(2 * size + 1)
        step[0] = step[-1] = 0.5
        share = np.convolve(share, step)
    reach = len(share) // 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(sum(surplus))
    return min(1.0, float(share[far].sum()))
