"""Measure the peak signal-to-noise ratio of a picture against its reference.

PSNR = 10 log10(255^2 / MSE) dB over all pixels and channels, in fp64, by scikit-image, capped at
100 dB so that identical pictures (infinite) have a mean. At 256 x 256 px the cap also covers a
pair that differs by one code in one value (101.1 dB).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit8.eval.images import load_pair
from dit8.eval.provenance import installed_versions
from dit8.eval.run import pair_samples
from dit8.models.types import Sample

CAP_DB = 100.0


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the PSNR in dB of two uint8 arrays of one shape, at most 100."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(image, reference):  # scikit-image would divide by zero
        return CAP_DB
    return min(CAP_DB, float(peak_signal_noise_ratio(reference, image, data_range=255)))


@dataclass(frozen=True)
class Psnr:
    """Score pictures by PSNR against the reference variant."""

    name: str = "psnr"
    higher_is_better: bool = True
    unit: str = "dB"
    bounds: tuple[float, float] = (0.0, CAP_DB)
    preprocessing: str = "none: 8-bit RGB, both pictures of one size"
    needs_reference: bool = True

    def obstacle(self) -> str | None:
        """Return None: everything needed belongs to the core."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return the data range, the cap and the version that computes it."""
        return {
            "data_range": 255,
            "cap_db": CAP_DB,
            "environment": installed_versions(("scikit-image",)),
        }

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,) in dB; UserError for a missing partner or another size."""
        pairs = pair_samples(samples, references, self.name)
        values = [psnr(*load_pair(s.image_path, r.image_path)) for s, r in pairs]
        return np.array(values, dtype=np.float64)


SCORERS = (Psnr(),)
