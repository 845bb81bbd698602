"""Read text with PaddleOCR: a second opinion on the default reader's pre- and post-processing.

PaddleOCR downloads its models when it first runs. Here it is given the two ONNX files that the
default reader uses, so that it works offline and what differs between the readers is their code
alone: resizing, box scoring, cropping and batching. It reads a model from a folder that also
describes it; the descriptions are written here, after what PP-OCR's exports contain.
"""

import functools
import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dit8.eval import rapid_reader
from dit8.eval.provenance import installed_versions
from dit8.eval.rapid_reader import DETECTOR_SIDE_PX, MODEL_FILES, Found

PACKAGES = ("paddleocr", "paddlex", "onnxruntime", "rapidocr")
INSTALL = "pip install -c constraints.txt -e '.[paddle]'"
NAMES = {"detector": "PP-OCRv6_small_det", "recognizer": "PP-OCRv6_small_rec"}
# the values of the default reader; dilation is not offered
SETTINGS = {
    "text_det_limit_type": "max",
    "text_det_limit_side_len": DETECTOR_SIDE_PX,
    "text_det_thresh": 0.3,
    "text_det_box_thresh": 0.5,
    "text_det_unclip_ratio": 1.6,
    "text_rec_score_thresh": 0.5,
    "text_recognition_batch_size": 6,
    "use_doc_orientation_classify": False,
    "use_doc_unwarping": False,
    "use_textline_orientation": False,
}
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, RGB
RECOGNIZER_SHAPE = [3, 48, 320]


def recognize(image: np.ndarray, threads: int) -> list[Found]:
    """Return every text found in an (H, W, 3) uint8 picture in BGR, in the engine's order."""
    pipeline, _ = _engine(os.getpid(), threads)
    (found,) = pipeline.predict(image)
    return list(zip(found["rec_texts"], found["rec_polys"], found["rec_scores"], strict=True))


def obstacle() -> str | None:
    """Tell what is missing here and how to get it; None: nothing."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; get it with `{INSTALL}`"
    return rapid_reader.obstacle()


def versions() -> dict[str, str | None]:
    """Return the versions of the engine's packages."""
    return installed_versions(PACKAGES)


@functools.lru_cache(maxsize=2)
def _engine(process_id: int, threads: int) -> tuple[Any, tempfile.TemporaryDirectory]:
    """Make the pipeline once per process, and the folder that it reads its models from."""
    # else the import asks several model hosts whether they can be reached
    os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")
    from paddleocr import PaddleOCR

    logging.getLogger("paddlex").setLevel(logging.ERROR)  # it announces every model it opens
    folder = tempfile.TemporaryDirectory(prefix="dit8-paddle-")
    for kind, description in (("detector", _detector()), ("recognizer", _recognizer())):
        place = Path(folder.name) / kind
        place.mkdir()
        source = rapid_reader.model_folder() / MODEL_FILES[kind]
        (place / "inference.onnx").symlink_to(source)
        _write_yaml(place / "inference.yml", {"Global": {"model_name": NAMES[kind]}} | description)
    pipeline = PaddleOCR(
        text_detection_model_name=NAMES["detector"],
        text_detection_model_dir=str(Path(folder.name) / "detector"),
        text_recognition_model_name=NAMES["recognizer"],
        text_recognition_model_dir=str(Path(folder.name) / "recognizer"),
        engine="onnxruntime",
        engine_config={"intra_op_num_threads": threads, "inter_op_num_threads": 1},
        device="cpu",
        **SETTINGS,
    )
    return pipeline, folder


def _detector() -> dict[str, Any]:
    steps = [
        {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
        {"DetResizeForTest": {"resize_long": DETECTOR_SIDE_PX}},
        {"NormalizeImage": {"mean": MEAN, "std": DEVIATION, "scale": "1./255.", "order": "hwc"}},
        {"ToCHWImage": None},
    ]
    return {"PreProcess": {"transform_ops": steps}, "PostProcess": {"name": "DBPostProcess"}}


def _recognizer() -> dict[str, Any]:
    steps = [
        {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
        {"RecResizeImg": {"image_shape": RECOGNIZER_SHAPE}},
    ]
    decode = {"name": "CTCLabelDecode", "character_dict": _characters()}
    return {"PreProcess": {"transform_ops": steps}, "PostProcess": decode}


def _characters() -> list[str]:
    """Read the recognizer's alphabet, which rapidocr keeps in the model file, one a line."""
    import onnxruntime

    path = rapid_reader.model_folder() / MODEL_FILES["recognizer"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map["character"].split("\n")


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
