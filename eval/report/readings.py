"""Read the texts in every picture of a run, once: the readings are kept beside the pictures.

<run folder>/readings.json, by the picture's SHA-256 and under the reader's identity, so that a
picture drawn again or another reader is read again. OCR scores keep numbers alone; a reader of the
report wants to see which letters went wrong.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dit8.eval.matching import exact_fraction, lines, normalize
from dit8.eval.reading import Box, Reading, read_files, reader_identity
from dit8.eval.run import Run
from dit8.models.types import SampleKey
from dit8.quant.files import content_key, file_sha256, write_atomically

CACHE = "readings.json"


@dataclass(frozen=True)
class ReadTexts:
    """Hold what was read in one picture.

    Args:
        lines: in reading order.
        found: per expected text, whether it was read exactly up to case, width and white space.
            Looked for one text at a time: two equal texts answered by one box are both found
            here, while `ocr_exact` counts one.
    """

    lines: tuple[str, ...]
    found: tuple[bool, ...]


def read_run_texts(run: Run, workers: int = 1) -> dict[SampleKey, ReadTexts]:
    """Read the pictures of a run that are asked for texts.

    Args:
        run: with its pictures; readings.json is written into their folder.
        workers: processes that read.

    Raises:
        UserError: a picture cannot be read, or the OCR extra is missing.
    """
    samples = [sample for sample in run.samples if sample.texts]
    readings = _read_kept([sample.image_path for sample in samples], workers)
    return {
        sample.key: judge_reading(sample.texts, reading)
        for sample, reading in zip(samples, readings, strict=True)
    }


def judge_reading(texts: Sequence[str], reading: Reading) -> ReadTexts:
    """Join the boxes of each line, and tell which of the expected texts are there."""
    joined = tuple(" ".join(reading.boxes[i].text for i in line) for line in lines(reading))
    found = tuple(bool(normalize(text)) and exact_fraction([text], reading) == 1 for text in texts)
    return ReadTexts(joined, found)


def _read_kept(paths: Sequence[Path], workers: int) -> list[Reading]:
    if not paths:
        return []
    cache = paths[0].parent / CACHE
    reader = content_key(reader_identity())
    kept = _load(cache, reader)
    digests = [file_sha256(path) for path in paths]
    unread = {d: p for d, p in zip(digests, paths, strict=True) if d not in kept}
    if unread:
        new = read_files(list(unread.values()), workers)
        kept |= dict(zip(unread, new, strict=True))
        pictures = {digest: asdict(kept[digest])["boxes"] for digest in sorted(set(digests))}
        text = json.dumps({"reader": reader, "pictures": pictures}, ensure_ascii=False)
        write_atomically(cache, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return [kept[digest] for digest in digests]


def _load(cache: Path, reader: str) -> dict[str, Reading]:
    """Return the readings kept by the same reader; a damaged cache is made again."""
    try:
        stored = json.loads(cache.read_text(encoding="utf-8"))
        if stored["reader"] != reader:
            return {}
        return {
            digest: Reading(tuple(Box(**box) for box in boxes))
            for digest, boxes in stored["pictures"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
