import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dit8.eval.scorers import get_scorer
from dit8.eval.scorers.ssim import ssim
from dit8.quant.errors import UserError


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Compute equation 13 of Wang et al. 2004, the mean over windows and channels."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def smooth(channel: np.ndarray) -> np.ndarray:
        return gaussian_filter(channel, 1.5, truncate=3.5)

    maps = []
    for a, b in zip(np.moveaxis(x, -1, 0) * 1.0, np.moveaxis(y, -1, 0) * 1.0, strict=True):
        mean_a, mean_b = smooth(a), smooth(b)
        var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
        covariance = smooth(a * b) - mean_a * mean_b
        top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        maps.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(np.stack(maps)[:, 5:-5, 5:-5]))  # windows that lie inside


def test_ssim_is_the_papers():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    y = np.clip(x + rng.normal(0, 30, x.shape), 0, 255).astype(np.uint8)
    # same formula, same fp64 filter; the sums differ in order only
    assert ssim(x, y) == pytest.approx(ssim_by_hand(x, y), abs=1e-10)
    assert ssim(x, y) < 0.99
    assert ssim(x, x) == 1.0


def test_a_picture_without_a_whole_window_is_named(make_sample):
    tiny = np.zeros((10, 32, 3), dtype=np.uint8)
    sample, reference = make_sample(tiny, "p"), make_sample(tiny, "p", folder="reference")
    with pytest.raises(UserError, match=r"p_0.png is 32x10 px, expected at least 11x11 px"):
        get_scorer("ssim").score([sample], [reference])
