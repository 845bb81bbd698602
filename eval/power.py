"""Count the prompts a comparison needs, before or after it was run.

Two questions. "difference": how many prompts until a true difference as large as the margin is
seen, by the two-sided paired t-test, whose statistic then follows the noncentral t distribution
with noncentrality sqrt(n) margin / sd. "equivalence": how many until `eval.equivalence.tost` shows
equivalence of two variants that do not differ at all. Given the standard deviation s seen, that
test succeeds if the mean lies within margin - t s / sqrt(n) of zero, so its power is

    E[2 Phi((sqrt(n) margin - t s) / sd) - 1, at least 0],  (n - 1) s^2 / sd^2 ~ chi^2(n - 1).
"""

import math
from collections.abc import Callable

import numpy as np
import scipy

from dit8.eval.equivalence import ALPHA
from dit8.eval.stats import MIN_PROMPTS
from dit8.quant.errors import UserError

POWER = 0.8
MOST = 1_000_000  # prompts; nobody draws more pictures than this for one comparison


def prompts_needed(
    sd: float,
    margin: float,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    goal: str = "difference",
) -> int:
    """Return the smallest number of prompts that reaches the power.

    Args:
        sd: standard deviation of the per-prompt differences, in the unit of the score; for exact
            match sqrt(discordant share) where both directions are equally likely.
        margin: smallest difference that matters, in the same unit.
        alpha: significance level.
        power: probability of success.
        goal: "difference" (detect a true difference of `margin`) or "equivalence" (show that
            equal variants are equivalent within `margin`).

    Raises:
        UserError: more than a million prompts are needed.
        ValueError: an argument outside its range.
    """
    if not (np.isfinite(sd) and sd >= 0 and np.isfinite(margin) and margin > 0):
        raise ValueError(f"prompts_needed: need sd >= 0 and margin > 0, got {sd} and {margin}")
    if not (0 < alpha < power < 1):
        raise ValueError(f"prompts_needed: need 0 < alpha < power < 1, got {alpha} and {power}")
    if goal not in POWERS:
        raise ValueError(f"prompts_needed: goal must be one of {', '.join(POWERS)}, got {goal!r}")
    if sd == 0.0:
        return MIN_PROMPTS
    reached = POWERS[goal]
    effect, high = margin / sd, MIN_PROMPTS
    while reached(effect, high, alpha) < power:
        high *= 2
        if high > MOST:
            raise UserError(
                f"power: more than {MOST} prompts are needed at standard deviation {sd:.4g} and "
                f"margin {margin:.4g}; declare a wider margin or take a score with less noise"
            )
    low = high // 2 if high > MIN_PROMPTS else MIN_PROMPTS - 1
    while high - low > 1:
        middle = (low + high) // 2
        if reached(effect, middle, alpha) < power:
            low = middle
        else:
            high = middle
    return high


def difference_power(effect: float, n: int, alpha: float) -> float:
    """Return the power of the two-sided paired t-test at a true difference of effect * sd."""
    t = scipy.stats.t.isf(alpha / 2, n - 1)
    shift = effect * np.sqrt(n)
    return float(scipy.stats.nct.sf(t, n - 1, shift) + scipy.stats.nct.cdf(-t, n - 1, shift))


def equivalence_power(effect: float, n: int, alpha: float) -> float:
    """Return the power of TOST with margins of effect * sd where the true difference is zero."""
    t, degrees = scipy.stats.t.isf(alpha, n - 1), n - 1
    reach = effect * np.sqrt(n)

    # both densities written out: scipy.stats.chi2.pdf of one number takes 100 times as long
    half = degrees / 2
    scale = half * math.log(2) + math.lgamma(half)

    def success(ratio: float) -> float:  # of the standard deviation seen to the true one
        inside = math.erf((reach - t * ratio) / math.sqrt(2))  # 2 Phi - 1
        x = degrees * ratio**2
        return inside * 2 * degrees * ratio * math.exp((half - 1) * math.log(x) - x / 2 - scale)

    # beyond these ends lies less than 1e-12 of the distribution, or no success at all
    ends = np.sqrt(scipy.stats.chi2.ppf([1e-12, 1 - 1e-12], degrees) / degrees)
    end = min(ends[1], reach / t)
    return float(scipy.integrate.quad(success, ends[0], end)[0]) if end > ends[0] else 0.0


POWERS: dict[str, Callable[[float, int, float], float]] = {
    "difference": difference_power,
    "equivalence": equivalence_power,
}
