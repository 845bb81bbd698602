import json

import pytest
import torch

from quant.checkpoint import load_checkpoint, read_recipe, save_checkpoint
from quant.errors import UserError
from quant.tensor_file import write_tensors
from quant.types import RankedLayer, Recipe, ResolvedRecipe

RESOLVED = ResolvedRecipe(
    Recipe("test", alpha=None, protect=1),
    ("conditional.layers.0.w2",),
    (RankedLayer("conditional.layers.0.w2", 12.5, 0.01),),
    "0123456789ab",
    "prompts",
)


@pytest.fixture
def branches():
    torch.manual_seed(0)
    return {
        "conditional": {
            "layers.0.w.wq": torch.randint(-127, 128, (4, 8), dtype=torch.int8),
            "layers.0.w.ws": torch.rand(4),
            "norm.weight": torch.randn(8).bfloat16(),
        },
        "unconditional": {"norm.weight": torch.randn(16).bfloat16()[::2]},
    }


def test_round_trip_is_bit_for_bit(branches, tmp_path):
    path = tmp_path / "new" / "w8a8.safetensors"
    save_checkpoint(path, branches, RESOLVED, source_sha256="f" * 64)
    read = load_checkpoint(path)
    assert read.resolved == RESOLVED == read_recipe(path)
    assert read.source_sha256 == "f" * 64
    assert read.branches.keys() == branches.keys()
    for branch, tensors in branches.items():
        assert read.branches[branch].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read.branches[branch][name].dtype == tensor.dtype
            assert torch.equal(read.branches[branch][name], tensor)


def test_recipe_stands_beside_and_nothing_is_left_over(branches, tmp_path):
    path = tmp_path / "w8a8.safetensors"
    save_checkpoint(path, branches, RESOLVED, source_sha256="f" * 64)
    first = path.read_bytes()
    save_checkpoint(path, branches, RESOLVED, source_sha256="f" * 64)
    assert path.read_bytes() == first  # equal content, equal bytes
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["recipe.json", path.name]
    assert json.loads((tmp_path / "recipe.json").read_text())["protected"] == [
        "conditional.layers.0.w2"
    ]


def test_a_failed_write_leaves_the_old_checkpoint(branches, tmp_path, monkeypatch):
    path = tmp_path / "w8a8.safetensors"
    save_checkpoint(path, branches, RESOLVED, source_sha256="f" * 64)
    before = path.read_bytes()

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quant.tensor_file.save_file", full_disk)
    with pytest.raises(UserError, match="cannot write .*No space left on device; choose a folder"):
        save_checkpoint(path, branches, RESOLVED, source_sha256="0" * 64)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["recipe.json", path.name]


def test_refuses_a_folder_that_cannot_be_made(branches, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose a folder that you may write to"):
        save_checkpoint(tmp_path / "file" / "x.safetensors", branches, RESOLVED, source_sha256="")


def test_refuses_what_is_no_checkpoint(tmp_path):
    path = tmp_path / "w8a8.safetensors"
    with pytest.raises(UserError, match="no W8A8 checkpoint 1 file at .*scripts/quantize.py"):
        load_checkpoint(path)
    write_tensors(path, {}, "activation statistics 1", {})
    with pytest.raises(UserError, match="kind 'W8A8 checkpoint 1', got 'activation statistics 1'"):
        read_recipe(path)
    write_tensors(path, {}, "W8A8 checkpoint 1", {"recipe": "{}", "source_sha256": ""})
    with pytest.raises(UserError, match="must be a recipe written by this version"):
        load_checkpoint(path)
