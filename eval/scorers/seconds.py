"""Report the wall-clock seconds a picture took, as recorded when it was generated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit8.models.types import Sample


@dataclass(frozen=True)
class Seconds:
    """Score pictures by their generation time; compares nothing measured on other hardware."""

    name: str = "seconds"
    higher_is_better: bool = False
    unit: str = "s"
    bounds: tuple[float, float] = (0.0, math.inf)
    preprocessing: str = "none: as recorded when the picture was drawn, its share of the batch"
    needs_reference: bool = False

    def obstacle(self) -> str | None:
        """Return None: the time is in the picture's metadata."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return nothing: hardware and versions are in the run's own record."""
        return {}

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,) in seconds; `references` is not used."""
        return np.array([sample.seconds for sample in samples], dtype=np.float64)


SCORERS = (Seconds(),)
