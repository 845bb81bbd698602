import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.pipeline import load_pipeline, resolve_device, torch_dtype
from quant.errors import UserError

CPU = torch.device("cpu")
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "unconditional_transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def load(folder):
    return load_pipeline(folder, "float32", "float32", CPU)


@pytest.fixture
def broken(toy_folder, tmp_path):
    """A copy of the folder to break."""
    return shutil.copytree(toy_folder, tmp_path / "mini")


def test_branches_and_companions_get_their_dtypes(toy_folder):
    pipeline = load_pipeline(toy_folder, "bfloat16", "float32", CPU)
    assert pipeline.transformer.dtype == torch.bfloat16
    assert pipeline.unconditional_transformer.dtype == torch.bfloat16
    assert pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.float32
    pipeline = load_pipeline(toy_folder, "float32", "bfloat16", CPU)
    assert pipeline.transformer.dtype == pipeline.unconditional_transformer.dtype == torch.float32
    assert pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.bfloat16


def test_modules_come_ready_to_run(toy):
    modules = [getattr(toy, name) for name in WEIGHTS]
    assert not any(module.training for module in modules)


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"must hold model_index.json, got no such file; use model"):
        load(tmp_path / "none")


def test_another_pipelines_folder_is_refused(broken):
    index = broken / "model_index.json"
    entries = json.loads(index.read_text())
    index.write_text(json.dumps(entries | {"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="must name the class Ideogram4Pipeline, got 'FluxPipeline"):
        load(broken)


@pytest.mark.parametrize("text", ["{", "", "[]", '"text"'])
def test_a_broken_index_is_one_sentence(broken, text):
    (broken / "model_index.json").write_text(text)
    with pytest.raises(UserError, match=r"model_index.json (is not valid JSON|must)"):
        load(broken)


@pytest.mark.parametrize("component", WEIGHTS)
def test_cut_off_weights_are_one_sentence(broken, component):
    path = broken / component / WEIGHTS[component]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model folder .*mini does not load: .+; restore it"):
        load(broken)


@pytest.mark.parametrize("component", WEIGHTS)
def test_missing_weights_are_one_sentence(broken, component):
    (broken / component / WEIGHTS[component]).unlink()
    with pytest.raises(UserError, match=r"model folder .*mini does not load: .+; restore it"):
        load(broken)


@pytest.mark.parametrize("component", ["transformer", "unconditional_transformer", "vae"])
def test_a_tensor_that_is_missing_is_one_sentence(broken, component):
    path = broken / component / WEIGHTS[component]
    tensors = load_file(path)
    lost = next(name for name in tensors if name.endswith("weight"))
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{component} lacks 1 tensors, first {lost}; restore it"):
        load(broken)


@pytest.mark.parametrize("name", ["transformer/config.json", "tokenizer/tokenizer.json"])
def test_a_broken_configuration_is_one_sentence(broken, name):
    (broken / name).write_text("{")
    with pytest.raises(UserError, match=r"model folder .*mini does not load: .+; restore it"):
        load(broken)


def test_unknown_names_are_refused(monkeypatch):
    assert torch_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(UserError, match="dtype must be one of float32, bfloat16.*got 'fp8'"):
        torch_dtype("fp8")
    with pytest.raises(UserError, match="must be auto, cpu or cuda, got 'tpu'"):
        resolve_device("tpu")


def test_cuda_is_never_replaced_by_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="hardware=cuda needs an NVIDIA GPU.*use hardware=cpu"):
        resolve_device("cuda")
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == resolve_device("cuda").type == "cuda"
    assert resolve_device("cpu") == CPU
