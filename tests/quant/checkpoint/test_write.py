import json
import os

import pytest
import torch

from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.checkpoint.gguf_file import GgufFile
from dit8.quant.checkpoint.read import MemorySource
from dit8.quant.checkpoint.safetensors_file import SafetensorsFile
from dit8.quant.checkpoint.write import Origin, save_checkpoint
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.types import recipe_from_json

DIFFUSERS = {
    f"{subfolder}/{name}"
    for subfolder in BRANCHES.values()
    for name in ("config.json", "diffusion_pytorch_model.safetensors")
}
FILES = {
    "w8a8": {"model.safetensors", "recipe.json"},
    "comfy": {"conditional.safetensors", "unconditional.safetensors", "recipe.json"},
    "fp8": DIFFUSERS,
    "nf4": DIFFUSERS,
    "q8_0": {"model.gguf"},
    "q4_k": {"model.gguf"},
    "bf16": DIFFUSERS,
}
PACKAGES = {"nf4": "bitsandbytes", "q8_0": "gguf", "q4_k": "gguf"}
KEYS = {"format", "kind", "model_key", "recipe", "source_sha256"}


def need_package(format):
    if format in PACKAGES:
        pytest.importorskip(PACKAGES[format])


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("format", FILES)
def test_every_format_has_its_files_and_equal_content_has_equal_bytes(
    tiny, tiny_stats, tmp_path, format
):
    need_package(format)
    first, second = tmp_path / "first", tmp_path / "second"
    tiny.save(first, tiny_stats, format=format)
    tiny.save(second, tiny_stats, format=format)
    assert contents(first).keys() == FILES[format]
    assert contents(first) == contents(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.parametrize("format", ["w8a8", "comfy", "fp8", "q8_0"])
def test_a_file_alone_says_what_it_is(tiny, tiny_stats, tmp_path, format):
    need_package(format)
    folder = tmp_path / "x"
    tiny.save(folder, tiny_stats, format=format)
    for name in FILES[format]:
        if name.endswith(".json"):
            continue
        opened = GgufFile if name.endswith(".gguf") else SafetensorsFile
        with opened(folder / name) as file:
            header = json.loads(file.metadata["dit8"])
        assert KEYS <= header.keys()
        assert header["format"] == format
        assert header["model_key"] == "tiny"
        assert (header["recipe"] is None) == (not FORMATS[format].has_recipe)
    if FORMATS[format].has_recipe:
        text = (folder / "recipe.json").read_text()
        assert header["recipe"] == text
        assert recipe_from_json(text).recipe.name == "test"


@pytest.mark.parametrize(
    ("format", "file", "names"),
    [
        ("w8a8", "model.safetensors", {"conditional.layers.0.attention.qkv.wq"}),
        ("comfy", "unconditional.safetensors", {"layers.0.attention.qkv.comfy_quant"}),
        (
            "fp8",
            "transformer/diffusion_pytorch_model.safetensors",
            {"layers.0.attention.to_q.weight_scale", "layers.0.attention.to_out.0.weight"},
        ),
        (
            "nf4",
            "transformer/diffusion_pytorch_model.safetensors",
            {"layers.0.attention.to_k.weight.quant_state.bitsandbytes__nf4"},
        ),
        ("q8_0", "model.gguf", {"cond.layers.0.attention.qkv.weight", "uncond.input_proj.weight"}),
    ],
)
def test_names_are_those_of_the_published_files(tiny, tiny_stats, tmp_path, format, file, names):
    need_package(format)
    tiny.save(tmp_path / "x", tiny_stats, format=format)
    if file.endswith(".gguf"):
        with GgufFile(tmp_path / "x" / file) as opened:
            assert names <= set(opened.tensors)
            assert opened.tensors["cond.layers.0.attention.qkv.weight"].kind == "Q8_0"
            assert opened.tensors["cond.layers.0.attention_norm1.weight"].kind == "F32"
        return
    with SafetensorsFile(tmp_path / "x" / file) as opened:
        assert names <= set(opened.specs)


def test_diffusers_configs_say_how_the_weights_are_stored(tiny, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny.save(tmp_path / "nf4", format="nf4")
    tiny.save(tmp_path / "bf16", format="bf16")
    for subfolder in BRANCHES.values():
        config = json.loads((tmp_path / "nf4" / subfolder / "config.json").read_text())
        assert config["num_layers"] == 2
        assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
        plain = json.loads((tmp_path / "bf16" / subfolder / "config.json").read_text())
        assert plain == {"num_layers": 2}


def test_progress_counts_every_value_once(tiny, tmp_path):
    """Also for GGUF, whose tensors are made one by one while the file is written."""
    pytest.importorskip("gguf")
    sources = tiny.make_sources()
    values = sum(
        tensor.numel()
        for module in tiny.branch_modules(tiny.make_pipeline()).values()
        for tensor in module.state_dict().values()
    )
    for format in ("fp8", "q8_0"):
        seen = []
        origin = Origin("tiny", "0", BRANCHES, {branch: {} for branch in BRANCHES})
        reports = save_checkpoint(
            tmp_path / format,
            FORMATS[format],
            sources,
            tiny.architecture,
            origin,
            progress=seen.append,
        )
        assert sum(seen) == values
        assert reports == ()


@pytest.mark.parametrize("format", ["w8a8", "comfy", "fp8", "q8_0"])
@pytest.mark.parametrize("calls", [0, 7])
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), UserError, "cannot write .*No space left .*free"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_failed_write_leaves_nothing(
    tiny, tiny_stats, tmp_path, monkeypatch, format, calls, error, raised, message
):
    need_package(format)
    real, left = os.pwrite, [calls]

    def failing(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(raised, match=message):
        tiny.save(tmp_path / "x", tiny_stats, format=format)
    assert not list(tmp_path.iterdir())


def test_a_source_that_fails_midway_leaves_nothing(tiny, tmp_path):
    sources = tiny.make_sources()
    states = tiny.make_pipeline().unconditional_transformer.state_dict()
    states["layers.1.feed_forward.w2.weight"][0, 0] = torch.inf
    sources["unconditional"] = MemorySource(states)
    with pytest.raises(UserError, match="unconditional.layers.1.feed_forward.w2.* must be finite"):
        tiny.save(tmp_path / "x", format="bf16", sources=sources)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "file in it"])
def test_an_existing_folder_is_refused_before_any_work(tiny, tmp_path, monkeypatch, content):
    folder = tmp_path / "x"
    folder.mkdir()
    if content is not None:
        (folder / content).write_text("kept")
    monkeypatch.setattr("dit8.quant.checkpoint.write.branch_entries", None)  # not even called
    with pytest.raises(UserError, match="x must not exist yet, got a folder; delete it or choose"):
        tiny.save(folder, format="bf16")
    assert [path.name for path in tmp_path.rglob("*")] == ["x", *([content] if content else [])]


def test_a_folder_that_appears_meanwhile_is_kept(tiny, tmp_path, monkeypatch):
    def appear(*arguments):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "other").write_text("first")

    monkeypatch.setitem(save_checkpoint.__globals__["_WRITERS"], "diffusers", appear)
    with pytest.raises(UserError, match="cannot move the finished checkpoint to .*delete what is"):
        tiny.save(tmp_path / "x", format="bf16")
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "other"]


def test_refuses_a_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make .*choose a folder that you may write to"):
        tiny.save(tmp_path / "file" / "x", format="bf16")
