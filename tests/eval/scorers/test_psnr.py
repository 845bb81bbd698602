import numpy as np
import pytest

from dit8.eval.scorers import get_scorer
from dit8.eval.scorers.psnr import CAP_DB, psnr
from dit8.quant.errors import UserError


def noise(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_psnr_equals_the_definition():
    image, reference = noise(0), noise(1)
    # two fp64 computations of one formula: a few units in the last place
    error = np.mean((image.astype(np.int64) - reference.astype(np.int64)) ** 2)
    expected = 10 * np.log10(255**2 / error)
    assert psnr(image, reference) == pytest.approx(expected, rel=1e-12)
    flat = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert psnr(flat, flat + 10) == pytest.approx(20 * np.log10(25.5), rel=1e-12)
    assert psnr(flat + 10, flat) == psnr(flat, flat + 10)  # no wrap-around of uint8


@pytest.mark.filterwarnings("error")  # a division by zero would be said on stderr
def test_identical_pictures_are_capped_and_near_ones_do_not_exceed_the_cap():
    assert psnr(noise(0), noise(0)) == CAP_DB == 100.0
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    other = image.copy()
    other[0, 0, 0] = 1
    assert psnr(image, other) == 100.0
    other[0, 0] = 2
    assert psnr(image, other) < 100.0


def test_a_picture_of_another_size_is_named(make_sample):
    sample = make_sample(noise(0, 32), "p")
    reference = make_sample(noise(0, 48), "p", folder="reference")
    with pytest.raises(UserError, match=r"variant/p_0.png is 32x32 px, .*48x48 px"):
        get_scorer("psnr").score([sample], [reference])


def test_a_truncated_picture_is_named(make_sample):
    sample, reference = make_sample(noise(0), "p"), make_sample(noise(0), "p", folder="reference")
    data = reference.image_path.read_bytes()
    reference.image_path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"reference/p_0.png: cannot be read"):
        get_scorer("psnr").score([sample], [reference])
