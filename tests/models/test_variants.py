import copy
import json
import pickle

import pytest
import torch
from torch import nn

from dit8.kernels.backend import backend_name
from dit8.models import pipeline
from dit8.models.pipeline import Variant, build_variant, load_pipeline
from dit8.quant.architectures.ideogram4 import BRANCHES, architecture, branch_modules
from dit8.quant.checkpoint.read import open_sources
from dit8.quant.checkpoint.write import Origin, checkpoint_name, save_checkpoint
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.linear import Int8Linear, WeightOnlyLinear
from dit8.quant.recipe import resolve_recipe
from dit8.quant.rounding import round_weight
from dit8.quant.types import Recipe

CPU = torch.device("cpu")
DESCRIBED = architecture(2)
LINEARS = tuple(t for g in DESCRIBED.groups if g.role != "rest" for t in g.targets)
WEIGHT_ONLY = tuple(name for name, target in FORMATS.items() if target.codec is not None)


@pytest.fixture(scope="module")
def save(toy_folder, tmp_path_factory):
    """Return a function: format -> a checkpoint of the toy, plain W8A8 for the int8 formats."""
    made = {}

    def run(name):
        if name not in made:
            target, folder = FORMATS[name], tmp_path_factory.mktemp("checkpoints") / name
            with open_sources(toy_folder, DESCRIBED, BRANCHES) as sources:
                resolved = None
                if target.has_recipe:  # neither smoothing nor protection: no calibration
                    recipe = Recipe("naive", alpha=None, protect=0)
                    resolved = resolve_recipe(recipe, DESCRIBED, None, sources, model_key="toy")
                configs = {
                    branch: json.loads((toy_folder / subfolder / "config.json").read_text())
                    for branch, subfolder in BRANCHES.items()
                }
                origin = Origin("toy", "0" * 64, BRANCHES, configs)
                save_checkpoint(folder, target, sources, DESCRIBED, origin, resolved)
            made[name] = folder / checkpoint_name(target)
        return made[name]

    return run


@pytest.fixture
def build(toy_folder, save):
    def run(variant, path=None, model_key="toy"):
        if variant.needs_checkpoint and path is None:
            path = save(variant.format)
        return build_variant(
            variant,
            toy_folder,
            path,
            model_key=model_key,
            dtype="float32",
            companion_dtype="float32",
            device=CPU,
        )

    return run


def test_source_is_the_model_as_it_is(build, toy):
    pipeline = build(Variant("bf16", "source"))
    for branch, module in branch_modules(pipeline).items():
        stock = getattr(toy, BRANCHES[branch]).state_dict()
        assert module.state_dict().keys() == stock.keys()
        assert all(torch.equal(value, stock[name]) for name, value in module.state_dict().items())


def test_rounded_changes_the_block_linears_alone(build, toy):
    pipeline = build(Variant("round4", "rounded", bits=4))
    for branch, module in branch_modules(pipeline).items():
        for name, value in getattr(toy, BRANCHES[branch]).state_dict().items():
            linear = name.removesuffix(".weight")
            rounds = linear in LINEARS and linear != "llm_cond_proj"
            expected = round_weight(value, 4) if rounds else value
            assert torch.equal(module.state_dict()[name], expected)


@pytest.mark.parametrize("gemm", ["fake_quant", "fused"])
@pytest.mark.parametrize("name", ["w8a8", "comfy"])
def test_int8_multiplies_in_the_way_asked_for(build, name, gemm):
    pipeline = build(Variant("int8", name, gemm=gemm))
    for module in branch_modules(pipeline).values():
        for name in LINEARS:
            linear = module.get_submodule(name)
            assert type(linear) is Int8Linear and linear.gemm == gemm
        assert type(module.input_proj) is nn.Linear
    assert type(pipeline.text_encoder.language_model.layers[0].mlp.up_proj) is nn.Linear


def test_both_ways_agree_and_stay_near_the_source(build, toy, record_branches):
    plain = record_branches(toy)
    fake = record_branches(build(Variant("int8", "w8a8", gemm="fake_quant")))
    fused = record_branches(build(Variant("fused", "w8a8", gemm="fused")))
    for branch in BRANCHES:
        # the first call: later ones start from latents that differ already
        a, b, exact = (calls[branch][0].output for calls in (fake, fused, plain))
        # fp32 rounding, which moves a value over the middle between two codes now and then
        assert (a - b).norm() / exact.norm() < 5e-3
        for y in (a, b):
            # int8 moves these by about a percent; 0 would mean that nothing was swapped
            assert 1e-3 < (y - exact).norm() / exact.norm() < 5e-2


@pytest.mark.parametrize(
    ("name", "low", "high"),
    # measured 1.8-3.8 %, 14-21 %, 0.7-0.8 % and 1.3-2.6 % (the toy's widths of 64 and 128 leave
    # most linears out of Q4_K's blocks of 256), with room of three times either way
    [("fp8", 6e-3, 0.12), ("nf4", 5e-2, 0.6), ("q8_0", 2e-3, 2.4e-2), ("q4_k", 4e-3, 8e-2)],
)
def test_weight_only_variants_multiply_decoded_weights(
    build, toy, record_branches, name, low, high
):
    variant = Variant(name, name)
    pipeline = build(variant)
    table = FORMATS[name]
    for branch, module in branch_modules(pipeline).items():
        for group in DESCRIBED.groups:
            for target in group.targets:
                linear = module.get_submodule(target)
                n, k = getattr(toy, BRANCHES[branch]).get_submodule(target).weight.shape
                expected = WeightOnlyLinear if table.quantizes(group.role, n, k) else nn.Linear
                assert type(linear) is expected, (branch, target)
        assert not any(tensor.is_meta for tensor in module.state_dict().values())
    plain, made = record_branches(toy), record_branches(pipeline)
    for branch in BRANCHES:
        y, exact = made[branch][0].output, plain[branch][0].output
        assert low < (y - exact).norm() / exact.norm() < high
    assert variant.backend(CPU) == "torch-cpu" and not variant.has_recipe


