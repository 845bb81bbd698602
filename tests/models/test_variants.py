import pytest
import torch
from torch import nn

from kernels.backend import backend_name
from models.ideogram4 import BRANCHES, architecture, branch_modules
from models.variants import Variant, build_variant
from quant.checkpoint import save_checkpoint
from quant.errors import UserError
from quant.linear import Int8Linear
from quant.quantize import quantize_branch
from quant.recipe import resolve_recipe
from quant.rounding import round_weight
from quant.types import Recipe

CPU = torch.device("cpu")
LINEARS = architecture(2).linears


@pytest.fixture(scope="module")
def checkpoint(toy, tmp_path_factory):
    """The toy without smoothing or protection, which needs no calibration."""
    states = {branch: module.state_dict() for branch, module in branch_modules(toy).items()}
    described = architecture(2)
    recipe = Recipe("naive", alpha=None, protect=0)
    resolved = resolve_recipe(recipe, described, None, states, model_key="toy")
    branches = {
        branch: quantize_branch(state, described, branch, resolved, None).tensors
        for branch, state in states.items()
    }
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, branches, resolved, source_sha256="0")
    return path


@pytest.fixture
def build(toy_folder, checkpoint):
    def run(variant, path=checkpoint, model_key="toy"):
        return build_variant(
            variant,
            toy_folder,
            path if variant.needs_checkpoint else None,
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
def test_w8a8_multiplies_in_the_way_asked_for(build, gemm):
    pipeline = build(Variant("int8", "w8a8", gemm=gemm))
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


def test_a_checkpoint_of_another_model_is_refused(build):
    with pytest.raises(UserError, match="made from model other, got model toy; quantize this mod"):
        build(Variant("int8", "w8a8", gemm="fused"), model_key="other")


def test_a_missing_checkpoint_is_one_sentence(build, tmp_path):
    with pytest.raises(UserError, match=r"none.safetensors"):
        build(Variant("int8", "w8a8", gemm="fused"), path=tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"format": "int4"}, "variant v: format must be one of source, w8a8, rounded, got 'int4'"),
        ({"format": "w8a8"}, "gemm goes with format w8a8 and no other, got format 'w8a8' and gemm"),
        ({"format": "source", "gemm": "fused"}, "got format 'source' and gemm 'fused'"),
        ({"format": "rounded"}, "bits goes with format rounded and no other.* and bits None"),
        ({"format": "source", "bits": 4}, "got format 'source' and bits 4"),
    ],
)
def test_variants_that_make_no_sense_are_refused(fields, match):
    with pytest.raises(UserError, match=match):
        Variant("v", **fields)


def test_backend_names_what_multiplies():
    assert Variant("bf16", "source").backend(CPU) == "torch-cpu"
    assert Variant("int8", "w8a8", gemm="fake_quant").backend(CPU) == "torch-cpu"
    assert Variant("fused", "w8a8", gemm="fused").backend(CPU) == backend_name(CPU)
    assert Variant("bf16", "source").backend(torch.device("cuda")) == "torch-cuda"
