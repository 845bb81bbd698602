import dataclasses

import pytest
import torch
from torch import nn

from quant.calibrate import calibrate
from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.errors import UserError
from quant.linear import Int8Linear
from quant.load import load_quantized
from quant.plant import plant_outliers
from quant.quantize import quantize_branch
from quant.recipe import resolve_recipe
from quant.types import Recipe

QKV = "layers.0.attention.qkv"


@pytest.fixture
def make_checkpoint(tiny, tiny_stats, tmp_path):
    def make(edit=lambda *_: None, dtype=torch.float32, also_protect=(), **fields):
        modules = tiny.branch_modules(tiny.make_pipeline(dtype))
        states = {branch: module.state_dict() for branch, module in modules.items()}
        resolved = resolve_recipe(
            Recipe("test", **fields), tiny.architecture, tiny_stats, states, model_key="tiny"
        )
        resolved = dataclasses.replace(resolved, protected=(*resolved.protected, *also_protect))
        branches = {
            branch: dict(
                quantize_branch(state, tiny.architecture, branch, resolved, tiny_stats).tensors
            )
            for branch, state in states.items()
        }
        path = tmp_path / "w8a8.safetensors"
        save_checkpoint(path, branches, edit(branches, resolved) or resolved, source_sha256="0")
        return path

    return make


def outputs(tiny, pipeline):
    return tiny.run_branch(pipeline.transformer), tiny.run_branch(
        pipeline.unconditional_transformer, has_text=False
    )


