"""Report the wall-clock seconds a picture took, as recorded when it was generated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.records import Sample


@dataclass(frozen=True)
class Seconds:
    """Score pictures by their generation time; compares nothing measured on other hardware."""

    name: str = "seconds"
    higher_is_better: bool = False
    unit: str = "s"
    needs_reference: bool = False

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,) in seconds; `references` is not used."""
        return np.array([sample.seconds for sample in samples], dtype=np.float64)


SCORERS = (Seconds(),)
