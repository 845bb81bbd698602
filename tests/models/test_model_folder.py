import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit8.models.model_folder import FolderFacts, components, inspect_folder
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(toy_folder, tmp_path) -> Path:
    """A copy of the toy model that may be broken."""
    return Path(shutil.copytree(toy_folder, tmp_path / "model"))


def rewrite(folder: Path, change) -> None:
    """Apply `change` (tensors -> tensors) to the weights of both branches."""
    for name in BRANCHES.values():
        path = folder / name / WEIGHTS
        save_file(change(load_file(path)), path)


def as_fp8(tensors: dict) -> dict:
    """Store every linear as the official FP8 files do."""
    stored = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.float().abs().amax(1).clamp(min=1e-9) / 448
            stored[name] = (tensor.float() / scale[:, None]).to(torch.float8_e4m3fn)
            stored[f"{name}_scale"] = scale
        else:
            stored[name] = tensor
    return stored


def as_nf4(tensors: dict) -> dict:
    name = "layers.0.feed_forward.w2.weight"
    state = torch.zeros(4, dtype=torch.uint8)
    return {**tensors, f"{name}.quant_state.bitsandbytes__nf4": state}


def blocks_of(folder: Path) -> int:
    return json.loads((folder / "transformer" / "config.json").read_text())["num_layers"]


def test_a_saved_model_is_bf16(folder):
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert inspect_folder(folder) == FolderFacts("bf16", blocks_of(folder), size)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: {k: v.float() for k, v in tensors.items()}, "fp32"),
        (lambda tensors: {k: v.half() for k, v in tensors.items()}, "fp16"),
        (as_fp8, "fp8"),
        (as_nf4, "nf4"),
        (lambda tensors: {**tensors, "a.comfy_quant": torch.zeros(2, dtype=torch.uint8)}, "comfy"),
    ],
)
def test_formats_are_told_apart(folder, change, expected):
    rewrite(folder, change)
    assert inspect_folder(folder).format == expected


def test_no_index(folder):
    (folder / "model_index.json").unlink()
    with pytest.raises(UserError, match="must hold model_index.json, got no such file; restore"):
        inspect_folder(folder)


def test_components_are_those_with_a_class():
    text = '{"_class_name": "Ideogram4Pipeline", "vae": ["d", "V"], "head": [null, null], "x": 1}'
    assert components(text, "here") == ("vae",)
    with pytest.raises(UserError, match="here is not valid JSON .*; restore the model folder"):
        components("{", "here")
    for text in ('{"_class_name": "FluxPipeline"}', "[]"):
        with pytest.raises(UserError, match="here must name the class Ideogram4Pipeline, got"):
            components(text, "here")


def test_a_missing_component(folder):
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match="model must hold vae, got none; restore the model folder"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "transformer/config.json does not exist"),
        ("{", "must be a JSON object with num_layers"),
        ("[]", "must be a JSON object with num_layers"),
        ("{}", "must be a JSON object with num_layers"),
        ('{"num_layers": 0}', "must have num_layers >= 1, got 0"),
        ('{"num_layers": "2"}', "must have num_layers >= 1, got '2'"),
    ],
)
def test_a_branch_without_its_number_of_blocks(folder, text, message):
    path = folder / "transformer" / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        inspect_folder(folder)


def test_branches_of_different_depth(folder):
    path = folder / "transformer" / "config.json"
    path.write_text('{"num_layers": 1}')
    with pytest.raises(UserError, match="same number of blocks in both branches, got 1 in cond"):
        inspect_folder(folder)


def test_branches_of_different_format(folder):
    path = folder / "transformer" / WEIGHTS
    save_file({k: v.float() for k, v in load_file(path).items()}, path)
    with pytest.raises(UserError, match="same format in both branches, got fp32 in conditional, "):
        inspect_folder(folder)


def test_a_truncated_file(folder):
    path = folder / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"transformer/diffusion_pytorch_model\.safetensors"):
        inspect_folder(folder)


def test_a_missing_linear_is_named(folder):
    name = "layers.0.feed_forward.w2.weight"
    rewrite(folder, lambda tensors: {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(UserError, match=name):
        inspect_folder(folder)


def test_weights_of_no_known_format(folder):
    rewrite(folder, lambda tensors: {"x": torch.zeros(3, dtype=torch.int32)})
    with pytest.raises(
        UserError, match="weights in bf16, fp16, fp32, fp8, nf4 or comfy, got int32"
    ):
        inspect_folder(folder)


def test_no_weights(folder):
    (folder / "transformer" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"transformer must hold \*\.safetensors, got none"):
        inspect_folder(folder)
