import numpy as np
import pytest

from dit8.eval.strip import COLUMN_PX, FRAME, GAP_PX, HEAD_PX, NOTE_PX, Column, Part, draw_strip

SIDE = 32
PART = Part(8, 16, 16, 8)


def shade(value):
    return np.full((SIDE, SIDE, 3), value, dtype=np.uint8)


def columns():
    return [Column("a", "1 s", (shade(40), shade(90))), Column("b", "2 s", (shade(60), shade(120)))]


def test_columns_hold_their_posters_and_the_part_of_the_last():
    sheet = np.asarray(draw_strip(columns(), PART, ["one line"]))
    step = COLUMN_PX + GAP_PX
    part_px = COLUMN_PX * PART.height // PART.width
    below = HEAD_PX + 2 * step + part_px
    assert sheet.shape == (below + GAP_PX + NOTE_PX, 2 * step + GAP_PX, 3)
    for index, (first, last) in enumerate([(40, 90), (60, 120)]):
        x = GAP_PX + index * step
        assert (sheet[HEAD_PX : HEAD_PX + COLUMN_PX, x : x + COLUMN_PX] == first).all()
        top = HEAD_PX + step
        assert (sheet[top + 2, x + 2] == last).all()
        frame = sheet[top + COLUMN_PX // 2, x + COLUMN_PX // 4]  # the part's corner, scaled
        assert "#{:02x}{:02x}{:02x}".format(*frame) == FRAME
        assert (sheet[top + step + part_px // 2, x + COLUMN_PX // 2] == last).all()
        assert sheet[: HEAD_PX - 4, x : x + COLUMN_PX].min() < 100  # the head is written
    assert sheet[below + GAP_PX :].min() < 150  # the line as well


def test_the_part_is_cut_from_the_pixels_of_the_run():
    poster = shade(0)
    poster[PART.top : PART.top + PART.height, PART.left : PART.left + PART.width] = 200
    sheet = np.asarray(draw_strip([Column("a", "", (poster,))], PART, []))
    cut = sheet[HEAD_PX + COLUMN_PX + GAP_PX :][:, GAP_PX:-GAP_PX]
    inside = cut[4 : COLUMN_PX * PART.height // PART.width - 4, 4:-4]
    assert (inside == 200).all()


@pytest.mark.parametrize("part", [Part(-1, 0, 4, 4), Part(20, 0, 16, 4), Part(0, 0, 0, 4)])
def test_a_part_outside_is_refused(part):
    with pytest.raises(ValueError, match="the part must lie within 32x32 px"):
        draw_strip(columns(), part, [])


def test_posters_of_several_shapes_are_refused():
    odd = [columns()[0], Column("b", "", (shade(1)[:16], shade(1)))]
    with pytest.raises(ValueError, match="one shape"):
        draw_strip(odd, PART, [])
