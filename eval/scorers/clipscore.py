"""Measure how well a picture fits its text by CLIPScore: 100 max(cos(image, text), 0).

Equation 1 of Hessel, Holtzman, Forbes, Le Bras and Choi 2021 (arXiv:2104.08718) with the weight
100 in place of 2.5, which is what published figures of 15 to 35 mean. The figure depends on the
backbone, so it is recorded: the papers' own is not stated. A backbone is

- "owner/name" of the hub, transformers weights: in the hub's cache, or a folder as `checkpoint`;
- "local-dir:<folder>": open_clip's config, weights and tokenizer;
- a name of open_clip, such as "ViT-L-14": the weights are the file `checkpoint`.

The prompt prefix "A photo depicts" of the paper is not added: ideas are whole phrases, and most are
no photographs.

`clip_mini` is the same equation with the bundled towers that were trained on the mini's posters
(models/clip_mini/README.md): a number for the mini, comparable with no other CLIPScore.
"""

from pathlib import Path

from dit8.conf.paths import ROOT
from dit8.eval.clip_models import LOCAL_DIR, OPEN_CLIP_FILES, TRANSFORMERS_FILES, Backbone
from dit8.eval.text_image import TextImageScorer, given_path
from dit8.eval.weight_files import HubFiles, find_in_cache

CLIP_MINI = f"{LOCAL_DIR}models/clip_mini"
PROCESSOR_FILES = (("preprocessor_config.json",), ("tokenizer.json", "vocab.json"))


def percent(cosine: float, logit_scale: float) -> float:
    """Return 100 max(cos, 0); the learned temperature has no part in it."""
    return 100 * max(cosine, 0.0)


def locate(scorer: TextImageScorer) -> Backbone | str:
    """Find the weights of a backbone; a sentence when they are not there."""
    name = scorer.backbone
    if name.startswith(LOCAL_DIR):
        return _open_clip_folder(ROOT / name.removeprefix(LOCAL_DIR))
    if "/" in name:
        return _transformers_folder(scorer)
    if scorer.checkpoint is None:
        return f"backbone {name} of open_clip needs its weights; get it with checkpoint=<file>"
    path = given_path(scorer)
    return path if isinstance(path, str) else Backbone("open_clip", name, path)


def _open_clip_folder(folder: Path) -> Backbone | str:
    weights = next((folder / n for n in OPEN_CLIP_FILES if (folder / n).is_file()), None)
    if weights is not None and (folder / "open_clip_config.json").is_file():
        return Backbone("open_clip", f"{LOCAL_DIR}{folder}", weights)
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    remedy = "name a folder of open_clip"
    if folder == ROOT / CLIP_MINI.removeprefix(LOCAL_DIR):
        remedy = f"get it with `python scripts/train_clip_mini.py --folder {shown}`"
    return f"{shown} holds no open_clip_config.json with {OPEN_CLIP_FILES[0]}; {remedy}"


def _transformers_folder(scorer: TextImageScorer) -> Backbone | str:
    wanted = HubFiles(
        scorer.backbone, (TRANSFORMERS_FILES, ("config.json",), *PROCESSOR_FILES), "0.6 to 4 GB"
    )
    if scorer.checkpoint is None:
        found = find_in_cache(wanted)
        if found is None:
            return (
                f"{scorer.backbone} ({wanted.size}) is not in the hub's cache; get it with "
                f"`{wanted.command}`"
            )
        return Backbone("transformers", str(found[0].parent), found[0], found[2].parent)
    folder = given_path(scorer)
    if isinstance(folder, str):
        return folder
    weights = next((folder / n for n in TRANSFORMERS_FILES if (folder / n).is_file()), None)
    if weights is None:
        return f"{folder} holds no {TRANSFORMERS_FILES[0]}; get it with `{wanted.command}`"
    return Backbone("transformers", str(folder), weights, folder)


SCORERS = (
    TextImageScorer(
        name="clipscore",
        unit="100 x cosine",
        bounds=(0.0, 100.0),
        preprocessing="shortest side to 224 px (Pillow, bicubic), centre crop, CLIP's mean and std",
        locate=locate,
        value=percent,
        backbone="openai/clip-vit-base-patch32",
    ),
    TextImageScorer(
        name="clip_mini",
        unit="100 x cosine (clip-mini)",
        bounds=(0.0, 100.0),
        preprocessing="shortest side to 256 px (Pillow, bicubic), centre crop, to [-1, 1]",
        locate=locate,
        value=percent,
        backbone=CLIP_MINI,
        score_text="content",
    ),
)
