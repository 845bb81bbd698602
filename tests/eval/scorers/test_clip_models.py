"""The true loading code on tiny checkpoints, against the libraries called directly."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dit8.eval.clip_models import Backbone, load_tokenizer, load_towers
from dit8.eval.images import load_rgb
from dit8.quant.errors import UserError

TEXT = "a yellow poster with the word RIVER"


@pytest.fixture
def folder_backbone(tiny_clip):
    weights = tiny_clip.folder / "open_clip_model.safetensors"
    return Backbone("open_clip", f"local-dir:{tiny_clip.folder}", weights)


@pytest.fixture
def transformers_backbone(transformers_clip):
    weights = transformers_clip / "model.safetensors"
    return Backbone("transformers", str(transformers_clip), weights, transformers_clip)


@torch.no_grad()
def direct_open_clip(open_clip, tiny, sample, mean, std):
    """Features by the model that the files were written from, prepared by hand."""
    image = Image.open(sample.image_path)
    scale = 32 / min(image.size)
    # truncated, as torchvision does it; the shorter side is 32 whatever rounding says
    width, height = (32 if side == min(image.size) else int(side * scale) for side in image.size)
    image = image.resize((width, height), Image.BICUBIC)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    pixels = np.asarray(image.crop((left, top, left + 32, top + 32))) / 255
    signal = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None].float()
    ids = open_clip.tokenize([TEXT], context_length=16)
    picture, text, _ = tiny.model(signal, ids)
    return picture[0], text[0]


@pytest.mark.parametrize("form", ["folder", "checkpoint"])
def test_open_clip_features_are_the_models(open_clip, tiny_clip, folder_backbone, pictures, form):
    backbone, mean, std = folder_backbone, 0.5, 0.25
    if form == "checkpoint":  # no settings of its own: CLIP's
        backbone = Backbone("open_clip", tiny_clip.name, tiny_clip.checkpoint)
        mean = np.array(open_clip.OPENAI_DATASET_MEAN)
        std = np.array(open_clip.OPENAI_DATASET_STD)
    towers = load_towers(backbone, "cpu")
    assert towers.logit_scale == pytest.approx(50, rel=1e-6)
    for sample in pictures:
        picture, text = direct_open_clip(open_clip, tiny_clip, sample, mean, std)
        # the same fp32 weights and pixels; the picture was normalized in fp64 on one side
        assert torch.allclose(towers.image(load_rgb(sample.image_path)), picture, atol=1e-6)
        assert torch.allclose(towers.text(TEXT), text, atol=1e-6)
        assert towers.text(TEXT).norm() == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_transformers_features_are_the_models(transformers_clip, transformers_backbone, pictures):
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(transformers_clip).eval()
    tokenizer = CLIPTokenizer.from_pretrained(transformers_clip)
    processor = CLIPImageProcessorPil.from_pretrained(transformers_clip)
    towers = load_towers(transformers_backbone, "cpu")
    images = [Image.open(sample.image_path) for sample in pictures]
    batch = processor(images, return_tensors="pt")
    output = model(**batch, **tokenizer([TEXT], return_tensors="pt"))
    text = towers.text(TEXT)
    ours = torch.stack([towers.image(load_rgb(sample.image_path)) for sample in pictures])
    # one picture at a time against a batch of three: the products may round differently
    assert torch.allclose(
        towers.logit_scale * ours @ text, output.logits_per_image[:, 0], atol=1e-4
    )
    assert torch.allclose(ours, output.image_embeds, atol=1e-6)
    assert ours.std(dim=0).max() > 1e-3  # three pictures, not one


def test_both_libraries_read_one_text_as_the_same_tokens(folder_backbone, transformers_backbone):
    kept = "é" * 3 + " fits"
    for text in (TEXT, kept, TEXT + " and then much more than sixteen tokens of it, all cut"):
        ids, cut = load_tokenizer(folder_backbone)(text)
        theirs, also_cut = load_tokenizer(transformers_backbone)(text)
        assert ids[0, : theirs.shape[1]].tolist() == theirs[0].tolist()
        assert cut == also_cut and ids.shape == (1, 16)
    # start, end and 18 between: 20, of which 16 stay
    assert load_tokenizer(folder_backbone)(" ".join("a" * 18))[1] == 4
    assert load_tokenizer(folder_backbone)(" ".join("a" * 14))[1] == 0


def test_a_checkpoint_that_lacks_a_tensor_is_refused(transformers_clip, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(transformers_clip, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = Backbone("transformers", str(folder), folder / "model.safetensors", folder)
    with pytest.raises(UserError, match="1 tensors missing .*, first visual_projection.weight"):
        load_towers(backbone, "cpu")


def test_an_open_clip_checkpoint_that_lacks_a_tensor_is_refused(tiny_clip, tmp_path):
    weights = torch.load(tiny_clip.checkpoint)["state_dict"]
    path = tmp_path / "part.pt"
    torch.save({"state_dict": {k: v for k, v in weights.items() if k != "visual.proj"}}, path)
    with pytest.raises(UserError, match=r"part.pt cannot be loaded as tiny-clip .*visual.proj"):
        load_towers(Backbone("open_clip", tiny_clip.name, path), "cpu")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_one_sentence(tiny_clip, tmp_path, content):
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.pt cannot be loaded .* download it again"):
        load_towers(Backbone("open_clip", tiny_clip.name, path), "cpu")


def test_a_pickle_that_would_run_code_is_refused(tiny_clip, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (pytest.fail, ("code of a checkpoint was run",))

    path = tmp_path / "hostile.pt"
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(UserError, match=r"hostile.pt cannot be loaded .*UnpicklingError"):
        load_towers(Backbone("open_clip", tiny_clip.name, path), "cpu")


def test_damaged_safetensors_and_config_are_named(tiny_clip, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(tiny_clip.folder, folder)
    weights = folder / "open_clip_model.safetensors"
    backbone = Backbone("open_clip", f"local-dir:{folder}", weights)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="open_clip_model.safetensors cannot be loaded"):
        load_towers(backbone, "cpu")
    weights.write_bytes(whole)
    (folder / "open_clip_config.json").write_text(json.dumps({"vision_cfg": {}}))
    with pytest.raises(UserError, match="Could not load valid config"):
        load_towers(backbone, "cpu")


def test_an_unknown_architecture_is_named(tiny_clip):
    with pytest.raises(UserError, match="loaded as ViT-Z-1 by open_clip .*not found in built-ins"):
        load_towers(Backbone("open_clip", "ViT-Z-1", tiny_clip.checkpoint), "cpu")


def test_a_loaded_backbone_is_kept(folder_backbone):
    assert load_towers(folder_backbone, "cpu") is load_towers(folder_backbone, "cpu")
    other = dataclasses.replace(folder_backbone, preprocess=lambda pixels, size: None)
    assert load_towers(other, "cpu") is not load_towers(folder_backbone, "cpu")


def test_a_picture_is_computed_without_tf32(tiny_clip, folder_backbone, pictures, monkeypatch):
    """A GPU's convolutions take ten bits of the mantissa unless told not to."""
    towers, seen = load_towers(folder_backbone, "cpu"), []
    genuine = torch.nn.Conv2d._conv_forward

    def watch(*arguments):
        seen.append((torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()))
        return genuine(*arguments)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", watch)
    before = torch.backends.cudnn.allow_tf32
    towers.image(load_rgb(pictures[0].image_path))
    assert seen == [(False, False)] and torch.backends.cudnn.allow_tf32 == before


@pytest.mark.gpu
def test_a_gpu_gives_the_same_features(tiny_clip, folder_backbone, transformers_backbone, pictures):
    for backbone in (folder_backbone, transformers_backbone):
        here, there = load_towers(backbone, "cpu"), load_towers(backbone, "cuda")
        pixels = load_rgb(pictures[0].image_path)
        # fp32 on both, sums in another order; TF32 would differ by 1e-3
        assert torch.allclose(there.image(pixels), here.image(pixels), atol=1e-5)
        assert torch.allclose(there.text(TEXT), here.text(TEXT), atol=1e-5)