@pytest.mark.parametrize("carrier", ["folded", "explicit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_paths_agree_and_stay_near_the_unquantized(tiny, make_checkpoint, carrier, dtype):
    path = make_checkpoint(smoothing_carrier=carrier, dtype=dtype)
    plain = outputs(tiny, tiny.make_pipeline(dtype))
    fused = outputs(tiny, load_quantized(tiny.make_pipeline(dtype), path))
    fake = outputs(tiny, load_quantized(tiny.make_pipeline(dtype), path, "fake_quant"))
    # One linear's paths differ by fp32 or bf16 rounding (test_linear); where that moves a value
    # over the middle between two codes of a later layer it becomes a whole code, rarely. In bf16
    # the dequantized operands carry 8 bits, as coarse as the codes themselves.
    between = {torch.float32: 5e-3, torch.bfloat16: 3e-2}[dtype]
    for a, b, exact in zip(fused, fake, plain, strict=True):
        assert a.dtype == dtype
        assert (a - b).norm() / exact.norm() < between
        for y in (a, b):
            assert 1e-3 < (y - exact).norm() / exact.norm() < 5e-2


def test_swapped_and_protected_modules(tiny, make_checkpoint):
    path = make_checkpoint()
    stored = load_checkpoint(path)
    pipeline = tiny.make_pipeline()
    assert load_quantized(pipeline, path) is pipeline
    for branch, module in tiny.branch_modules(pipeline).items():
        kept = {name for name in stored.resolved.protected if name.startswith(f"{branch}.")}
        assert len(kept) == 1
        for name in tiny.architecture.linears:
            linear = module.get_submodule(name)
            assert type(linear) is (nn.Linear if f"{branch}.{name}" in kept else Int8Linear)
        assert type(module.input_proj) is nn.Linear
        assert type(module.layers[0].adaln_modulation) is nn.Linear
        tensors = stored.branches[branch]
        parts = [module.get_submodule(f"layers.0.attention.to_{letter}") for letter in "qkv"]
        assert torch.equal(torch.cat([part.wq for part in parts]), tensors[f"{QKV}.wq"])
        assert torch.equal(torch.cat([part.ws for part in parts]), tensors[f"{QKV}.ws"])
        norm = "layers.0.attention_norm1.weight"
        assert torch.equal(module.state_dict()[norm], tensors[norm])


def test_folded_and_explicit_differ_only_by_the_snapping(tiny, make_checkpoint):
    explicit = tiny.make_pipeline()
    load_quantized(explicit, make_checkpoint(smoothing_carrier="explicit"))
    folded = load_quantized(tiny.make_pipeline(), make_checkpoint(smoothing_carrier="folded"))
    layer = explicit.transformer.layers[0]
    assert layer.attention.to_q.smooth is not None
    assert folded.transformer.layers[0].attention.to_q.smooth is None
    assert torch.equal(layer.feed_forward.w1.smooth, layer.feed_forward.w3.smooth)
    for a, b in zip(outputs(tiny, explicit), outputs(tiny, folded), strict=True):
        assert 0 < (a - b).norm() / a.norm() < 3e-2


def test_unquantized_linears_load_with_the_scale_they_absorbed(tiny, make_checkpoint):
    names = [f"conditional.{QKV}", "conditional.layers.0.feed_forward.w1"]
    path = make_checkpoint(also_protect=names, quantize_llm_projection=False)
    stored = load_checkpoint(path).branches["conditional"]
    plain, pipeline = tiny.make_pipeline(), load_quantized(tiny.make_pipeline(), path)
    before, block = plain.transformer.layers[0], pipeline.transformer.layers[0]
    heads = [getattr(block.attention, f"to_{letter}") for letter in "qkv"]
    # v's rows feed the int8 output projection and w1 shares the norm of the int8 w3: both absorb
    assert all(type(linear) is nn.Linear for linear in (*heads, block.feed_forward.w1))
    assert torch.equal(torch.cat([head.weight for head in heads]), stored[f"{QKV}.weight"])
    assert torch.equal(heads[0].weight, before.attention.to_q.weight)
    assert not torch.equal(heads[2].weight, before.attention.to_v.weight)
    assert not torch.equal(block.feed_forward.w1.weight, before.feed_forward.w1.weight)
    assert type(pipeline.transformer.llm_cond_proj) is nn.Linear
    for a, b in zip(outputs(tiny, pipeline), outputs(tiny, plain), strict=True):
        assert 1e-4 < (a - b).norm() / b.norm() < 3e-2


def test_values_go_to_the_dtype_of_the_pipeline(tiny, make_checkpoint):
    path = make_checkpoint(dtype=torch.bfloat16)  # as stored: bf16
    pipeline = tiny.make_pipeline(torch.bfloat16)
    for module in tiny.branch_modules(pipeline).values():
        module.to(torch.float32)
    load_quantized(pipeline, path)
    assert pipeline.transformer.dtype == torch.float32
    assert pipeline.transformer.layers[0].attention_norm1.weight.dtype == torch.float32
    assert pipeline.transformer.llm_cond_proj.bias.dtype == torch.float32
    assert tiny.run_branch(pipeline.transformer).dtype == torch.float32


def drop(name):
    def edit(branches, _):
        del branches["unconditional"][name]

    return edit


def put(name, tensor):
    return lambda branches, _: branches["unconditional"].update({name: tensor})


def change(name, how):
    def edit(branches, _):
        branches["unconditional"][name] = how(branches["unconditional"][name])

    return edit


def rename_branch(branches, _):
    branches["other"] = branches.pop("unconditional")


def with_nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[-1] = torch.nan
    return tensor


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop(f"{QKV}.ws"), rf"misses 1 of \d+ tensors, first '{QKV}.ws'"),
        (drop("layers.1.ffn_norm2.weight"), "first 'layers.1.ffn_norm2.weight'"),
        (put("layers.0.extra.weight", torch.ones(1)), "1 tensors too many, first 'layers.0.extra"),
        (put(f"{QKV}.smooth", torch.ones(128)), f"too many, first '{QKV}.smooth'"),
        (
            change(f"{QKV}.wq", lambda t: t[:-1]),
            rf"'{QKV}.wq' in .*\(unconditional\) must be \(384, 128\) int8, got \(383, 128\) int8",
        ),
        (change(f"{QKV}.wq", lambda t: t.float()), r"must be .* int8, got \(384, 128\) float32"),
        (change(f"{QKV}.ws", with_nan), f"'{QKV}.ws' in .* must be finite, got NaN"),
        (change("input_proj.weight", with_nan), "'input_proj.weight' in .* must be finite"),
        (change(f"{QKV}.ws", torch.neg), f"'{QKV}.ws' in .* must be positive, got -"),
        (
            change("final_layer.linear.weight", lambda t: t + 1),
            "is of another model: 'final_layer.linear.weight' must equal the pipeline's",
        ),
        (
            rename_branch,
            "must hold the branches conditional, unconditional, got conditional, other",
        ),
        (
            lambda _, resolved: dataclasses.replace(resolved, protected=()),
            "misses 2 of .* tensors, first 'layers.[01].feed_forward.w2.wq'",
        ),
    ],
)
def test_a_wrong_checkpoint_is_refused_and_changes_nothing(tiny, make_checkpoint, edit, message):
    path = make_checkpoint(edit)
    pipeline = tiny.make_pipeline()
    before = outputs(tiny, pipeline)
    with pytest.raises(UserError, match=message):
        load_quantized(pipeline, path)
    for module in tiny.branch_modules(pipeline).values():
        assert not [child for child in module.modules() if isinstance(child, Int8Linear)]
    for a, b in zip(before, outputs(tiny, pipeline), strict=True):
        assert torch.equal(a, b)