def test_bf16_files_hold_the_weights_rounded_once(build, toy):
    pipeline = build(Variant("plain", "bf16"))
    for branch, module in branch_modules(pipeline).items():
        for name, value in getattr(toy, BRANCHES[branch]).state_dict().items():
            assert torch.equal(module.state_dict()[name], value.bfloat16().float()), name


def test_a_quantized_variant_reads_no_unquantized_branch(build, monkeypatch):
    """So the model's own weights never take memory beside the checkpoint's."""
    given = []

    def recorded(*args, **kwargs):
        given.append(kwargs["branches"])
        return load_pipeline(*args, **kwargs)

    monkeypatch.setattr(pipeline, "load_pipeline", recorded)
    for variant in (Variant("fp8", "fp8"), Variant("bf16", "source")):
        build(variant)
    assert given == [False, True]


def test_a_checkpoint_of_another_model_is_refused(build):
    with pytest.raises(UserError, match="made from model other, got model toy; quantize this mod"):
        build(Variant("int8", "w8a8", gemm="fused"), model_key="other")


def test_a_missing_checkpoint_is_one_sentence(build, tmp_path):
    with pytest.raises(UserError, match=r"none.safetensors"):
        build(Variant("int8", "w8a8", gemm="fused"), path=tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"format": "int4"}, "variant v: format must be one of source, rounded, w8a8.* 'int4'"),
        ({"format": "w8a8"}, "gemm goes with an int8 format and no other, got format 'w8a8' and"),
        ({"format": "comfy"}, "gemm goes with an int8 format and no other, got format 'comfy'"),
        ({"format": "fp8", "gemm": "fused"}, "gemm goes with an int8 format.* format 'fp8' and"),
        ({"format": "source", "gemm": "fused"}, "got format 'source' and gemm 'fused'"),
        ({"format": "rounded"}, "bits goes with format rounded and no other.* and bits None"),
        ({"format": "source", "bits": 4}, "got format 'source' and bits 4"),
    ],
)
def test_variants_that_make_no_sense_are_refused(fields, match):
    with pytest.raises(UserError, match=match):
        Variant("v", **fields)


def test_a_gpu_that_is_too_small_is_one_sentence(toy_folder, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pipeline, "load_pipeline", fail)
    keys = {"model_key": "0", "dtype": "float32", "companion_dtype": "float32", "device": CPU}
    match = "variant bf16, with text encoder and VAE, needs more GPU .* smaller weights, or h"
    with pytest.raises(UserError, match=match):
        build_variant(Variant("bf16", "source"), toy_folder, None, **keys)


def test_backend_names_what_multiplies():
    assert Variant("bf16", "source").backend(CPU) == "torch-cpu"
    assert Variant("int8", "w8a8", gemm="fake_quant").backend(CPU) == "torch-cpu"
    assert Variant("fused", "w8a8", gemm="fused").backend(CPU) == backend_name(CPU)
    assert Variant("bf16", "source").backend(torch.device("cuda")) == "torch-cuda"


def test_recipes_belong_to_the_int8_formats():
    assert Variant("int8", "w8a8", gemm="fused").has_recipe
    assert Variant("comfy", "comfy", gemm="fused").has_recipe
    assert not Variant("bf16", "source").needs_checkpoint
    assert not Variant("rtn4", "rounded", bits=4).needs_checkpoint
    for name in (*WEIGHT_ONLY, "bf16"):
        assert Variant(name, name).needs_checkpoint and not Variant(name, name).has_recipe


@pytest.mark.parametrize("name", ["w8a8", "fp8"])
def test_a_quantized_pipeline_is_not_saved_not_even_in_part(build, tmp_path, name):
    pipeline = build(Variant("x", name, "fused" if name == "w8a8" else None))
    branch = pipeline.transformer
    linears = r"got (Int8|WeightOnly)Linear,.*python scripts/quantize\.py .*load_quantized reads"
    holders = (pipeline, pipeline.unconditional_transformer, branch, copy.copy(pipeline))
    saves = [holder.save_pretrained for holder in (*holders, copy.copy(branch))]
    for save in (*saves, pickle.loads(pickle.dumps(branch.save_pretrained))):
        with pytest.raises(UserError, match=linears):
            save(tmp_path / "folder", max_shard_size="1GB")
    assert not list(tmp_path.iterdir())


def test_a_pipeline_of_stock_linears_is_saved(build, tmp_path):
    build(Variant("bf16", "bf16")).save_pretrained(tmp_path / "folder")
    again = load_pipeline(tmp_path / "folder", "float32", "float32", CPU)
    for name, value in build(Variant("bf16", "bf16")).transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[name], value)
