import dataclasses

import numpy as np
import pytest

from dit8.models.poster_drawing import draw_poster
from dit8.models.posters import COLORS, SHAPES, Element, Poster, contrast, make_poster

CELL = 6.4


def pixels(poster):
    return np.asarray(draw_poster(poster)).astype(int)


def with_elements(*elements, color="navy", background="flat", seed=0):
    return Poster("easy", seed, background, color, tuple(elements))


def differs_from(color, array):
    return (np.abs(array - np.array(COLORS[color])) > 8).any(axis=-1)


def extent(mask):
    """First and last row and column, in cells."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [value / CELL for value in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)]


@pytest.mark.parametrize("tier", ["easy", "medium", "hard"])
def test_the_same_poster_is_the_same_picture(tier):
    poster = make_poster(tier, 3, held_out=True)
    image = draw_poster(poster)
    assert image.size == (256, 256) and image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(draw_poster(poster)))


def test_a_flat_background_is_its_colour():
    assert (pixels(with_elements(color="teal")) == COLORS["teal"]).all()


@pytest.mark.parametrize("background", ["gradient", "pattern", "texture"])
def test_the_seed_decides_what_the_caption_leaves_open(background):
    pictures = [pixels(with_elements(background=background, seed=seed)) for seed in range(12)]
    different = {picture.tobytes() for picture in pictures}
    assert len(different) >= 10  # a seed may draw the base colour twice over, which is flat
    assert np.array_equal(pictures[0], pixels(with_elements(background=background, seed=0)))
    assert max(picture.std(axis=(0, 1)).max() for picture in pictures) > 5


def test_the_seed_does_not_move_a_flat_poster():
    poster = make_poster("medium", 5, held_out=True)
    assert np.array_equal(pixels(poster), pixels(dataclasses.replace(poster, seed=6)))


@pytest.mark.parametrize("face", ["sans", "serif", "mono", "slanted", "roman"])
def test_capitals_have_their_height_and_stand_in_the_middle_of_the_box(face):
    box = (10, 4, 18, 36)
    text = Element("text", box, "white", text="HEH", face=face, cap_px=36.0)
    y0, x0, y1, x1 = extent(differs_from("navy", pixels(with_elements(text))))
    # a pixel of anti-aliasing at either edge; serifs and slant add to the width only
    assert (y1 - y0) * CELL == pytest.approx(36, abs=2)
    assert (y0 + y1) / 2 == pytest.approx((box[0] + box[2]) / 2, abs=0.3)
    assert (x0 + x1) / 2 == pytest.approx((box[1] + box[3]) / 2, abs=0.8)


def test_faces_look_different():
    pictures = {
        pixels(
            with_elements(
                Element("text", (10, 4, 18, 36), "white", text="RAGE", face=face, cap_px=30.0)
            )
        ).tobytes()
        for face in ("sans", "serif", "mono", "slanted", "roman")
    }
    assert len(pictures) == 5


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_box_and_no_more(shape):
    height = 3 if shape == "bar" else 12
    box = (20, 5, 20 + height, 17)
    mask = differs_from("navy", pixels(with_elements(Element("obj", box, "yellow", shape=shape))))
    assert extent(mask) == pytest.approx(box, abs=0.5)
    filled = mask.sum() / (height * 12 * CELL**2)
    expected = {"circle": 0.785, "square": 1.0, "triangle": 0.5, "ring": 0.436, "bar": 1.0}[shape]
    assert filled == pytest.approx(expected, abs=0.08)  # edges are anti-aliased


@pytest.mark.parametrize("seed", range(12))
def test_texts_stand_out_from_varied_backgrounds(seed):
    poster = make_poster("hard", seed, held_out=True)
    (text,) = [element for element in poster.elements if element.kind == "text"]
    behind = pixels(dataclasses.replace(poster, elements=(text,)))
    y0, x0, y1, x1 = (round(cell * CELL) for cell in text.box)
    ring = np.concatenate([behind[y0, x0:x1], behind[y1 - 1, x0:x1]])  # above and below the letters
    ratios = [contrast(tuple(color), COLORS[text.color]) for color in ring[::4]]
    assert min(ratios) > 2.9  # 3 at either end of the background, less a rounding to 8 bits
