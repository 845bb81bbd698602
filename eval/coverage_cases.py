"""List the data that intervals and tests of equivalence are tried on, each with a known truth.

Three kinds of per-prompt differences: scores, where every prompt differs; shares, where most pairs
tie and a few prompts change; clusters, where several seeds share a prompt. For an interval the
question is whether it covers the true mean. For a test of equivalence the margin is put where the
true mean is, so that calling it equivalent is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

INTERVAL, TOST = "interval", "tost"
PROMPTS = (50, 100, 300)
SEEDS = 4  # pictures a prompt in the clustered case
EXACT, THIRDS, DISTANCES, CLUSTERS = "exact match", "thirds", "edit distances", "4 seeds a prompt"

# continuous scores: draw(generator, shape), true mean, true standard deviation
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
SCORES: dict[str, tuple[Draw, float, float]] = {
    "normal": (lambda g, shape: g.normal(size=shape), 0.0, 1.0),
    "mildly skewed (gamma, skewness 1)": (lambda g, shape: g.gamma(4.0, size=shape), 4.0, 2.0),
    "skewed (exponential, skewness 2)": (lambda g, shape: g.exponential(size=shape), 1.0, 1.0),
    "heavy tails (Student t, 5 degrees)": (
        lambda g, shape: g.standard_t(5, size=shape),
        0.0,
        (5 / 3) ** 0.5,
    ),
    "heavy tails (Student t, 3 degrees)": (
        lambda g, shape: g.standard_t(3, size=shape),
        0.0,
        3**0.5,
    ),
    "very skewed (lognormal, sigma 1)": (
        lambda g, shape: g.lognormal(0.0, 1.0, size=shape),
        np.exp(0.5),
        ((np.e - 1) * np.e) ** 0.5,
    ),
    "extremely skewed (lognormal, sigma 1.5)": (
        lambda g, shape: g.lognormal(0.0, 1.5, size=shape),
        np.exp(1.125),
        ((np.exp(2.25) - 1) * np.exp(2.25)) ** 0.5,
    ),
}
# scores of which most pairs tie: size of a change, and its mean
CHANGES: dict[str, tuple[Draw, float]] = {
    EXACT: (lambda g, shape: np.ones(shape), 1.0),
    THIRDS: (lambda g, shape: g.integers(1, 4, size=shape) / 3, 2 / 3),
    DISTANCES: (lambda g, shape: g.beta(1.5, 3.5, size=shape), 0.3),
}


@dataclass(frozen=True)
class Case:
    """Describe one kind of data.

    Args:
        question: "interval" (coverage at 95 %) or "tost" (errors at the margin).
        data: key of SCORES or CHANGES, or the clustered case.
        n: prompts.
        changed: expected number of prompts that differ at all; 0: every one.
        upward: share of them in which the first variant is higher.
        margin: of equivalence, equal to the true difference; 0 for intervals.
    """

    question: str
    data: str
    n: int
    changed: float = 0.0
    upward: float = 0.0
    margin: float = 0.0


def cases() -> list[Case]:
    """List every case of the map, in its order."""
    found = [Case(INTERVAL, data, n) for data in SCORES for n in PROMPTS]
    for data in CHANGES:
        for n in PROMPTS:
            for changed in (2, 5, 10, 19, 30, 60, 90):
                if 2 * changed <= n:
                    ways = (0.5, 0.75, 1.0)
                    found += [Case(INTERVAL, data, n, changed, upward) for upward in ways]
    found += [Case(INTERVAL, CLUSTERS, n) for n in PROMPTS]
    # half a standard deviation at 50 prompts; 3.5 standard errors of the mean at any number
    found += [
        Case(TOST, data, n, margin=round(SCORES[data][2] * 0.5 * (50 / n) ** 0.5, 6))
        for data in SCORES
        for n in PROMPTS
    ]
    for data, (_, size) in CHANGES.items():
        for n in PROMPTS:
            for margin in (0.02, 0.05, 0.1):
                for downward in (0.0, 0.02):  # share of prompts that change against the rest
                    up = margin / size + downward
                    changed, upward = n * (up + downward), up / (up + downward)
                    if up + downward <= 0.5:
                        found.append(
                            Case(TOST, data, n, round(changed, 6), round(upward, 6), margin)
                        )
    return found


def draw_block(
    case: Case, generator: np.random.Generator, size: int
) -> tuple[np.ndarray, float, np.ndarray | None]:
    """Return differences (n, size), their true mean, and the pictures' of the clustered case."""
    shape = (case.n, size)
    if case.data in SCORES:
        draw, mean, _ = SCORES[case.data]
        return draw(generator, shape), mean, None
    if case.data == CLUSTERS:
        # half of the variance is the prompt's, half the seed's
        pictures = generator.normal(size=(SEEDS, *shape)) + generator.normal(size=shape)
        return pictures.mean(axis=0), 0.0, pictures.reshape(SEEDS * case.n, size)
    draw, mean = CHANGES[case.data]
    share = case.changed / case.n
    which = generator.random(shape)
    sign = np.where(which < share * case.upward, 1.0, np.where(which < share, -1.0, 0.0))
    return sign * draw(generator, shape), share * (2 * case.upward - 1) * mean, None
