"""Measure human preference by HPSv2: the bare cosine of a ViT-H/14 trained on people's rankings.

Wu, Hao, Sun, Chen, Zhu, Zhao and Li 2023 (arXiv:2306.09341); weights Apache-2.0, xswu/HPSv2. v2.1,
trained on more rankings, is `hpsv2`; v2.0, which the package's `score()` takes when no version is
given, is `hpsv2_v20`. Some publications multiply by 100; this one does not.

The package hpsv2 1.2.0 is no dependency: it wants protobuf < 4 and pytest 7.2.0 and lacks a file
of its own tokenizer. Its weights have exactly the tensors of open_clip's ViT-H-14. What differs is
how a picture is prepared: the longest side becomes 224 px and black bars fill the rest, where CLIP
crops; and the resampling works on floating point values. `make parity` compares the features, and
the score, with those of the package in an environment of its own.
"""

import numpy as np
import torch

from dit8.eval.clip_models import Backbone
from dit8.eval.text_image import TextImageScorer, given_path
from dit8.eval.weight_files import HubFiles, find_in_cache

ARCHITECTURE = "ViT-H-14"
REPO = "xswu/HPSv2"
FILES = {"hpsv2": "HPS_v2.1_compressed.pt", "hpsv2_v20": "HPS_v2_compressed.pt"}
# of OpenAI's training pictures, which LAION's ViT-H-14 kept
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def letterbox(pixels: np.ndarray, size: int) -> torch.Tensor:
    """Scale the longest side to `size`, centre on black, normalize.

    Args:
        pixels: (H, W, 3) uint8.
        size: of the square, in pixels.

    Returns:
        (3, size, size) fp32. Bicubic overshoot beyond [0, 1] is kept, as the package keeps it.
    """
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    height, width = image.shape[1:]
    scale = size / max(height, width)
    new = (round(height * scale), round(width * scale))
    if new != (height, width):
        image = torch.nn.functional.interpolate(
            image[None], size=new, mode="bicubic", align_corners=False, antialias=True
        )[0]
    top, left = (size - new[0]) // 2, (size - new[1]) // 2
    square = torch.zeros(3, size, size)
    square[:, top : top + new[0], left : left + new[1]] = image
    return (square - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def cosine_itself(cosine: float, logit_scale: float) -> float:
    """Return the cosine; HPSv2 leaves the temperature out."""
    return cosine


def locate(scorer: TextImageScorer) -> Backbone | str:
    """Find the checkpoint; a sentence when it is not there."""
    if scorer.checkpoint is not None:
        path = given_path(scorer)
    else:
        wanted = HubFiles(REPO, ((FILES[scorer.name],),), "2 GB")
        found = find_in_cache(wanted)
        path = (
            f"{FILES[scorer.name]} of {REPO} ({wanted.size}) is not in the hub's cache; get it "
            f"with `{wanted.command}`"
        )
        if found is not None:
            (path,) = found
    if isinstance(path, str):
        return path
    return Backbone("open_clip", scorer.backbone, path, preprocess=letterbox)


SCORERS = tuple(
    TextImageScorer(
        name=name,
        unit="cosine",
        bounds=(-1.0, 1.0),
        preprocessing="longest side to 224 px (bicubic on fp32), black bars, CLIP's mean and std",
        locate=locate,
        value=cosine_itself,
        backbone=ARCHITECTURE,
    )
    for name in FILES
)
