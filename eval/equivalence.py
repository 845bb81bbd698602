"""Test whether two variants are equivalent, and whether they differ: p-values, one per scorer.

An interval that contains zero shows nothing about equality: with few prompts it always does.
Equivalence is shown by two one-sided tests (Schuirmann, Journal of Pharmacokinetics and
Biopharmaceutics 15:657, 1987): both "the difference is at most `low`" and "it is at least `high`"
must be rejected, so

    p = max(p of mean <= low, p of mean >= high),

each by Student's t over prompts, as statsmodels.stats.weightstats.ttost_paired. How often variants
that differ by the margin are called equivalent is simulated in results/tables/coverage_map.md, and
t does so too often in two cases. Where the differences are skewed, Hall's transformation of t
(Journal of the Royal Statistical Society B 54:221, 1992) restores 5 %: with S = (mean - margin) / s
and skewness g,

    T = sqrt(n) (S + g S^2 / 3 + g^2 S^3 / 27 + g / (6 n)).

With heavy tails g is mostly noise and T errs where t does not, so that both must reject. Where most
pairs tie, t errs most, and `discordant_tost` takes other tests:

- exact match, one picture a prompt: Tango's score test of paired proportions (Statistics in
  Medicine 17:891, 1998), the variance taken at the margin, with a continuity correction of half a
  pair;
- other shares: t after one more prompt with the worst change, up against `high` and down against
  `low`: by 1, the worst there can be, where under 20 prompts changed, else by the largest change
  seen.

Several scorers are several chances to err: `holm` corrects their p-values together (Holm,
Scandinavian Journal of Statistics 6:65, 1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from dit8.eval.exact_match import FEW, Values, is_fourfold, mcnemar, share_differences
from dit8.eval.stats import prompt_differences

ALPHA = 0.05


@dataclass(frozen=True)
class Equivalence:
    """Hold the outcome of a test of equivalence.

    Args:
        low, high: the margins, in the unit of the score.
        p: of the less favourable of the two one-sided tests.
        method: "t", "t and Hall", "score" or "t with a worst case"; "signs" where all
            differences are equal.
        equivalent: p is at most 5 %; not corrected for several scorers.
    """

    low: float
    high: float
    p: float
    method: str

    @property
    def equivalent(self) -> bool:
        return self.p <= ALPHA


def tost(
    a: Values, b: Values, low: float, high: float, *, correct_skewness: bool = False
) -> Equivalence:
    """Test whether the mean of a - b lies between two margins, by two one-sided t-tests.

    Args:
        a, b: value per (prompt id, seed), with the same keys; seeds of a prompt are averaged.
        low, high: margins declared beforehand, low < 0 < high, in the unit of the score.
        correct_skewness: ask for t transformed by Hall too (see the module), not only for t.

    Raises:
        UserError: a key without partner, a non-finite value, fewer than three prompts.
        ValueError: not low < 0 < high.
    """
    _check_margins(low, high)
    differences = prompt_differences(a, b)
    if np.ptp(differences) == 0.0:
        return _of_equal_differences(differences, low, high)
    if correct_skewness:
        return Equivalence(low, high, float(skewed_tost_p(differences, low, high)), "t and Hall")
    return Equivalence(low, high, float(tost_p(differences, low, high)), "t")


def discordant_tost(a: Values, b: Values, low: float, high: float) -> Equivalence:
    """Test equivalence of scores in [0, 1] of which most pairs tie; else as `tost`.

    Raises:
        UserError: a key without partner, a non-finite value, fewer than three prompts.
        ValueError: not low < 0 < high, or a score outside [0, 1].
    """
    _check_margins(low, high)
    differences = share_differences(a, b)
    if is_fourfold(a, b):
        table = mcnemar(a, b)
        p = score_tost_p(table.only_a, table.only_b, table.n, low, high)
        return Equivalence(low, high, float(p), "score")
    if np.ptp(differences) == 0.0 and differences[0] != 0.0:
        return _of_equal_differences(differences, low, high)
    p = worst_case_tost_p(differences, low, high)
    return Equivalence(low, high, float(p), "t with a worst case")


def tost_p(differences: np.ndarray, low: float, high: float) -> np.ndarray:
    """Compute the p-value of `tost` along the first axis; differences: (n, ...) float64."""
    above = scipy.stats.ttest_1samp(differences, low, axis=0, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(differences, high, axis=0, alternative="less").pvalue
    return np.maximum(above, below)


def skewed_tost_p(differences: np.ndarray, low: float, high: float) -> np.ndarray:
    """Compute the larger p-value of t and of t after Hall; arguments as `tost_p`."""
    n, sd = len(differences), differences.std(axis=0, ddof=1)
    mean = differences.mean(axis=0)
    skewness = ((differences - mean) ** 3).mean(axis=0) / sd**3

    def transformed(margin: float) -> np.ndarray:
        s = (mean - margin) / sd
        return np.sqrt(n) * (s + skewness * s**2 / 3 + skewness**2 * s**3 / 27 + skewness / (6 * n))

    above = scipy.stats.t.sf(transformed(low), n - 1)
    below = scipy.stats.t.cdf(transformed(high), n - 1)
    return np.maximum(np.maximum(above, below), tost_p(differences, low, high))


def worst_case_tost_p(differences: np.ndarray, low: float, high: float) -> np.ndarray:
    """Compute t-tests after one more prompt with the worst change; (n, ...) in [-1, 1]."""
    is_few = np.count_nonzero(differences, axis=0, keepdims=True) < FEW
    worst = np.where(is_few, 1.0, np.abs(differences).max(axis=0, keepdims=True))
    lowered = np.concatenate([differences, -worst])
    raised = np.concatenate([differences, worst])
    above = scipy.stats.ttest_1samp(lowered, low, axis=0, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(raised, high, axis=0, alternative="less").pvalue
    return np.maximum(above, below)


def score_tost_p(
    only_a: np.ndarray | int, only_b: np.ndarray | int, n: int, low: float, high: float
) -> np.ndarray:
    """Compute the p-value of the two score tests from the discordant counts of n pairs."""
    return np.maximum(_score_p(only_a, only_b, n, high), _score_p(only_b, only_a, n, -low))


def difference_p(a: Values, b: Values) -> float:
    """Return the two-sided p-value of "the mean of a - b is zero".

    McNemar's exact test where the pairs form a fourfold table (`eval.exact_match`), else Student's
    t over prompts. Where all differences are equal t is undefined, and the share of sign patterns
    as extreme is taken: 1 if they are zero, else 2^(1-n).

    Raises:
        UserError: a key without partner, a non-finite value, fewer than three prompts.
    """
    differences = prompt_differences(a, b)
    if is_fourfold(a, b):
        return mcnemar(a, b).p
    if np.ptp(differences) == 0.0:
        return 1.0 if differences[0] == 0.0 else 2.0 ** (1 - len(differences))
    return float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several tests so that 5 % holds for all of them together.

    Args:
        p_values: of the tests, in any order.

    Returns:
        adjusted p-values in that order: the k-th smallest of m times m - k + 1, at most 1, and
        never below the adjusted value of a smaller one.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _score_p(only_a: np.ndarray | int, only_b: np.ndarray | int, n: int, high: float) -> np.ndarray:
    """Test "p_a - p_b >= high" against less, both proportions estimated under equality."""
    only_a, only_b = np.asarray(only_a, dtype=np.float64), np.asarray(only_b, dtype=np.float64)
    # likelihood equation of the probability q of a pair that only b has, if p_a - p_b = high:
    # 2 n q^2 + linear q - only_b high (1 - high) = 0
    linear = (2 * n - only_a + only_b) * high - only_a - only_b
    q = (np.sqrt(linear**2 + 8 * n * only_b * high * (1 - high)) - linear) / (4 * n)
    variance = n * (2 * q + high * (1 - high))
    return scipy.stats.norm.cdf((only_a - only_b - n * high + 0.5) / np.sqrt(variance))


def _of_equal_differences(differences: np.ndarray, low: float, high: float) -> Equivalence:
    """Judge by signs alone: every prompt lies inside the margins, or none does."""
    inside = low < differences[0] < high
    return Equivalence(low, high, 2.0 ** -len(differences) if inside else 1.0, "signs")


def _check_margins(low: float, high: float) -> None:
    if not low < 0.0 < high:
        raise ValueError(f"tost: margins must satisfy low < 0 < high, got {low} and {high}")
