"""Judge the text in a picture: how much of what the caption asks for can be read.

Reading is defined in `eval.reading` (PP-OCRv6 small through rapidocr, weights in its wheel,
Apache-2.0), comparison in `eval.matching`. The three scorers share one reading per picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.matching import exact_fraction, mean_distance, strict_fraction
from eval.reading import Reading, read_files
from eval.records import Sample
from quant.errors import UserError


@dataclass(frozen=True)
class OcrScorer:
    """Score pictures by the texts read in them.

    Args:
        compare: (expected texts, reading) -> value of one picture.
        workers: processes that read; 1 reads in this one.
        threads: intra-op threads per process.
    """

    name: str
    higher_is_better: bool
    unit: str
    compare: Callable[[Sequence[str], Reading], float]
    workers: int = 1
    threads: int = 1
    needs_reference: bool = False

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
                    f"{self.name}: prompt {sample.prompt_id} expects no text, so nothing can be"
                    " read; leave this scorer out or give the prompt its texts"
                )
        readings = read_files([s.image_path for s in samples], self.workers, self.threads)
        pairs = zip(samples, readings, strict=True)
        return np.array([self.compare(s.texts, r) for s, r in pairs], dtype=np.float64)


SCORERS = (
    OcrScorer("ocr_exact", True, "fraction of texts", exact_fraction),
    OcrScorer("ocr_ned", False, "edit distance / longer length", mean_distance),
    OcrScorer("ocr_strict", True, "fraction of texts", strict_fraction),
)
