import pytest

from dit8.models.poster_type import CAP_HEIGHTS, FACES, face_at_cap, load_face, text_width_px


def test_there_are_at_least_four_faces_and_a_serif():
    assert len(FACES) >= 4 and "serif" in FACES
    names = {load_face(face, 20).getname() for face in FACES}
    assert len(names) == len(FACES)
    assert any("Serif" in family for family, _ in names)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("cap_px", [18.0, 31.3, 64.0])
def test_a_face_at_a_cap_height_has_it(face, cap_px):
    _, top, _, bottom = face_at_cap(face, cap_px).getbbox("H")
    assert bottom - top == pytest.approx(cap_px, abs=1.01)  # boxes are whole pixels


@pytest.mark.parametrize("face", FACES)
def test_widths_grow_with_size_and_text(face):
    width = text_width_px("RUBE", face, 30.0)
    assert text_width_px("RUBE", face, 60.0) == pytest.approx(2 * width)
    assert text_width_px("RUBEN", face, 30.0) > width
    # hinting rounds advances at drawing size; a pixel a letter is what the boxes leave free
    assert face_at_cap(face, 30.0).getlength("RUBE") == pytest.approx(width, abs=4)


def test_the_smallest_capitals_are_18_px():
    assert min(low for low, _ in CAP_HEIGHTS.values()) == CAP_HEIGHTS["hard"][0] == 18.0
    assert all(low < high for low, high in CAP_HEIGHTS.values())