def test_refuses_another_model_by_key_and_by_shape(tiny, make_checkpoint):
    path = make_checkpoint()
    with pytest.raises(UserError, match="must be made from model planted, got model tiny"):
        load_quantized(tiny.make_pipeline(), path, model_key="planted")
    load_quantized(tiny.make_pipeline(), path, model_key="tiny")
    smaller = tiny.make_pipeline()
    del smaller.transformer.layers[1]
    with pytest.raises(UserError, match="tensors too many, first 'layers.1"):
        load_quantized(smaller, path)


def test_refuses_a_pipeline_already_quantized_and_an_unknown_path(tiny, make_checkpoint):
    path = make_checkpoint()
    pipeline = load_quantized(tiny.make_pipeline(), path)
    with pytest.raises(UserError, match="got Int8Linear; load the unquantized model first"):
        load_quantized(pipeline, path)
    with pytest.raises(UserError, match="gemm must be one of fused, fake_quant, got 'int4'"):
        load_quantized(tiny.make_pipeline(), path, "int4")


def test_planted_outliers_are_repaired_by_smoothing(tiny, tmp_path):
    """The ladder on one branch: planted outliers hurt naive W8A8, smoothing takes it back."""

    def planted_pipeline():
        pipeline = tiny.make_pipeline()
        for module in tiny.branch_modules(pipeline).values():
            module.load_state_dict(plant_outliers(module.state_dict(), tiny.architecture, 0)[0])
        return pipeline

    source = planted_pipeline()
    stats = calibrate(
        tiny.branch_modules(source),
        tiny.architecture,
        lambda prompt: tiny.run_steps(source, prompt),
        tiny.prompts,
        tmp_path / "stats.safetensors",
        model_key="planted",
        prompts_key="abc",
    )
    states = {branch: module.state_dict() for branch, module in tiny.branch_modules(source).items()}
    exact, errors = outputs(tiny, source), {}
    for name, alpha in (("naive", None), ("smoothed", 0.5)):
        recipe = Recipe(name, alpha=alpha, protect=0)
        resolved = resolve_recipe(recipe, tiny.architecture, stats, states, model_key="planted")
        branches = {
            branch: quantize_branch(state, tiny.architecture, branch, resolved, stats).tensors
            for branch, state in states.items()
        }
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, branches, resolved, source_sha256="0")
        got = outputs(tiny, load_quantized(planted_pipeline(), path, model_key="planted"))
        errors[name] = max(
            float((a - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)
        )
    assert errors["smoothed"] < 0.5 * errors["naive"]
