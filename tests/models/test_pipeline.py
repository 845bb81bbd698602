import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit8.models.generate import denoise
from dit8.models.pipeline import load_pipeline, resolve_device, torch_dtype
from dit8.quant.architectures.ideogram4 import BRANCHES, architecture, branch_modules
from dit8.quant.checkpoint.load import load_quantized
from dit8.quant.checkpoint.read import open_sources
from dit8.quant.checkpoint.write import Origin, save_checkpoint
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.linear import WeightOnlyLinear

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


def convert(folder, name, made):
    """Write the branches of a model folder in another format, as the official files have them."""
    described = architecture(2)
    configs = {
        branch: json.loads((folder / subfolder / "config.json").read_text())
        for branch, subfolder in BRANCHES.items()
    }
    with open_sources(folder, described, BRANCHES) as sources:
        origin = Origin("toy", "0" * 64, BRANCHES, configs)
        save_checkpoint(made, FORMATS[name], sources, described, origin)
    return made


@pytest.fixture(scope="module")
def published(toy_folder, tmp_path_factory):
    """Return a function: format -> a whole model folder whose branches are stored in it."""
    folders = {}

    def make(name):
        if name not in folders:
            base = tmp_path_factory.mktemp("published")
            folder = folders[name] = shutil.copytree(toy_folder, base / "model")
            made = convert(toy_folder, name, base / "branches")
            for subfolder in BRANCHES.values():
                shutil.rmtree(folder / subfolder)
                shutil.copytree(made / subfolder, folder / subfolder)
        return folders[name]

    return make


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


def test_branches_left_out_have_no_storage_and_the_rest_is_whole(toy_folder, toy):
    pipeline = load_pipeline(toy_folder, "bfloat16", "float32", CPU, branches=False)
    for branch in branch_modules(pipeline).values():
        tensors = [*branch.parameters()]
        assert all(tensor.is_meta and tensor.dtype == torch.bfloat16 for tensor in tensors)
        assert not branch.training
    for name in ("text_encoder", "vae"):
        own, stock = getattr(pipeline, name).state_dict(), getattr(toy, name).state_dict()
        assert own.keys() == stock.keys()
        assert all(torch.equal(own[key], stock[key]) for key in stock)


def test_rotary_frequencies_keep_their_bits_in_every_dtype(toy_folder, toy):
    """Rounded to bf16 they would turn row 63 of an image by a quarter of a radian."""
    exact = toy.transformer.rotary_emb.inv_freq
    for branches in (True, False):
        pipeline = load_pipeline(toy_folder, "bfloat16", "float32", CPU, branches=branches)
        for module in branch_modules(pipeline).values():
            assert torch.equal(module.rotary_emb.inv_freq, exact)


def test_branches_left_out_are_not_even_read(broken, published, toy_prompts, small_sampler):
    """A quantized checkpoint fills them, so the unquantized weights may be absent altogether."""
    for subfolder in BRANCHES.values():
        (broken / subfolder / WEIGHTS[subfolder]).unlink()
    pipeline = load_pipeline(broken, "float32", "float32", CPU, branches=False)
    load_quantized(pipeline, published("fp8"))
    _, latents = denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize(("name", "high"), [("fp8", 0.15), ("nf4", 0.5)])
def test_official_formats_load_and_draw(
    published, toy, toy_prompts, small_sampler, name, high, monkeypatch
):
    folder = published(name)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert ("quantization_config" in config) == (name == "nf4")
    # neither needs bitsandbytes, which wants CUDA for most of what it does
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    pipeline = load(folder)
    for branch in branch_modules(pipeline).values():
        assert isinstance(branch.layers[0].attention.to_k, WeightOnlyLinear)
        assert not any(tensor.is_meta for tensor in branch.state_dict().values())
        assert not branch.training
    up_proj = pipeline.text_encoder.language_model.layers[0].mlp.up_proj
    assert type(up_proj) is torch.nn.Linear
    images, latents = denoise(pipeline, toy_prompts[:2], small_sampler)
    _, exact = denoise(toy, toy_prompts[:2], small_sampler)
    assert [image.size for image in images] == [(64, 64)] * 2
    # other noise would give about sqrt(2), the very same weights 0
    assert 1e-4 < (latents - exact).norm() / exact.norm() < high


def test_a_published_folder_is_what_its_checkpoint_is(published, toy_folder):
    """Loading whole or filling an empty pipeline: the same codes."""
    whole = load(published("fp8"))
    filled = load_pipeline(toy_folder, "float32", "float32", CPU, branches=False)
    load_quantized(filled, published("fp8"))
    for branch, module in branch_modules(whole).items():
        other = branch_modules(filled)[branch].state_dict()
        for name, tensor in module.state_dict().items():
            assert other[name].dtype == tensor.dtype
            assert torch.equal(other[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("name", ["fp8", "nf4"])
def test_a_cut_off_official_file_is_one_sentence(published, tmp_path, name):
    folder = shutil.copytree(published(name), tmp_path / "cut")
    path = folder / "transformer" / WEIGHTS["transformer"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors.*\d+ .*restore it"):
        load(folder)


@pytest.mark.parametrize(("name", "suffix"), [("fp8", ".weight_scale"), ("nf4", ".weight.absmax")])
def test_an_official_file_without_a_scale_is_one_sentence(published, tmp_path, name, suffix):
    folder = shutil.copytree(published(name), tmp_path / "lacking")
    path = folder / "unconditional_transformer" / WEIGHTS["transformer"]
    tensors = load_file(path)
    lost = next(key for key in sorted(tensors) if key.endswith(suffix))
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    linear = lost.removesuffix(suffix)
    with pytest.raises(UserError, match=f"linear {linear} .* must be stored in one known way"):
        load(folder)


def test_one_branch_quantized_and_one_not_is_loaded_as_stored(published, toy_folder, tmp_path):
    folder = shutil.copytree(published("fp8"), tmp_path / "half")
    shutil.rmtree(folder / "unconditional_transformer")
    shutil.copytree(toy_folder / "unconditional_transformer", folder / "unconditional_transformer")
    pipeline = load(folder)
    linear = "layers.0.feed_forward.w1"
    assert type(pipeline.transformer.get_submodule(linear)) is WeightOnlyLinear
    plain = pipeline.unconditional_transformer.get_submodule(linear)
    stored = load_file(toy_folder / "unconditional_transformer" / WEIGHTS["transformer"])
    assert type(plain) is torch.nn.Linear
    assert torch.equal(plain.weight, stored[f"{linear}.weight"].float())


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
    reason = r"model folder .*mini does not load: .+; restore it"
    if component in BRANCHES.values():  # read by our own code, which knows how much is missing
        lost = rf"\d+ of {len(whole)} bytes are missing; restore it"
        reason = rf"mini/{component}/{path.name} is not a readable .* truncated, {lost}"
    with pytest.raises(UserError, match=reason):
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
