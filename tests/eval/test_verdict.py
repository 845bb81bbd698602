"""Verdicts: the rule, its sentences, and the whole procedure on made-up variants."""

import numpy as np
import pytest

from dit8.eval.equivalence import difference_p, discordant_tost, holm, tost
from dit8.eval.exact_match import discordant_interval
from dit8.eval.margins import Margin
from dit8.eval.power import prompts_needed
from dit8.eval.run import Interval
from dit8.eval.stats import paired_interval
from dit8.eval.verdict import (
    BETTER,
    EQUIVALENT,
    UNDECIDED,
    WORSE,
    Comparison,
    Verdict,
    compare,
    conclude,
    decide,
)
from dit8.quant.errors import UserError


def keyed(values) -> dict:
    return {(f"p{i:04d}", 0): float(v) for i, v in enumerate(values)}


def interval(estimate: float, half: float = 0.02, n: int = 300) -> Interval:
    return Interval(estimate, estimate - half, estimate + half, n, "bca")


MARGINS = {
    "ocr_exact": Margin("ocr_exact", 0.05, "fraction of texts", "x"),
    "ocr_ned": Margin("ocr_ned", 0.02, "edit distance / longer length", "x"),
}


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_direction_of_the_score_decides_worse_and_better(higher_is_better, sign):
    found = decide(interval(sign * 0.1), 0.9, 0.05, higher_is_better)
    assert found.kind == (BETTER if (sign == 1) == higher_is_better else WORSE)


def test_equivalence_comes_first():
    # a real difference, but shown smaller than the margin
    found = decide(interval(0.03, 0.01), 0.001, 0.05, True, p_difference=1e-6, name="psnr")
    assert found.kind == EQUIVALENT
    assert found.sentence == (
        "psnr is equivalent: +0.03 [+0.02, +0.04], within the margin 0.05 (p = 0.001)."
    )


def test_an_interval_that_contains_zero_decides_nothing():
    found = decide(interval(0.01), 0.2, 0.02, True, name="ssim", unit="1", floor=0.015, needed=800)
    assert found.kind == UNDECIDED
    assert found.sentence == (
        "ssim is not decided: +0.01 [-0.01, +0.03] 1, margin 0.02; noise floor 0.015; 800 prompts"
        " would show equal variants equivalent."
    )
    # there are enough already: more of them is no advice
    assert "prompts" not in decide(interval(0.01), 0.2, 0.02, True, needed=300).sentence


def test_the_corrected_p_value_overrules_the_interval():
    delta = interval(-0.03, 0.02)
    assert decide(delta, 0.3, 0.05, True).kind == WORSE
    assert decide(delta, 0.3, 0.05, True, p_difference=0.06).kind == UNDECIDED
    found = decide(delta, 0.3, 0.05, True, p_difference=0.00003, name="ocr")
    assert found.sentence == "ocr is worse: -0.03 [-0.05, -0.01] (p < 0.0001), margin 0.05."


def test_levels_are_met_at_equality():
    assert decide(interval(0.0), 0.05, 0.1, True).kind == EQUIVALENT
    assert decide(interval(0.0), 0.0500001, 0.1, True).kind == UNDECIDED
    assert decide(interval(0.0), 0.04, 0.1, True, alpha=0.01).kind == UNDECIDED
    assert decide(interval(0.2), 0.9, 0.1, True, p_difference=0.05).kind == BETTER


def test_without_a_margin_nothing_is_equivalent():
    found = decide(interval(0.0), None, None, True)
    assert found.kind == UNDECIDED and "no margin declared" in found.sentence
    assert decide(interval(0.1), None, None, True).kind == BETTER


@pytest.mark.parametrize(("p", "margin"), [(0.1, None), (None, 0.1), (0.1, 0.0), (0.1, -1.0)])
def test_margins_and_p_values_come_together(p, margin):
    with pytest.raises(ValueError, match=r"margin must be positive and come with p_tost"):
        decide(interval(0.0), p, margin, True)


@pytest.fixture
def scores() -> tuple[dict, dict]:
    """A variant and its reference: exact match nearly alike, distances alike, latents, seconds."""
    rng = np.random.default_rng(9)
    exact = (rng.random(300) < 0.6).astype(float)
    changed = exact.copy()
    changed[:4] = 1 - changed[:4]
    distances = rng.beta(1, 4, size=300)
    reference = {"ocr_exact": keyed(exact), "ocr_ned": keyed(distances), "seconds": keyed(exact)}
    variant = {
        "ocr_exact": keyed(changed),
        "ocr_ned": keyed(np.clip(distances + rng.normal(0.0, 0.02, size=300), 0, 1)),
        "latent_error": keyed(exact),
        "seconds": keyed(exact),
    }
    return variant, reference


