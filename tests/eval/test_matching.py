import itertools

import numpy as np
import pytest

from dit8.eval.matching import (
    candidates,
    distance,
    exact_fraction,
    lines,
    mean_distance,
    normalize,
    strict_fraction,
)
from dit8.eval.reading import Box, Reading


def reading(*placed: tuple[str, float, float]) -> Reading:
    """Make a reading of (text, left, top), every box 20 px high and 8 px wide per letter."""
    return Reading(tuple(Box(t, x, y, x + 8 * len(t), y + 20, 0.9) for t, x, y in placed))


def stacked(*texts: str) -> Reading:
    return reading(*((text, 0, 40 * i) for i, text in enumerate(texts)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ab c\t\n", "abc"),
        ("ＡＢ１", "ab1"),
        ("Straße", "strasse"),
        ("e\u0301", "\u00e9"),
        ("a\u00a0\u3000b", "ab"),
        ("", ""),
    ],
)
def test_normalization(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("", "", 0.0), ("abc", "", 1.0), ("abc", "abd", 1 / 3), ("ab", "abcd", 0.5), ("A", "a", 1.0)],
)
def test_distance_is_over_the_longer_length(a, b, expected):
    assert distance(a, b) == distance(b, a) == expected


def test_one_text_read_well_nearly_and_not_at_all():
    assert exact_fraction(["River"], stacked("RIVER")) == 1
    assert strict_fraction(["River"], stacked("RIVER")) == 0
    assert strict_fraction(["RIVER"], stacked("RIVER")) == 1
    assert exact_fraction(["RIVER"], stacked("RIVFR")) == 0
    assert mean_distance(["RIVER"], stacked("RIVFR")) == pytest.approx(1 / 5, abs=1e-15)
    assert mean_distance(["RIVER"], Reading(())) == 1
    assert exact_fraction(["RIVER"], Reading(())) == 0


def test_order_and_extra_boxes_do_not_matter():
    found = stacked("noise", "STONE", "more", "RIVER")
    assert exact_fraction(["RIVER", "STONE"], found) == 1
    assert mean_distance(["RIVER", "STONE"], found) == 0


def test_one_box_does_not_serve_two_texts():
    assert exact_fraction(["AB", "AB"], stacked("AB")) == 0.5
    assert mean_distance(["AB", "AB"], stacked("AB")) == 0.5
    assert exact_fraction(["AB", "AB"], stacked("AB", "AB")) == 1


def test_a_text_cut_in_two_on_one_line_is_joined():
    cut = reading(("VER", 40, 3), ("RI", 0, 0))
    assert exact_fraction(["RIVER"], cut) == 1
    assert mean_distance(["RIVER"], cut) == 0
    assert strict_fraction(["RIVER"], cut) == 0  # the gap reads as a space
    assert strict_fraction(["RI VER"], cut) == 1
    assert exact_fraction(["RIVER"], reading(("RI", 0, 0), ("VER", 0, 40))) == 0


def test_a_joined_line_and_its_box_are_not_both_used():
    assert exact_fraction(["RIVER", "RI"], reading(("RI", 0, 0), ("VER", 40, 0))) == 0.5


def test_two_texts_beside_each_other_one_of_them_cut():
    found = reading(("STO", 0, 0), ("NE", 30, 0), ("RIVER", 90, 0))
    assert exact_fraction(["RIVER", "STONE"], found) == 1
    assert mean_distance(["RIVER", "STONE"], found) == 0


def test_lines_are_grouped_by_vertical_overlap_and_run_left_to_right():
    found = reading(("c", 90, 4), ("a", 0, 0), ("d", 0, 11), ("b", 40, 10))
    # 10 px of 20 overlap with box a's line, 9 px do not
    assert lines(found) == [[1, 3, 0], [2]]
    assert {c.text for c in candidates(found)} == {"a", "b", "c", "a b", "b c", "a b c", "d"}


def best_by_search(cost: np.ndarray, box_sets: list[frozenset[int]]) -> float:
    """Try every assignment of texts to candidates (or to none, at cost 1)."""
    best = float(cost.shape[0])
    for choice in itertools.product(range(-1, cost.shape[1]), repeat=cost.shape[0]):
        used = [box_sets[c] for c in choice if c >= 0]
        if sum(map(len, used)) == len(frozenset().union(*used)):
            best = min(best, sum(1.0 if c < 0 else cost[t, c] for t, c in enumerate(choice)))
    return best


def test_the_assignment_is_optimal_against_exhaustive_search():
    rng = np.random.default_rng(5)
    for _ in range(25):
        words = ["".join(rng.choice(list("abc"), rng.integers(1, 5))) for _ in range(4)]
        found = reading(*((w, 60.0 * int(rng.integers(3)), 9.0 * i) for i, w in enumerate(words)))
        expected = ["".join(rng.choice(list("abc"), rng.integers(1, 7))) for _ in range(3)]
        options = candidates(found)
        cost = np.array([[distance(e, normalize(c.text)) for c in options] for e in expected])
        by_search = best_by_search(cost, [c.boxes for c in options]) / 3
        assert mean_distance(expected, found) == pytest.approx(by_search, abs=1e-12)


def test_nothing_expected_is_the_callers_mistake():
    with pytest.raises(ValueError, match=r"expected must hold at least one text"):
        exact_fraction([], stacked("A"))
