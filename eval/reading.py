"""Read the texts in a picture: the one definition of reading, used wherever text is judged.

The picture is padded by 48 px on every side with its per-channel median colour (text at the
edge is found better), then read by one of two engines on the same PP-OCRv6 small weights:
`eval.rapid_reader`, the default, or `eval.paddle_reader`. Every setting on which the result
depends is pinned and reported by `reader_identity`. How texts are compared is in `eval.matching`.
"""

import functools
import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit8.eval import paddle_reader, rapid_reader
from dit8.eval.images import load_rgb
from dit8.quant.errors import UserError

PAD_PX = 48
READERS = {"rapidocr": rapid_reader, "paddleocr": paddle_reader}
DEFAULT = "rapidocr"


@dataclass(frozen=True)
class Box:
    """Hold one text the detector found: its string, its box in px of the picture, confidence."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    confidence: float


@dataclass(frozen=True)
class Reading:
    """Hold what was read in one picture, in the detector's order (down, then right)."""

    boxes: tuple[Box, ...]


def pad_with_median(image: np.ndarray) -> np.ndarray:
    """Pad an image by PAD_PX on every side with its per-channel median colour.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (H + 96, W + 96, 3) uint8; a median between two codes is rounded half to even.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"reading: image must be (H, W, 3) uint8, got {image.shape} {image.dtype};"
            " load it with eval.images.load_rgb"
        )
    height, width, _ = image.shape
    colour = np.rint(np.median(image.reshape(-1, 3), axis=0)).astype(np.uint8)
    padded = np.empty((height + 2 * PAD_PX, width + 2 * PAD_PX, 3), dtype=np.uint8)
    padded[:] = colour
    padded[PAD_PX : PAD_PX + height, PAD_PX : PAD_PX + width] = image
    return padded


def read(image: np.ndarray, threads: int = 1, reader: str = DEFAULT) -> Reading:
    """Read the texts in a picture.

    Args:
        image: (H, W, 3) uint8, RGB.
        threads: intra-op threads of the engine, at most the machine's cores. About 0.05
            to 0.2 s for 256 x 256 px on one core.
        reader: a key of READERS.

    Returns:
        The boxes read with confidence >= 0.5; none for a picture without text.

    Raises:
        UserError: the OCR extra is not installed or lacks its model files.
    """
    padded = pad_with_median(image)
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise ValueError(f"reading: threads must be in [1, {cores}] on this machine, got {threads}")
    if reason := obstacle(reader):
        raise UserError(f"reading: {reason}")
    boxes = []
    bgr = np.ascontiguousarray(padded[..., ::-1])  # what both engines expect
    for text, corners, confidence in READERS[reader].recognize(bgr, threads):
        left, top = (float(v) for v in corners.min(axis=0) - PAD_PX)
        right, bottom = (float(v) for v in corners.max(axis=0) - PAD_PX)
        boxes.append(Box(text, left, top, right, bottom, float(confidence)))
    return Reading(tuple(boxes))


def read_texts(image: np.ndarray, threads: int = 1) -> list[str]:
    """Return the strings `read` finds in an (H, W, 3) uint8 picture, in reading order."""
    return [box.text for box in read(image, threads).boxes]


def read_files(
    paths: Sequence[Path], workers: int = 1, threads: int = 1, reader: str = DEFAULT
) -> list[Reading]:
    """Read several image files; a file with known content is not read a second time.

    Readings are remembered in this process by the SHA-256 of the file, so that the OCR
    scorers share one reading per picture. Nothing is kept on disk.

    Args:
        paths: image files, 8-bit RGB.
        workers: processes to read in; 1 reads here. Each
            costs about 1 s to start.
        threads: intra-op threads of each engine.
        reader: a key of READERS.

    Raises:
        UserError: a file cannot be read (it is named), or as `read`.
    """
    if workers < 1:
        raise ValueError(f"reading: workers must be >= 1, got {workers}")
    keys = [(reader, _digest(path)) for path in paths]
    unread = {key: p for key, p in zip(keys, paths, strict=True) if key not in _READINGS}
    read_one = functools.partial(_read_file, threads=threads, reader=reader)
    if workers == 1 or len(unread) < 2:
        found = list(map(read_one, unread.values()))
    else:
        # not a fork of this process, whose threads may hold a lock; one import for all of them
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(min(workers, len(unread)), mp_context=context) as pool:
            found = list(pool.map(read_one, unread.values(), chunksize=4))
    _READINGS.update(zip(unread, found, strict=True))
    return [_READINGS[key] for key in keys]


def obstacle(reader: str = DEFAULT) -> str | None:
    """Tell what the reader lacks here and how to get it; None: nothing."""
    return READERS[reader].obstacle()


def reader_identity(reader: str = DEFAULT) -> dict[str, Any]:
    """Return what a reading depends on, JSON-ready; `environment` holds the versions.

    Raises:
        UserError: as `read`.
    """
    if reason := obstacle(reader):
        raise UserError(f"reading: {reason}")
    folder = rapid_reader.model_folder()
    names = rapid_reader.MODEL_FILES.values()
    return {
        "reader": reader,
        "models": {name: _digest(folder / name) for name in names},
        "pad_px": PAD_PX,
        "settings": dict(READERS[reader].SETTINGS),
        "environment": READERS[reader].versions(),
    }


_READINGS: dict[tuple[str, str], Reading] = {}


def _read_file(path: Path, threads: int, reader: str) -> Reading:
    return read(load_rgb(path), threads, reader)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"reading: cannot read {path} ({error}); generate it again") from error
