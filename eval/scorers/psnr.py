"""Measure the peak signal-to-noise ratio of a picture against its reference.

PSNR = 10 log10(255^2 / MSE) dB over all pixels and channels, in fp64, capped at 100 dB so
that identical pictures (infinite) have a mean. At 256 x 256 px the cap also covers a pair that
differs by one code in one value (101.1 dB).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.images import load_pair
from eval.pairing import pair_samples
from eval.records import Sample

CAP_DB = 100.0


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the PSNR in dB of two uint8 arrays of one shape, at most 100."""
    difference = image.astype(np.float64) - reference.astype(np.float64)
    mean_square = float(np.mean(difference**2))
    if mean_square == 0.0:
        return CAP_DB
    return min(CAP_DB, float(10.0 * np.log10(255.0**2 / mean_square)))


@dataclass(frozen=True)
class Psnr:
    """Score pictures by PSNR against the reference variant."""

    name: str = "psnr"
    higher_is_better: bool = True
    unit: str = "dB"
    needs_reference: bool = True

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,) in dB; UserError for a missing partner or another size."""
        pairs = pair_samples(samples, references, self.name)
        values = [psnr(*load_pair(s.image_path, r.image_path)) for s, r in pairs]
        return np.array(values, dtype=np.float64)


SCORERS = (Psnr(),)
