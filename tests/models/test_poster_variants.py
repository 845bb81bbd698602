import random
from dataclasses import replace

import numpy as np
import pytest

from dit8.models.poster_drawing import draw_poster
from dit8.models.poster_type import text_width_px
from dit8.models.poster_variants import (
    LEAST_CONTRAST,
    LEAST_MOVE,
    PERTURBATIONS,
    moved,
    other_color,
    other_letter,
    other_word,
    perturbed_picture,
)
from dit8.models.poster_words import is_held_out
from dit8.models.posters import COLORS, GRID, IMAGE_PX, caption, contrast, make_poster

TIERS = ("easy", "medium", "hard")
POSTERS = [make_poster(TIERS[seed % 3], seed, held_out=True) for seed in range(60)]


def change(before, after):
    """Return the one pair of elements in which two posters differ."""
    assert replace(after, elements=before.elements) == before
    pairs = zip(before.elements, after.elements, strict=True)
    (pair,) = [(a, b) for a, b in pairs if a != b]
    return pair


@pytest.mark.parametrize("held_out", [True, False])
def test_another_word_has_the_length_and_the_side_of_the_split(held_out):
    for poster in POSTERS:
        old, new = change(poster, other_word(poster, random.Random(1), held_out=held_out))
        assert len(new.text) == len(old.text) and new.text != old.text
        assert is_held_out(new.text) == held_out
        assert replace(new, text=old.text, cap_px=old.cap_px) == old


@pytest.mark.parametrize("held_out", [True, False])
def test_another_letter_is_one_letter(held_out):
    for poster in POSTERS:
        old, new = change(poster, other_letter(poster, random.Random(1), held_out=held_out))
        assert sum(a != b for a, b in zip(old.text, new.text, strict=True)) == 1
        assert is_held_out(new.text) == held_out
        assert poster.tier != "easy" or new.text.isalpha()


def test_a_wider_text_still_fits_its_box():
    narrower = 0
    for poster in POSTERS:
        for seed in range(5):
            old, new = change(poster, other_word(poster, random.Random(seed), held_out=True))
            box_px = (new.box[3] - new.box[1]) * IMAGE_PX / GRID
            assert text_width_px(new.text, new.face, new.cap_px) <= box_px
            assert new.cap_px <= old.cap_px
            narrower += new.cap_px < old.cap_px
    assert 0 < narrower < 300  # both happen


def test_another_color_can_be_seen():
    best = 0
    for poster in POSTERS:
        old, new = change(poster, other_color(poster, random.Random(1)))
        assert new.color not in (old.color, poster.color) and replace(new, color=old.color) == old
        ratio = contrast(COLORS[new.color], COLORS[poster.color])
        others = [c for c in COLORS if c not in (old.color, poster.color)]
        highest = max(contrast(COLORS[c], COLORS[poster.color]) for c in others)
        assert ratio >= LEAST_CONTRAST or ratio == highest
        best += ratio < LEAST_CONTRAST
    assert best < len(POSTERS) / 4  # seldom no colour is clear


def test_what_moves_goes_far_and_covers_nothing():
    count = 0
    for poster in POSTERS:
        after = moved(poster, random.Random(1))
        if after is None:
            continue
        count += 1
        old, new = change(poster, after)
        assert replace(new, box=old.box) == old
        distance = max(abs(new.box[0] - old.box[0]), abs(new.box[1] - old.box[1]))
        assert distance >= LEAST_MOVE
        cells = np.zeros((GRID, GRID), dtype=int)
        for y0, x0, y1, x1 in (element.box for element in after.elements):
            assert 0 <= y0 < y1 <= GRID and 0 <= x0 < x1 <= GRID
            cells[y0:y1, x0:x1] += 1
        assert cells.max() == 1
    assert count > 0.9 * len(POSTERS)  # in a few there is no place, or it was not met


def test_nothing_moves_where_there_is_no_place():
    poster = POSTERS[0]
    whole = replace(poster.elements[0], box=(0, 0, GRID, GRID))
    assert moved(replace(poster, elements=(whole,)), random.Random(0)) is None
    assert perturbed_picture(replace(poster, elements=(whole,)), "moved", random.Random(0)) is None


def test_captions_differ_but_for_the_blurred_one():
    for poster in POSTERS[:12]:
        variants = [
            other_word(poster, random.Random(0), held_out=True),
            other_letter(poster, random.Random(0), held_out=True),
            other_color(poster, random.Random(0)),
            moved(poster, random.Random(0)),
        ]
        assert all(caption(variant) != caption(poster) for variant in variants)


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_a_perturbed_picture_is_another_and_always_the_same(kind):
    for poster in POSTERS[:6]:
        right = np.asarray(draw_poster(poster)).astype(int)
        wrong = perturbed_picture(poster, kind, random.Random(4))
        assert wrong.size == (IMAGE_PX, IMAGE_PX) and wrong.mode == "RGB"
        assert np.abs(np.asarray(wrong) - right).max() > 40
        assert wrong.tobytes() == perturbed_picture(poster, kind, random.Random(4)).tobytes()
