"""Decide what a comparison shows, and say it in one sentence.

Four outcomes. *equivalent*: the test of equivalence rejects every difference as large as the
margin; small differences that are real stay equivalent, which is what the margin is for. *worse*,
*better*: not shown equivalent, and the difference is not zero. *not decided*: neither is shown, and
the sentence says how many prompts would do. Intervals that contain zero decide nothing.

`compare` runs the whole procedure for one variant, so that every place that judges does it the
same way: the interval and the tests that suit the score, Holm's correction over the scores of each
of the two families of tests, the declared margin.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dit8.eval.equivalence import ALPHA, difference_p, discordant_tost, holm, tost
from dit8.eval.exact_match import SHARE, Values, delta_interval
from dit8.eval.margins import Margin
from dit8.eval.power import prompts_needed
from dit8.eval.run import Interval
from dit8.eval.scorers import Scorer, get_scorer
from dit8.eval.stats import prompt_differences
from dit8.quant.errors import UserError

EQUIVALENT, WORSE, BETTER, UNDECIDED = "equivalent", "worse", "better", "not decided"
WORST_FIRST = (WORSE, UNDECIDED, BETTER, EQUIVALENT)  # the first that a score has decides
TIMES = ("seconds",)  # of the machine, not of the picture


@dataclass(frozen=True)
class Verdict:
    """Hold an outcome ("equivalent", "worse", "better", "not decided") and its sentence."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Hold what one scorer says about a variant and its reference.

    Args:
        scorer: its name.
        delta: variant - reference, 95 % interval over prompts.
        p_difference: of "no difference", corrected by Holm over the scorers.
        p_tost: of "not equivalent", corrected likewise; None without a margin.
        margin: None where none was declared.
        needed: prompts that show equivalence of equal variants with 80 % power, by t at 5 %
            divided by the number of scorers; None without a margin or beyond a million.
    """

    scorer: str
    delta: Interval
    p_difference: float
    p_tost: float | None
    margin: Margin | None
    needed: int | None
    verdict: Verdict


def compare(
    variant: Mapping[str, Values],
    reference: Mapping[str, Values],
    margins: Mapping[str, Margin],
    *,
    floors: Mapping[str, float] | None = None,
) -> list[Comparison]:
    """Compare a variant with its reference by every scorer that both were measured with.

    Scorers that compare with the reference's pictures, and times, are left out: they do not say
    whether a picture became worse.

    Args:
        variant, reference: scorer -> value per (prompt id, seed).
        margins: of `eval.margins.load_margins`.
        floors: scorer -> noise floor to quote, in the unit of the score.

    Returns:
        one comparison per scorer, sorted by name.

    Raises:
        UserError: a missing partner, a non-finite value, fewer than three prompts, a margin in
            another unit than the scorer's.
    """
    names = [
        name
        for name in sorted(variant.keys() & reference.keys())
        if not get_scorer(name).needs_reference and name not in TIMES
    ]
    pairs = {name: (variant[name], reference[name]) for name in names}
    p_difference = dict(zip(names, holm([difference_p(*pairs[n]) for n in names]), strict=True))
    judged = [name for name in names if name in margins]
    tests = [_tost_p(get_scorer(name), *pairs[name], margins[name]) for name in judged]
    p_tost = dict(zip(judged, holm(tests), strict=True))
    found = []
    for name in names:
        scorer, margin = get_scorer(name), margins.get(name)
        delta = delta_interval(scorer.bounds, *pairs[name])
        needed = None if margin is None else _needed(*pairs[name], margin, ALPHA / len(judged))
        verdict = decide(
            delta,
            p_tost.get(name),
            None if margin is None else margin.value,
            scorer.higher_is_better,
            p_difference=p_difference[name],
            name=name,
            unit=scorer.unit,
            floor=None if floors is None else floors.get(name),
            needed=needed,
        )
        found.append(
            Comparison(name, delta, p_difference[name], p_tost.get(name), margin, needed, verdict)
        )
    return found


def decide(
    delta: Interval,
    p_tost: float | None,
    margin: float | None,
    higher_is_better: bool,
    *,
    p_difference: float | None = None,
    alpha: float = ALPHA,
    name: str = "the score",
    unit: str = "",
    floor: float | None = None,
    needed: int | None = None,
) -> Verdict:
    """Decide one comparison.

    Args:
        delta: variant - reference.
        p_tost: of the test of equivalence, corrected for the number of scorers; None without a
            margin.
        margin: declared beforehand, greater than 0, in the unit of the score; None: no margin, so
            that equivalence cannot be shown.
        higher_is_better: of the score.
        p_difference: of the test of a difference, corrected likewise; None: the interval decides.
        alpha: significance level.
        name, unit, floor, needed: for the sentence: scorer, its unit, the noise floor in that
            unit, and the prompts that would show equivalence, named if there are fewer.

    Raises:
        ValueError: a margin that is not positive, or only one of margin and p_tost given.
    """
    if (margin is None) != (p_tost is None) or (margin is not None and not margin > 0):
        raise ValueError(
            f"decide: margin must be positive and come with p_tost, got {margin} and {p_tost}"
        )
    seen = f"{delta.estimate:+.4g} [{delta.low:+.4g}, {delta.high:+.4g}] {unit}".rstrip()
    noise = "" if floor is None else f"; noise floor {floor:.4g}"
    against = "no margin declared" if margin is None else f"margin {margin:.4g}"
    if p_tost is not None and p_tost <= alpha:
        return Verdict(
            EQUIVALENT,
            f"{name} is equivalent: {seen}, within the {against} ({_p(p_tost)}){noise}.",
        )
    if p_difference is None:
        differs = not delta.low <= 0.0 <= delta.high
    else:
        differs = p_difference <= alpha
    if differs:
        kind = BETTER if (delta.estimate > 0) == higher_is_better else WORSE
        shown = "" if p_difference is None else f" ({_p(p_difference)})"
        return Verdict(kind, f"{name} is {kind}: {seen}{shown}, {against}{noise}.")
    enough = ""
    if needed is not None and needed > delta.n:
        enough = f"; {needed} prompts would show equal variants equivalent"
    return Verdict(UNDECIDED, f"{name} is not decided: {seen}, {against}{noise}{enough}.")


def conclude(
    variant: str,
    reference: str,
    comparisons: Sequence[Comparison],
    *,
    quote: Callable[[Comparison], str] | None = None,
) -> Verdict:
    """Sum up one variant: equivalent only if every score is.

    Worse if any score is; better if a score is and all others are at least equivalent; otherwise
    not decided. The sentence gives the numbers of the scores that decided and names the others.
    Scores without a margin have no say.

    Args:
        variant, reference: what the sentence calls them.
        quote: writes a score with its difference and margin; default: four digits.
    """
    by_kind: dict[str, list[Comparison]] = {}
    for one in comparisons:
        if one.margin is not None:
            by_kind.setdefault(one.verdict.kind, []).append(one)
    kind = next((kind for kind in WORST_FIRST if kind in by_kind), UNDECIDED)
    claim = {
        EQUIVALENT: f"{variant} is equivalent to {reference}",
        WORSE: f"{variant} is worse than {reference}",
        BETTER: f"{variant} is better than {reference}",
        UNDECIDED: f"Whether {variant} is equivalent to {reference} is not decided",
    }[kind]
    if not by_kind:
        return Verdict(kind, f"{claim}: no score with a margin was measured.")
    parts = [f"{claim} by {', '.join(map(quote or _brief, by_kind.pop(kind)))}"]
    for other in WORST_FIRST:
        if other in by_kind:
            parts.append(f"{other} by {', '.join(one.scorer for one in by_kind[other])}")
    return Verdict(kind, f"{'; '.join(parts)}.")


def _tost_p(scorer: Scorer, a: Values, b: Values, margin: Margin) -> float:
    if margin.unit != scorer.unit:
        raise UserError(
            f"margins: the margin of {scorer.name} must be in {scorer.unit!r}, got "
            f"{margin.unit!r}; correct conf/margins.yaml"
        )
    if scorer.bounds == SHARE:
        return discordant_tost(a, b, -margin.value, margin.value).p
    return tost(a, b, -margin.value, margin.value, correct_skewness=True).p


def _needed(a: Values, b: Values, margin: Margin, alpha: float) -> int | None:
    sd = float(np.std(prompt_differences(a, b), ddof=1))
    try:
        return prompts_needed(sd, margin.value, alpha=alpha, goal="equivalence")
    except UserError:  # more than a million: nothing one could be advised to do
        return None


def _brief(one: Comparison) -> str:
    assert one.margin is not None
    ends = f"{one.delta.estimate:+.4g} [{one.delta.low:+.4g}, {one.delta.high:+.4g}]"
    return f"{one.scorer} {ends} (margin {one.margin.value:.4g})"


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
