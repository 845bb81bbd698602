import dataclasses
import json

import pytest

from dit8.models.mini_tokenizer import build_tokenizer
from dit8.models.pipeline import encode_chat
from dit8.models.poster_type import CAP_HEIGHTS, FACES, text_width_px
from dit8.models.poster_words import is_held_out
from dit8.models.posters import (
    COLORS,
    GRID,
    HARD_BACKGROUNDS,
    IMAGE_PX,
    SHAPES,
    TIERS,
    caption,
    caption_json,
    contrast,
    make_poster,
)

SEEDS = range(300)


@pytest.fixture(scope="module", params=TIERS)
def tier(request):
    return request.param


@pytest.fixture(scope="module")
def posters(tier):
    return [make_poster(tier, seed, held_out=True) for seed in SEEDS]


def texts_of(poster):
    return [element for element in poster.elements if element.kind == "text"]


def test_a_poster_is_decided_by_tier_seed_and_side(tier, posters):
    assert [make_poster(tier, seed, held_out=True) for seed in range(20)] == posters[:20]
    assert len(set(posters)) == len(posters)
    training = make_poster(tier, 0, held_out=False)
    assert training != posters[0] and not any(map(is_held_out, training.texts))
    assert all(is_held_out(word) for poster in posters for word in poster.texts)


def test_boxes_stand_on_the_grid_and_apart(posters):
    for poster in posters:
        boxes = [element.box for element in poster.elements]
        for y0, x0, y1, x1 in boxes:
            assert 0 <= y0 < y1 <= GRID and 0 <= x0 < x1 <= GRID
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
                assert apart >= 1  # a cell of background between any two


def test_a_text_fits_its_box(tier, posters):
    low, high = CAP_HEIGHTS[tier]
    cell = IMAGE_PX / GRID
    for poster in posters:
        for element in texts_of(poster):
            y0, x0, y1, x1 = element.box
            assert low <= element.cap_px <= high
            assert element.cap_px < (y1 - y0) * cell
            assert text_width_px(element.text, element.face, element.cap_px) < (x1 - x0) * cell


def test_the_tier_decides_texts_and_background(tier, posters):
    longest = {"medium": 8, "hard": 10}.get(tier, 6)
    for poster in posters:
        assert len(poster.texts) == (2 if tier == "medium" else 1)
        assert all(3 <= len(word) <= longest for word in poster.texts)
        assert (poster.background in HARD_BACKGROUNDS) == (tier == "hard")
    lengths = {len(word) for poster in posters for word in poster.texts}
    assert lengths == set(range(3, longest + 1))
    with_digits = any(c.isdigit() for poster in posters for word in poster.texts for c in word)
    assert with_digits == (tier in ("medium", "hard"))
    assert {p.background for p in posters} == (
        set(HARD_BACKGROUNDS) if tier == "hard" else {"flat"}
    )
    assert {element.face for p in posters for element in texts_of(p)} == set(FACES)
    assert {p.color for p in posters} == set(COLORS)


def test_shapes_stand_before_and_after_texts_but_not_in_the_slot(tier, posters):
    kinds = {"".join(element.kind[0] for element in poster.elements) for poster in posters}
    shapes = {e.shape for p in posters for e in p.elements if e.kind == "obj"}
    if tier == "slot":
        assert kinds == {"t"}
    else:
        assert shapes == set(SHAPES)
        assert any(kind[0] == "o" for kind in kinds) and any(kind[-1] == "o" for kind in kinds)


def test_the_slot_is_the_centre():
    for seed in SEEDS:
        y0, x0, y1, x1 = make_poster("slot", seed, held_out=True).elements[0].box
        assert abs(y0 - (GRID - y1)) <= 1 and abs(x0 - (GRID - x1)) <= 1


def test_ink_stands_out(tier, posters):
    ratios = [
        contrast(COLORS[element.color], COLORS[poster.color])
        for poster in posters
        for element in texts_of(poster)
    ]
    # WCAG asks for 3 with large text; the few colours without such an ink get the best there is
    assert min(ratios) >= 3.0


def test_contrast_is_that_of_wcag():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((80, 80, 80), (80, 80, 80)) == 1
    assert contrast((255, 255, 255), (119, 119, 119)) == pytest.approx(4.478, abs=1e-3)


def test_captions_keep_the_keys_of_the_schema_in_order(tier, posters):
    described = 0
    for poster in posters:
        written = caption(poster)
        keys = list(written)
        described += keys == ["high_level_description", "compositional_deconstruction"]
        assert keys[-1] == "compositional_deconstruction" and len(keys) <= 2
        content = written["compositional_deconstruction"]
        assert list(content) == ["background", "elements"]
        assert poster.color in content["background"].split()
        for entry, element in zip(content["elements"], poster.elements, strict=True):
            text = ["text"] if element.kind == "text" else []
            assert list(entry) == ["type", "bbox", *text, "desc"]
            assert entry["bbox"] == [25 * cell for cell in element.box]
            assert all(0 <= value <= 1000 and value % 25 == 0 for value in entry["bbox"])
        assert [e["text"] for e in content["elements"] if "text" in e] == list(poster.texts)
    # half of the medium and hard ones have a description: 5 standard deviations of 300
    assert abs(described - (150 if tier in ("medium", "hard") else 0)) <= 45


def test_descriptions_count_what_is_there():
    poster = next(
        p
        for p in (make_poster("medium", seed, held_out=True) for seed in SEEDS)
        if p.description and len(p.elements) == 3
    )
    assert poster.description == f"A {poster.color} poster with two words and one shape."


def test_a_hard_caption_leaves_the_rest_to_the_noise():
    poster = make_poster("hard", 1, held_out=True)
    other = dataclasses.replace(poster, seed=2)
    assert caption(other) == caption(poster)
    background = caption(poster)["compositional_deconstruction"]["background"]
    assert background == f"{poster.color} {poster.background}"


def test_captions_are_minified_and_within_80_tokens(posters):
    tokenizer = build_tokenizer()
    lengths = []
    for poster in posters:
        text = caption_json(poster)
        assert json.loads(text) == caption(poster)
        assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        lengths.append(len(encode_chat(tokenizer, text)))
    assert max(lengths) <= 80


def test_an_unknown_tier_is_refused():
    with pytest.raises(ValueError, match="tier must be one of slot, easy, medium, hard, got 'huge"):
        make_poster("huge", 0, held_out=True)
