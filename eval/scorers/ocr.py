"""Judge the text in a picture: how much of what the caption asks for can be read.

Reading is defined in `eval.reading` (PP-OCRv6 small through rapidocr, weights in its wheel,
Apache-2.0), comparison in `eval.matching`. Three measures: texts read exactly once both sides are
normalized, their normalized edit distance, and texts read exactly as they stand. They share one
reading per picture. The scorers that end in `_paddle` read the same weights through PaddleOCR, a
second opinion that has names, and so rows, of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit8.eval.matching import exact_fraction, mean_distance, strict_fraction
from dit8.eval.reading import DEFAULT, PAD_PX, Reading, obstacle, read_files, reader_identity
from dit8.models.types import Sample
from dit8.quant.errors import UserError


@dataclass(frozen=True)
class OcrScorer:
    """Score pictures by the texts read in them.

    Args:
        compare: (expected texts, reading) -> value of one picture.
        reader: a key of eval.reading.READERS.
        workers: processes that read; 1 reads in this one.
        threads: intra-op threads per process.
    """

    name: str
    higher_is_better: bool
    unit: str
    compare: Callable[[Sequence[str], Reading], float]
    reader: str = DEFAULT
    workers: int = 1
    threads: int = 1
    bounds: tuple[float, float] = (0.0, 1.0)
    preprocessing: str = f"padded by {PAD_PX} px of the median colour; long side at most 512 px"
    needs_reference: bool = False

    def obstacle(self) -> str | None:
        """Return which package or model file is missing, or None."""
        reason = obstacle(self.reader)
        return None if reason is None else f"not measured: {reason}"

    def identity(self) -> dict[str, Any]:
        """Return engine, model files and settings."""
        return reader_identity(self.reader)

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,); `references` is not used.

        Raises:
            UserError: a sample expects no text, or its picture cannot be read.
        """
        for sample in samples:
            if not sample.texts:
                raise UserError(
                    f"{self.name}: prompt {sample.prompt.id} expects no text, so nothing can be"
                    " read; leave this scorer out or give the prompt its texts"
                )
        paths = [sample.image_path for sample in samples]
        readings = read_files(paths, self.workers, self.threads, self.reader)
        pairs = zip(samples, readings, strict=True)
        return np.array([self.compare(s.texts, r) for s, r in pairs], dtype=np.float64)


MEASURES = (
    ("ocr_exact", True, "fraction of texts", exact_fraction),
    ("ocr_ned", False, "edit distance / longer length", mean_distance),
    ("ocr_strict", True, "fraction of texts", strict_fraction),
)
SCORERS = tuple(
    OcrScorer(f"{name}{ending}", higher_is_better, unit, compare, reader)
    for ending, reader in (("", DEFAULT), ("_paddle", "paddleocr"))
    for name, higher_is_better, unit, compare in MEASURES
)
