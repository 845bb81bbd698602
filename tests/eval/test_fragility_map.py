import matplotlib
import numpy as np
import pytest
from PIL import Image

from dit8.eval.fragility import as_frame, make_rows
from dit8.eval.fragility_map import draw_map


def frame_of(damage):
    rows = []
    for branch in ("conditional", "unconditional"):
        for name, values in damage.items():
            rows += make_rows("m", branch, name, "w2", {"damage_velocity": values, "crest": 3.0})
    return as_frame(rows)


@pytest.fixture
def frame():
    return frame_of({"layers.2.w2": [1e-4, 1e-2], "layers.10.w2": [1e-3, 0.0]})


def test_svg_names_every_linear_and_branch_and_repeats_bit_for_bit(frame, tmp_path):
    for name in "ab":
        draw_map(frame, tmp_path / name, "a title")
    text = (tmp_path / "a").read_text()
    assert (tmp_path / "b").read_text() == text
    for word in ("layers.2.w2", "layers.10.w2", "conditional", "unconditional", "a title"):
        assert f">{word}<" in text
    assert "dc:date" not in text
    assert matplotlib.rcParams["svg.hashsalt"] is None  # left as it was


def test_colour_grows_with_the_logarithm_and_zero_stays_blank(tmp_path, monkeypatch):
    drawn = []
    original = matplotlib.axes.Axes.imshow

    def imshow(self, values, **options):
        drawn.append((values.to_numpy(), options["norm"]))
        return original(self, values, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", imshow)
    frame = frame_of({"layers.2.w2": [1e-4, 1e-2], "layers.10.w2": [1e-3, 0.0]})
    draw_map(frame, tmp_path / "map.svg", "t")
    assert len(drawn) == 2  # a panel a branch
    for values, norm in drawn:
        expected = np.array([[0.0, 1.0], [0.5, np.nan]])  # layer 2 above layer 10
        np.testing.assert_allclose(np.ma.filled(norm(values), np.nan), expected, atol=1e-12)


def test_png(frame, tmp_path):
    draw_map(frame, tmp_path / "map", "t", kind="png")
    with Image.open(tmp_path / "map") as image:
        assert image.format == "PNG" and image.width > 500


def test_refuses_rows_without_damage(tmp_path):
    with pytest.raises(ValueError, match="damage_velocity above zero, got none"):
        draw_map(frame_of({"a": [0.0]}), tmp_path / "m.svg", "t")
    assert not (tmp_path / "m.svg").exists()
