"""Measure the structural similarity of a picture and its reference.

SSIM of Wang, Bovik, Sheikh and Simoncelli 2004 as scikit-image computes it with that paper's
settings: Gaussian window of sigma 1.5, population covariance, data range 255; the mean over
the three channels, computed in fp64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit8.eval.images import load_pair
from dit8.eval.provenance import installed_versions
from dit8.eval.run import pair_samples
from dit8.models.types import Sample
from dit8.quant.errors import UserError

WINDOW_PX = 11  # sigma 1.5 truncated at 3.5 sigma; a smaller picture has no window
SETTINGS = {
    "data_range": 255,
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
}


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the SSIM in [-1, 1] of two (H, W, 3) uint8 arrays, H and W at least 11."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(image, reference, channel_axis=-1, **SETTINGS))


@dataclass(frozen=True)
class Ssim:
    """Score pictures by SSIM against the reference variant."""

    name: str = "ssim"
    higher_is_better: bool = True
    unit: str = "1"
    bounds: tuple[float, float] = (-1.0, 1.0)
    preprocessing: str = "none: 8-bit RGB, both pictures of one size"
    needs_reference: bool = True

    def obstacle(self) -> str | None:
        """Return None: everything needed belongs to the core."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return the paper's settings and the version that computes with them."""
        return {"settings": dict(SETTINGS), "environment": installed_versions(("scikit-image",))}

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,); UserError for a missing partner, another or too small a size."""
        values = []
        for sample, partner in pair_samples(samples, references, self.name):
            image, reference = load_pair(sample.image_path, partner.image_path)
            if min(image.shape[:2]) < WINDOW_PX:
                raise UserError(
                    f"ssim: image {sample.image_path} is {image.shape[1]}x{image.shape[0]} px,"
                    f" expected at least {WINDOW_PX}x{WINDOW_PX} px"
                )
            values.append(ssim(image, reference))
        return np.array(values, dtype=np.float64)


SCORERS = (Ssim(),)
