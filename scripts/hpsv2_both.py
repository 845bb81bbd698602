"""Compute HPSv2 twice on a tiny checkpoint, by its own package and by ours; print the differences.

    python scripts/parity_hpsv2.py        # makes the environment that holds hpsv2, then runs this

The package finds its architecture by name, so the tiny one is registered as ViT-H-14 on both sides
and everything else is what a user runs: `hpsv2.img_score.score` there, the scorer `hpsv2` here.
Before that, the tensors of the real ViT-H-14 are compared by name and shape, without their memory.
Prints one JSON document last: {"tensors", "rows": [[quantity, case, largest difference]]}.
"""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from dit8.eval.clip_models import load_tokenizer, load_towers
from dit8.eval.images import load_rgb
from dit8.eval.scorers.hpsv2 import ARCHITECTURE, SCORERS
from dit8.models.torchvision_shim import import_torchvision
from dit8.models.types import Prompt, Sample

# As the real one, with patches of 14 px, heads 80 wide and 77 tokens, but two layers a tower.
TINY = {
    "embed_dim": 48,
    "vision_cfg": dict(image_size=224, patch_size=14, width=160, head_width=80, layers=2),
    "text_cfg": dict(context_length=77, vocab_size=49408, width=64, heads=4, layers=2),
}
SHAPES = ((224, 224), (256, 256), (512, 768), (768, 512), (1024, 170), (97, 131))  # (H, W) px
TEXTS = (
    "a poster",
    "A photo of a café sign: “OPEN 24/7”",
    "東京の夜、ネオンの看板",
    "MENU   soup &amp; bread\n5 €",
    "a very long idea " * 20,  # cut at 77 tokens
    "",
)


def tensors(clip: type, config: dict) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of a model's tensors; none is allocated."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in clip(**config).state_dict().items()}


def register_tiny(folder: Path, packages: list[ModuleType]) -> Path:
    """Register TINY as ViT-H-14 and save random weights for it; returns the checkpoint."""
    ours = packages[0]
    (folder / "configs").mkdir()
    (folder / "configs" / f"{ARCHITECTURE}.json").write_text(json.dumps(TINY))
    for package in packages:
        package.factory.add_model_config(folder / "configs")
    torch.manual_seed(0)
    model = ours.create_model(ARCHITECTURE)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
    checkpoint = folder / "tiny.pt"
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    return checkpoint


def load_package(checkpoint: Path) -> ModuleType:
    """Load the package's model the way its `initialize_model` does, but for the download."""
    from hpsv2 import img_score

    model, _, preprocess = img_score.create_model_and_transforms(
        ARCHITECTURE,
        str(checkpoint),
        precision="amp",
        device="cpu",
        light_augmentation=True,
        output_dict=True,
    )
    img_score.model_dict.update(model=model.eval(), preprocess_val=preprocess)
    return img_score


@torch.no_grad()
def compare(folder: Path, checkpoint: Path) -> list[tuple[str, str, float]]:
    """Return the largest absolute difference of every quantity and case."""
    package = load_package(checkpoint)
    theirs, prepare = package.model_dict["model"], package.model_dict["preprocess_val"]
    tokenize = package.get_tokenizer(ARCHITECTURE)
    scorer = replace(SCORERS[0], checkpoint=str(checkpoint), device="cpu")
    backbone = scorer.locate(scorer)
    towers, our_tokens = load_towers(backbone, "cpu"), load_tokenizer(backbone)
    rows = []

    def add(quantity: str, case: str, a: torch.Tensor, b: torch.Tensor) -> None:
        rows.append((quantity, case, float((a.double() - b.double()).abs().max())))

    for number, text in enumerate(TEXTS):
        ids = tokenize([text])
        add("token ids", f"text {number}", our_tokens(text)[0], ids)
        expected = theirs.encode_text(ids, normalize=True)[0]
        add("text features", f"text {number}", towers.text(text), expected)
    rng = np.random.default_rng(0)
    for height, width in SHAPES:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = folder / f"{width}x{height}.png"
        Image.fromarray(pixels).save(path)
        case = f"{width}x{height}"
        prepared = prepare(Image.open(path))
        add("prepared picture", case, towers.prepare(load_rgb(path)), prepared)
        expected = theirs.encode_image(prepared[None], normalize=True)[0]
        add("image features", case, towers.image(load_rgb(path)), expected)
        (score,) = package.score(str(path), TEXTS[0], cp=str(checkpoint), hps_version="v2.1")
        ours = scorer.score([Sample(Prompt(case, "", (), 0, TEXTS[0]), path, None, 0.0)])
        add("score", case, torch.from_numpy(ours), torch.tensor([float(score)]))
    return rows


def main() -> None:
    import_torchvision()
    import open_clip
    from hpsv2.src import open_clip as vendored

    shapes = [
        tensors(package.CLIP, package.factory.get_model_config(ARCHITECTURE))
        for package in (open_clip, vendored)
    ]
    assert shapes[0] == shapes[1], "the two packages disagree about the tensors of ViT-H-14"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = compare(folder, register_tiny(folder, [open_clip, vendored]))
    print(json.dumps({"tensors": len(shapes[0]), "rows": rows}))


if __name__ == "__main__":
    main()
