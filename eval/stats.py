"""Put 95 % intervals on scores: the prompt is the unit that is resampled.

The seeds of one prompt are averaged first, since they share its difficulty and treating them
as independent would narrow the interval. Values are paired by (prompt id, seed), never by
position. How often the 95 % interval holds what it promises is simulated by
scripts/coverage_map.py: results/tables/coverage_map.md says where BCa falls short, and by how
much. Where few pairs differ, take `eval.exact_match.discordant_interval` instead. An interval that
contains zero does not show that two variants are equal: see `eval.equivalence`.
"""

import functools
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from dit8.eval.run import Interval, name_keys
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError

LEVEL = 0.95
RESAMPLES = 9999
MIN_PROMPTS = 3
BATCH = 1000  # resamples held at once: 8 MB for 1000 prompts
# differences that agree to this share of the values they came from differ by rounding only
ROUNDING = 1e-12


def paired_interval(
    a: Mapping[SampleKey, float],
    b: Mapping[SampleKey, float],
    *,
    level: float = LEVEL,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Estimate the mean of a - b over prompts with a bootstrap interval.

    BCa (Efron 1987) by scipy.stats.bootstrap over per-prompt differences. `method` says what
    was done: "bca"; "percentile" where BCa is undefined; "degenerate" where all differences
    are equal, and the interval is that one value because resampling cannot say more.

    Args:
        a, b: value per (prompt id, seed), with the same keys.
        level: confidence level.
        n_resamples: bootstrap resamples.
        seed: of the resampling generator; the same seed gives the same interval.

    Returns:
        The interval of mean(a - b), n = number of prompts.

    Raises:
        UserError: a key without partner, a non-finite value, fewer than three prompts.
    """
    return _bootstrap(prompt_differences(a, b).tobytes(), level, n_resamples, seed)


def mean_interval(
    values: Mapping[SampleKey, float],
    *,
    level: float = LEVEL,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Estimate the mean of `values` over prompts; arguments and methods as `paired_interval`."""
    _check_finite(values)
    scale = max((abs(v) for v in values.values()), default=0.0)
    means = _without_rounding(_prompt_means(values), scale)
    return _bootstrap(means.tobytes(), level, n_resamples, seed)


def prompt_differences(a: Mapping[SampleKey, float], b: Mapping[SampleKey, float]) -> np.ndarray:
    """Pair a with b by (prompt id, seed) and average a - b over the seeds of each prompt.

    Args:
        a, b: value per (prompt id, seed), with the same keys.

    Returns:
        float64 (n prompts,), sorted by prompt id; exactly equal where they differ by rounding only.

    Raises:
        UserError: a key without partner, a non-finite value, fewer than three prompts.
    """
    for name, missing in (("second", a.keys() - b.keys()), ("first", b.keys() - a.keys())):
        if missing:
            raise UserError(
                f"stats: {len(missing)} samples are missing from the {name} variant,"
                f" {name_keys(missing)}; evaluate both on the same prompts and seeds"
            )
    _check_finite(a)
    _check_finite(b)
    scale = max((abs(v) for values in (a, b) for v in values.values()), default=0.0)
    return _without_rounding(_prompt_means({key: a[key] - b[key] for key in a}), scale)


def wilson_interval(successes: int, n: int, *, level: float = LEVEL) -> Interval:
    """Estimate a proportion with Wilson's score interval (Wilson 1927), by scipy binomtest.

    Takes the trials as independent: two texts of one picture are only nearly so.

    Raises:
        ValueError: not 0 <= successes <= n with n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson_interval: need 0 <= successes <= n, n >= 1, got {successes}, {n}")
    interval = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high), n, "wilson")


def latency_percentiles(durations_ms: Sequence[float]) -> dict[str, float]:
    """Return n and the 20th, 50th and 80th percentile in ms, keyed as in results/latency.csv."""
    if not durations_ms or not np.all(np.isfinite(durations_ms)):
        raise ValueError(f"latency_percentiles: need finite durations in ms, got {durations_ms}")
    p20, p50, p80 = (float(p) for p in np.percentile(durations_ms, (20, 50, 80)))
    return {"n": len(durations_ms), "p20_ms": p20, "p50_ms": p50, "p80_ms": p80}


def _prompt_means(values: Mapping[SampleKey, float]) -> np.ndarray:
    """Average over the seeds of each prompt; sorted by prompt id, float64 (n prompts,)."""
    by_prompt = defaultdict(list)
    for (prompt_id, _), value in sorted(values.items()):
        by_prompt[prompt_id].append(value)
    if len(by_prompt) < MIN_PROMPTS:
        raise UserError(
            f"stats: got {len(by_prompt)} prompts, expected at least {MIN_PROMPTS} for an"
            " interval; evaluate more prompts"
        )
    # one seed a prompt is the rule, and numpy's mean of one number takes ten microseconds
    means = [each[0] if len(each) == 1 else np.mean(each) for each in by_prompt.values()]
    return np.array(means, dtype=np.float64)


def _without_rounding(values: np.ndarray, scale: float) -> np.ndarray:
    """Make values equal that rounding alone sets apart; `scale` is what they were computed from."""
    if np.ptp(values) > ROUNDING * scale:
        return values
    mean = float(np.mean(values))
    return np.full_like(values, mean if abs(mean) > ROUNDING * scale else 0.0)


@functools.cache  # 20 ms each, and pages and tables ask again for the same
def _bootstrap(data: bytes, level: float, n_resamples: int, seed: int) -> Interval:
    values = np.frombuffer(data, dtype=np.float64)
    n = len(values)
    if np.ptp(values) == 0.0:
        estimate = float(values[0])
        return Interval(estimate, estimate, estimate, n, "degenerate")
    estimate = float(np.mean(values))
    options = {"vectorized": True, "confidence_level": level, "batch": BATCH}
    with warnings.catch_warnings():
        # scipy warns where BCa is undefined and returns nan; `method` says it instead
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=n_resamples,
            method="BCa",
            rng=np.random.default_rng(seed),
            **options,
        )
    method = "bca"
    if not np.isfinite(result.confidence_interval).all():
        method = "percentile"
        # the same resamples again: n_resamples=0 only reads another interval off them
        result = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=0,
            method="percentile",
            bootstrap_result=result,
            **options,
        )
    low, high = (float(end) for end in result.confidence_interval)
    return Interval(estimate, low, high, n, method)


def _check_finite(values: Mapping[SampleKey, float]) -> None:
    bad = [key for key, value in values.items() if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"stats: {len(bad)} values are not finite, {name_keys(bad)}; score them again"
        )
