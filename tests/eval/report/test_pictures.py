import base64
import io

import numpy as np
import pytest
from PIL import Image

from dit8.eval.report import pictures
from dit8.eval.report.pictures import GAIN, Shot, difference_map, make_thumbnails
from dit8.quant.errors import UserError


@pytest.fixture
def save(tmp_path):
    def save(name, pixels):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        return path

    return save


def noise(seed, height=400, width=300):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decode(uri):
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_the_map_amplifies_the_largest_channel_and_saturates():
    reference = np.full((2, 2, 3), 100, dtype=np.uint8)
    image = reference.copy()
    image[0, 0] = (101, 97, 100)  # by 3 at most, downwards: no wrap below zero
    image[1, 1] = (255, 100, 100)
    expected = np.array([[3 * GAIN, 0], [0, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(difference_map(image, reference), expected)
    np.testing.assert_array_equal(difference_map(reference, image), expected)


def test_pictures_that_fit_keep_the_largest_side(save):
    flat = save("flat", np.full((400, 300, 3), 90, dtype=np.uint8))
    small = save("small", np.full((40, 80, 3), 90, dtype=np.uint8))
    made = make_thumbnails([Shot(flat, None), Shot(small, None)], 1e6)
    assert made.side_px == 320
    assert decode(made.shots[0].image).size == (240, 320)
    assert decode(made.shots[1].image).size == (80, 40)  # never enlarged
    assert (made.shots[0].width_px, made.shots[0].height_px) == (300, 400)
    assert made.shots[0].difference is None
    assert made.total_bytes == sum(len(shot.image) for shot in made.shots)


def test_all_pictures_shrink_together_to_the_first_side_that_fits(save):
    shots = [Shot(save(f"v{i}", noise(i)), save(f"r{i}", noise(9 + i))) for i in range(2)]
    by_side = {}
    for side in pictures.SIDES_PX:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(pictures, "SIDES_PX", (side,))
            by_side[side] = make_thumbnails(shots, 1e9).total_bytes
    for side, total in by_side.items():
        made = make_thumbnails(shots, total)
        assert (made.side_px, made.total_bytes) == (side, total)
        assert max(decode(made.shots[1].image).size) == side
        assert max(decode(made.shots[1].difference).size) == side
    with pytest.raises(UserError, match="2 pictures take more than 0.001 MB even at 96 px; allow"):
        make_thumbnails(shots, 1000)


def test_a_hopeless_side_costs_a_sample_only(save, monkeypatch):
    shots = [Shot(save(f"v{i}", noise(i, 64, 64)), None) for i in range(40)]
    genuine, made = pictures._thumbnail, []
    monkeypatch.setattr(pictures, "_thumbnail", lambda *a: made.append(a) or genuine(*a))
    monkeypatch.setattr(pictures, "SIDES_PX", (64, 48, 16))
    total = sum(len(genuine(shot, 16).image) for shot in shots)
    assert make_thumbnails(shots, total).side_px == 16
    # every third picture of 40 as a sample at each side, and all of them at the last
    assert len(made) == 3 * 14 + 40


def test_the_map_is_black_where_nothing_changed_and_bright_where_much_did(save):
    reference = np.full((64, 64, 3), 100, dtype=np.uint8)
    image = reference.copy()
    image[:, 32:] += 60
    (made,) = make_thumbnails([Shot(save("a", image), save("b", reference))], 1e6).shots
    shown = np.asarray(decode(made.difference).convert("L"), dtype=int)
    # magma runs from black to a light yellow; WebP at quality 60 blurs the edge by a few pixels
    assert shown[:, :24].max() < 20 and shown[:, 40:].min() > 200


def test_equal_pictures_give_equal_bytes(save):
    shots = [Shot(save("a", noise(1)), save("b", noise(2)))]
    assert make_thumbnails(shots, 1e9) == make_thumbnails(shots, 1e9)


def test_a_damaged_picture_or_another_size_is_named(save):
    good, other = save("good", noise(1, 32, 32)), save("other", noise(1, 32, 48))
    with pytest.raises(UserError, match="good.png is 32x32 px, expected the size of .*48x32 px"):
        make_thumbnails([Shot(good, other)], 1e9)
    good.write_bytes(good.read_bytes()[:300])
    with pytest.raises(UserError, match=r"good.png: cannot be read .*; delete it and generate"):
        make_thumbnails([Shot(good, None)], 1e9)