def test_the_procedure_takes_what_suits_each_score(scores):
    variant, reference = scores
    found = {c.scorer: c for c in compare(variant, reference, MARGINS)}
    assert list(found) == ["ocr_exact", "ocr_ned"]  # neither relative scores nor times
    pairs = {name: (variant[name], reference[name]) for name in found}
    assert found["ocr_exact"].delta == discordant_interval(*pairs["ocr_exact"])
    assert found["ocr_exact"].delta.method == "newcombe"
    assert found["ocr_ned"].delta == paired_interval(*pairs["ocr_ned"])
    p_tost = [discordant_tost(*pairs[n], -m.value, m.value).p for n, m in MARGINS.items()]
    assert [found[name].p_tost for name in MARGINS] == holm(p_tost)
    p_difference = [difference_p(*pairs[name]) for name in MARGINS]
    assert [found[name].p_difference for name in MARGINS] == holm(p_difference)
    sd = np.std(
        [a - b for a, b in zip(*(p.values() for p in pairs["ocr_exact"]), strict=True)], ddof=1
    )
    needed = prompts_needed(sd, 0.05, alpha=0.025, goal="equivalence")
    assert found["ocr_exact"].needed == needed
    assert {c.verdict.kind for c in found.values()} == {EQUIVALENT}


def test_scores_that_are_no_shares_are_tested_by_t_and_hall():
    rng = np.random.default_rng(10)
    reference = {"pickscore": keyed(rng.normal(20.0, 1.0, size=100))}
    variant = {"pickscore": {k: v + rng.gamma(1.0, 0.1) for k, v in reference["pickscore"].items()}}
    margins = {"pickscore": Margin("pickscore", 0.2, "logit", "x")}
    (found,) = compare(variant, reference, margins)
    pair = variant["pickscore"], reference["pickscore"]
    assert found.p_tost == tost(*pair, -0.2, 0.2, correct_skewness=True).p
    assert found.p_tost != tost(*pair, -0.2, 0.2).p


def test_a_score_without_a_margin_is_compared_but_has_no_say(scores):
    variant, reference = scores
    margins = {"ocr_exact": MARGINS["ocr_exact"]}
    exact, distance = compare(variant, reference, margins, floors={"ocr_exact": 0.0123})
    assert (distance.p_tost, distance.margin, distance.needed) == (None, None, None)
    assert "noise floor 0.0123" in exact.verdict.sentence
    assert conclude("int8", "bf16", [exact, distance]).kind == EQUIVALENT
    found = conclude("int8", "bf16", [distance])
    assert found.kind == UNDECIDED
    assert found.sentence == (
        "Whether int8 is equivalent to bf16 is not decided: no score with a margin was measured."
    )


def test_one_bad_score_decides_the_variant(scores):
    variant, reference = scores
    good = compare(variant, reference, MARGINS)
    found = conclude("int8", "bf16", good)
    assert found.kind == EQUIVALENT
    assert found.sentence.startswith("int8 is equivalent to bf16 by ocr_exact")
    assert "ocr_ned" in found.sentence and "margin 0.02" in found.sentence
    blurred = {key: min(1.0, value + 0.2) for key, value in reference["ocr_ned"].items()}
    bad = compare(variant | {"ocr_ned": blurred}, reference, MARGINS)
    found = conclude("nf4", "bf16", bad)
    assert found.kind == WORSE
    assert found.sentence.startswith("nf4 is worse than bf16 by ocr_ned +0.")
    assert found.sentence.endswith("(margin 0.02); equivalent by ocr_exact.")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((EQUIVALENT, EQUIVALENT), EQUIVALENT),
        ((BETTER, EQUIVALENT), BETTER),
        ((UNDECIDED, BETTER), UNDECIDED),
        ((EQUIVALENT, UNDECIDED), UNDECIDED),
        ((UNDECIDED, WORSE), WORSE),
        ((WORSE, BETTER), WORSE),
    ],
)
def test_the_least_favourable_score_decides(kinds, expected):
    names = ("ocr_exact", "ocr_ned")
    comparisons = [
        Comparison(name, interval(0.01), 1.0, 1.0, MARGINS[name], None, Verdict(kind, "x"))
        for name, kind in zip(names, kinds, strict=True)
    ]
    found = conclude("int8", "bf16", comparisons)
    assert found.kind == expected
    for name, kind in zip(names, kinds, strict=True):
        assert (f"{name} +0.01 [" in found.sentence) == (kind == expected)
        assert name in found.sentence


def test_fewer_prompts_leave_it_open(scores):
    variant, reference = (
        {name: dict(list(values.items())[:12]) for name, values in side.items()} for side in scores
    )
    found = conclude("int8", "bf16", compare(variant, reference, MARGINS))
    assert found.kind == UNDECIDED
    assert found.sentence.startswith("Whether int8 is equivalent to bf16 is not decided by ocr_")


def test_a_margin_in_another_unit_is_refused(scores):
    wrong = {"ocr_ned": Margin("ocr_ned", 2.0, "percent", "x")}
    with pytest.raises(UserError, match=r"ocr_ned must be in 'edit distance.*got 'percent'; corr"):
        compare(*scores, wrong)


def test_a_missing_partner_is_an_error_and_not_a_dropped_row(scores):
    variant, reference = scores
    del reference["ocr_ned"]["p0007", 0]
    with pytest.raises(UserError, match=r"missing from the second variant, p0007 \(seed 0\)"):
        compare(variant, reference, MARGINS)
