"""Tiny checkpoints of the CLIP family, in every form the scorers load, made here and never kept."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

TEXT = "a yellow poster with the word RIVER"
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
LOGIT_SCALE = 50.0  # no power of anything: an equation that forgets it is seen


@pytest.fixture(scope="session")
def open_clip():
    """The library; a skip where the extra is not installed."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("needs the extra: pip install -e .[clip]")
    import open_clip

    return open_clip


@pytest.fixture(scope="session")
def tiny_clip(open_clip, tmp_path_factory) -> SimpleNamespace:
    """An open_clip model of random weights: as a folder, and as a .pt for a named architecture."""
    import torch
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("open_clip")
    (root / "configs").mkdir()
    (root / "configs" / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(root / "configs")
    torch.manual_seed(7)  # cosines are positive, so that no clip at zero hides them
    model = open_clip.create_model("tiny-clip")
    with torch.no_grad():
        model.logit_scale.fill_(math.log(LOGIT_SCALE))
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    folder = root / "folder"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    save_file(weights, folder / "open_clip_model.safetensors")
    torch.save({"epoch": 1, "state_dict": weights}, root / "tiny.pt")
    return SimpleNamespace(
        name="tiny-clip", folder=folder, checkpoint=root / "tiny.pt", model=model.eval()
    )


@pytest.fixture(scope="session")
def transformers_clip(open_clip, tmp_path_factory) -> Path:
    """A transformers folder of a CLIP of random weights, with tokenizer and image settings."""
    import torch
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("transformers") / "clip"
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 24}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407}
    config = CLIPConfig(
        text_config={
            **{"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16},
            **{"vocab_size": 49408, **ends, **shared},
        },
        vision_config={
            **{"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
            **shared,
        },
        projection_dim=24,
    )
    torch.manual_seed(8)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(LOGIT_SCALE))
        # as initialized all texts are nearly one: spread what tells tokens apart
        model.text_model.embeddings.token_embedding.weight.normal_(0, 1)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    bpe = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): index for token, index in bpe.encoder.items()}
    merges = sorted(bpe.bpe_ranks, key=bpe.bpe_ranks.get)
    raw = folder.parent / "bpe"
    raw.mkdir()
    (raw / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (raw / "merges.txt").write_text("\n".join(lines))
    CLIPTokenizer.from_pretrained(raw).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(make_sample) -> list:
    """Three samples of different shapes, each with an idea and a caption."""
    rng = np.random.default_rng(5)
    samples = []
    for index, shape in enumerate(((48, 48), (64, 40), (30, 50))):
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        caption = {
            "high_level_description": f"A poster, number {index}.",
            "compositional_deconstruction": {"background": "flat red", "elements": []},
        }
        sample = make_sample(pixels, f"p{index}", index)
        prompt = dataclasses.replace(
            sample.prompt,
            idea=f"{TEXT} {index}",
            caption=json.dumps(caption, separators=(",", ":")),
            category="poster",
        )
        samples.append(dataclasses.replace(sample, prompt=prompt))
    return samples


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Return a function that puts a file into an empty hub cache as `hf download` does."""
    import hashlib

    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    commit = "c" * 40

    def put(repo: str, name: str, source: Path) -> Path:
        root = cache / f"models--{repo.replace('/', '--')}"
        for folder in (root / "blobs", root / "refs", root / "snapshots" / commit):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text(commit)
        content = source.read_bytes()
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = root / "snapshots" / commit / name
        link.symlink_to(blob)
        return link

    return put
