import numpy as np
import pytest
from PIL import Image

from dit8.eval.images import load_pair, load_rgb
from dit8.quant.errors import UserError


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pixels_survive_the_file(tmp_path):
    pixels = noise(5, 7)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(load_rgb(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("share", [0.002, 0.02, 0.5, 0.999])
def test_a_truncated_png_is_named(tmp_path, share):
    path = tmp_path / "cut.png"
    Image.fromarray(noise(64, 64)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"image .*cut.png: .*; delete it and generate again"):
        load_rgb(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "rotten.png"
    Image.fromarray(noise(64, 64)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"rotten.png: cannot be read"):
        load_rgb(path)


def test_other_files_and_modes_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text.png: not an image file"):
        load_rgb(tmp_path / "text.png")
    with pytest.raises(UserError, match=r"none.png: cannot be read"):
        load_rgb(tmp_path / "none.png")
    Image.new("RGBA", (4, 4)).save(tmp_path / "alpha.png")
    with pytest.raises(UserError, match=r"alpha.png: mode is RGBA, expected RGB"):
        load_rgb(tmp_path / "alpha.png")


def test_a_pair_must_have_one_size(tmp_path):
    Image.fromarray(noise(8, 16)).save(tmp_path / "a.png")
    Image.fromarray(noise(8, 17)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"a.png is 16x8 px, .*b.png, 17x8 px; generate both"):
        load_pair(tmp_path / "a.png", tmp_path / "b.png")
