"""Read the texts in a picture: the one definition of reading, used wherever text is judged.

The picture is padded by 48 px on every side with its per-channel median colour (text at the
edge is found better), then read by PP-OCRv6 small through rapidocr: detector limit_type=max,
limit_side_len=512, no angle classifier. Every setting on which the result depends is pinned
here and reported by `reader_identity`. How texts are compared is in `eval.matching`.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.images import load_rgb
from quant.errors import UserError

PAD_PX = 48
DETECTOR_SIDE_PX = 512
MODEL_FILES = {"detector": "PP-OCRv6_det_small.onnx", "recognizer": "PP-OCRv6_rec_small.onnx"}
# rapidocr 3.10's own defaults except the detector side and the classifier, written out so
# that a later version with other defaults reads the same
SETTINGS = {
    "Global.use_cls": False,
    "Global.text_score": 0.5,
    "Global.min_side_len": 30,
    "Global.max_side_len": 2000,
    "Det.limit_type": "max",
    "Det.limit_side_len": DETECTOR_SIDE_PX,
    "Det.thresh": 0.3,
    "Det.box_thresh": 0.5,
    "Det.unclip_ratio": 1.6,
    "Det.use_dilation": True,
    "Det.score_mode": "fast",
    "Rec.rec_img_shape": [3, 48, 320],
    "Rec.rec_batch_num": 6,
}


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


def read(image: np.ndarray, threads: int = 1) -> Reading:
    """Read the texts in a picture.

    Args:
        image: (H, W, 3) uint8, RGB.
        threads: intra-op threads of the engine, at most the machine's cores. About 0.05
            to 0.2 s for 256 x 256 px on one core.

    Returns:
        The boxes read with confidence >= 0.5; none for a picture without text.

    Raises:
        UserError: the OCR extra is not installed or lacks its model files.
    """
    padded = pad_with_median(image)
    engine = _engine(os.getpid(), threads)
    output = engine(np.ascontiguousarray(padded[..., ::-1]))  # the engine expects BGR
    if output.txts is None:
        return Reading(())
    boxes = []
    for text, corners, confidence in zip(output.txts, output.boxes, output.scores, strict=True):
        left, top = (float(v) for v in corners.min(axis=0) - PAD_PX)
        right, bottom = (float(v) for v in corners.max(axis=0) - PAD_PX)
        boxes.append(Box(text, left, top, right, bottom, float(confidence)))
    return Reading(tuple(boxes))


def read_texts(image: np.ndarray, threads: int = 1) -> list[str]:
    """Return the strings `read` finds in an (H, W, 3) uint8 picture, in reading order."""
    return [box.text for box in read(image, threads).boxes]


def read_files(paths: Sequence[Path], workers: int = 1, threads: int = 1) -> list[Reading]:
    """Read several image files; a file with known content is not read a second time.

    Readings are remembered in this process by the SHA-256 of the file, so that the OCR
    scorers share one reading per picture. Nothing is kept on disk.

    Args:
        paths: image files, 8-bit RGB.
        workers: processes to read in; 1 reads here. Each
            costs about 1 s to start.
        threads: intra-op threads of each engine.

    Raises:
        UserError: a file cannot be read (it is named), or as `read`.
    """
    if workers < 1:
        raise ValueError(f"reading: workers must be >= 1, got {workers}")
    digests = [_digest(path) for path in paths]
    unread = {d: p for d, p in zip(digests, paths, strict=True) if d not in _READINGS}
    read_one = functools.partial(_read_file, threads=threads)
    if workers == 1 or len(unread) < 2:
        found = list(map(read_one, unread.values()))
    else:
        # spawn: forking a process whose engine or torch has threads may deadlock
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(unread)), mp_context=context) as pool:
            found = list(pool.map(read_one, unread.values(), chunksize=4))
    _READINGS.update(zip(unread, found, strict=True))
    return [_READINGS[digest] for digest in digests]


def reader_identity() -> dict[str, Any]:
    """Return engine versions, model files with SHA-256 prefixes, and settings, JSON-ready."""
    folder = _model_folder()
    return {
        "engine": f"rapidocr {importlib.metadata.version('rapidocr')}",
        "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        "models": {name: _digest(folder / name)[:16] for name in MODEL_FILES.values()},
        "pad_px": PAD_PX,
        "settings": dict(SETTINGS),
    }


_READINGS: dict[str, Reading] = {}


@functools.lru_cache(maxsize=2)
def _engine(process_id: int, threads: int) -> Callable[[np.ndarray], Any]:
    """Make the engine once per process: a session inherited through fork is not usable."""
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise ValueError(f"reading: threads must be in [1, {cores}] on this machine, got {threads}")
    folder = _model_folder()
    from rapidocr import RapidOCR

    runtime = {
        "Global.log_level": "critical",  # else every picture without text logs a warning
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        # explicit paths, else the engine would download a model that is not beside it
        "Det.model_path": str(folder / MODEL_FILES["detector"]),
        "Rec.model_path": str(folder / MODEL_FILES["recognizer"]),
    }
    return RapidOCR(params=SETTINGS | runtime)


def _model_folder() -> Path:
    for package in ("rapidocr", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"reading: {package} is not installed, expected the OCR extra;"
                " run `pip install -e .[ocr]`"
            )
    folder = Path(importlib.util.find_spec("rapidocr").origin).parent / "models"
    for name in MODEL_FILES.values():
        if not (folder / name).is_file():
            raise UserError(
                f"reading: model file {name} is not in the installed rapidocr"
                f" {importlib.metadata.version('rapidocr')}, expected a version that bundles it;"
                " run `pip install -e .[ocr]`"
            )
    return folder


def _read_file(path: Path, threads: int) -> Reading:
    return read(load_rgb(path), threads)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"reading: cannot read {path} ({error}); generate it again") from error
