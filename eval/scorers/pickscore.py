"""Measure human preference by PickScore: exp(logit scale) cos(image, text).

Kirstain, Polyak, Singer, Matiana, Penna and Levy 2023 (arXiv:2305.01569): a CLIP ViT-H/14 trained
further on choices of people. The temperature is the checkpoint's own, about 100, so that figures
lie near 20. Weights MIT, yuvalkirstain/PickScore_v1; tokenizer and image settings are those of the
CLIP that it grew from. `checkpoint` names a folder that holds all of it.
"""

from dit8.eval.clip_models import TRANSFORMERS_FILES, Backbone
from dit8.eval.scorers.clipscore import PROCESSOR_FILES
from dit8.eval.text_image import TextImageScorer, given_path
from dit8.eval.weight_files import HubFiles, find_in_cache

MODEL = HubFiles("yuvalkirstain/PickScore_v1", (TRANSFORMERS_FILES, ("config.json",)), "3.9 GB")
PROCESSOR = HubFiles("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", PROCESSOR_FILES, "4 MB")


def logit(cosine: float, logit_scale: float) -> float:
    """Return the scaled cosine."""
    return logit_scale * cosine


def locate(scorer: TextImageScorer) -> Backbone | str:
    """Find model and processor; a sentence when one is not there."""
    if scorer.checkpoint is None:
        found = [find_in_cache(wanted) for wanted in (MODEL, PROCESSOR)]
        for files, wanted in zip(found, (MODEL, PROCESSOR), strict=True):
            if files is None:
                return (
                    f"{wanted.repo} ({wanted.size}) is not in the hub's cache; get it with "
                    f"`{wanted.command}`"
                )
        (weights, config), processor = found
        return Backbone("transformers", str(config.parent), weights, processor[0].parent)
    folder = given_path(scorer)
    if isinstance(folder, str):
        return folder
    weights = next((folder / n for n in TRANSFORMERS_FILES if (folder / n).is_file()), None)
    if weights is None:
        return f"{folder} holds no {TRANSFORMERS_FILES[0]}; get it with `{MODEL.command}`"
    return Backbone("transformers", str(folder), weights, folder)


SCORERS = (
    TextImageScorer(
        name="pickscore",
        unit="logit",
        bounds=(-100.0, 100.0),  # CLIP's training keeps the scale at 100 or below
        preprocessing="shortest side to 224 px (Pillow, bicubic), centre crop, CLIP's mean and std",
        locate=locate,
        value=logit,
        backbone=MODEL.repo,
    ),
)
