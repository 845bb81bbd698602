"""Read text with rapidocr: PP-OCRv6 small, whose weights are inside its wheel (Apache-2.0).

The default reader. Every setting on which a reading depends is written out here, so that a later
version of the package with other defaults reads the same.
"""

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dit8.eval.provenance import installed_versions
from dit8.quant.errors import UserError

PACKAGES = ("rapidocr", "onnxruntime")
INSTALL = "pip install -c constraints.txt -e '.[ocr]'"
DETECTOR_SIDE_PX = 512
MODEL_FILES = {"detector": "PP-OCRv6_det_small.onnx", "recognizer": "PP-OCRv6_rec_small.onnx"}
# rapidocr 3.10's own defaults except the detector side and the angle classifier
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

Found = tuple[str, np.ndarray, float]  # text, (4, 2) corners as x and y in px, confidence


def recognize(image: np.ndarray, threads: int) -> list[Found]:
    """Return every text found in an (H, W, 3) uint8 picture in BGR, in the engine's order."""
    output = _engine(os.getpid(), threads)(image)
    if output.txts is None:
        return []
    return list(zip(output.txts, output.boxes, output.scores, strict=True))


def obstacle() -> str | None:
    """Tell what is missing here and how to get it; None: nothing."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; get it with `{INSTALL}`"
    for name in MODEL_FILES.values():
        if not (_folder() / name).is_file():
            version = importlib.metadata.version("rapidocr")
            return (
                f"model file {name} is not in the installed rapidocr {version}; get a version that "
                f"bundles it with `{INSTALL}`"
            )
    return None


def model_folder() -> Path:
    """Return the folder of the wheel that holds MODEL_FILES.

    Raises:
        UserError: see `obstacle`.
    """
    if reason := obstacle():
        raise UserError(f"reading: {reason}")
    return _folder()


def versions() -> dict[str, str | None]:
    """Return the versions of the engine's packages."""
    return installed_versions(PACKAGES)


def _folder() -> Path:
    return Path(importlib.util.find_spec("rapidocr").origin).parent / "models"


@functools.lru_cache(maxsize=2)
def _engine(process_id: int, threads: int) -> Callable[[np.ndarray], Any]:
    """Make the engine once per process: a session inherited through fork is not usable."""
    folder = model_folder()
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
