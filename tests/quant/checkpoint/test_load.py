import functools

import pytest
import torch
from torch import nn

from dit8.quant.calibrate import calibrate
from dit8.quant.checkpoint.load import load_quantized
from dit8.quant.checkpoint.read import MemorySource
from dit8.quant.checkpoint.stored import open_checkpoint
from dit8.quant.formats import w8a8
from dit8.quant.linear import Int8Linear, WeightOnlyLinear
from dit8.quant.outliers import plant_outliers

BRANCHES = {"conditional": "transformer", "unconditional": "unconditional_transformer"}
QKV = "layers.0.attention.qkv"
PLAIN = {"alpha": None, "protect": 0}
# case -> format, recipe, and the largest relative error of the output. A step of 8 bits is 1/127
# of the largest value of its row, which moves a weight by 0.4 % and an activation by 0.7 %. The
# residual, adaLN and input carry most of the output past these linears, so 0.2 to 0.5 % arrive, in
# bf16 with 0.4 % of its own rounding; the bounds are about twice that. One scale for all rows is
# coarser, and in "everything" and NF4 the linears nothing runs past are quantized too. FP8 moves
# a weight by 2.6 %, NF4 by 8 %, Q4_K by 6 %, but only the down-projections, see below.
CASES = {
    "folded": ("w8a8", {}, 0.01),
    "explicit": ("w8a8", {"smoothing_carrier": "explicit"}, 0.01),
    "naive": ("w8a8", PLAIN, 0.01),
    "rotated": ("w8a8", {"rotation": 256, **PLAIN}, 0.01),
    "per_tensor": ("w8a8", {"activation_scale": "tensor", **PLAIN}, 0.015),
    "everything": ("w8a8", {"quantize_rest": True}, 0.02),
    "comfy": ("comfy", PLAIN, 0.01),
    "comfy_folded": ("comfy", {}, 0.01),
    "comfy_rotated": ("comfy", {"rotation": 64, **PLAIN}, 0.01),
    "fp8": ("fp8", {}, 0.016),
    "nf4": ("nf4", {}, 0.16),
    "q8_0": ("q8_0", {}, 0.012),
    "q4_k": ("q4_k", {}, 0.015),
    "bf16": ("bf16", {}, 0.005),
}
PACKAGES = {"nf4": "bitsandbytes", "q8_0": "gguf", "q4_k": "gguf"}


@pytest.fixture(scope="module")
def save(tiny, tiny_stats, tmp_path_factory):
    """Write a case once; whoever asks again only reads."""

    @functools.cache
    def save_case(case, dtype=torch.float32):
        format, fields, _ = CASES[case]
        if format in PACKAGES:
            pytest.importorskip(PACKAGES[format])
        sources, folder = tiny.make_sources(dtype), tmp_path_factory.mktemp("saved")
        return tiny.save(folder / case, tiny_stats, format=format, sources=sources, **fields)

    return save_case


def outputs(tiny, pipeline):
    return tiny.run_branch(pipeline.transformer), tiny.run_branch(
        pipeline.unconditional_transformer, has_text=False
    )


def errors(tiny, pipeline, reference):
    pairs = zip(outputs(tiny, pipeline), outputs(tiny, reference), strict=True)
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def stored_tensors(path):
    with open_checkpoint(path, BRANCHES) as stored:
        return {
            branch: {name: found.read(name) for name in found.specs}
            for branch, found in stored.branches.items()
        }


def same_bytes(a, b):
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_every_format_loads_and_stays_near_the_unquantized(tiny, save, case, dtype):
    pipeline = tiny.make_pipeline(dtype)
    assert load_quantized(pipeline, save(case, dtype), model_key="tiny") is pipeline
    assert all(y.dtype == dtype for y in outputs(tiny, pipeline))
    found = errors(tiny, pipeline, tiny.make_pipeline(dtype))
    for error in found:
        assert error < CASES[case][2]
        # below that nothing was quantized; a bf16 model in bf16 is the model
        assert (error > 1e-3) == (case != "bf16" or dtype == torch.float32)


def linears_on_disk(architecture, tensors):
    """Yield (modules, suffix -> tensor) of every linear, stacked or not."""
    for stored in architecture.stored:
        names = {stored.name: stored.parts}
        if not any(name.startswith(f"{stored.name}.") for name in tensors):
            names = {part: (part,) for part in stored.parts}
        for name, parts in names.items():
            yield (
                parts,
                {
                    key.removeprefix(name): tensor
                    for key, tensor in tensors.items()
                    if key.startswith(f"{name}.")
                },
            )


@pytest.mark.parametrize("case", CASES)
def test_modules_hold_what_is_in_the_file_bit_for_bit(tiny, save, case):
    path = save(case)
    pipeline = load_quantized(tiny.make_pipeline(), path)
    tensors = stored_tensors(path)
    quantized = 0
    for branch, module in tiny.branch_modules(pipeline).items():
        for parts, own in linears_on_disk(tiny.architecture, tensors[branch]):
            modules = [module.get_submodule(part) for part in parts]
            first = modules[0]
            if ".bias" in own:
                assert torch.equal(torch.cat([m.bias for m in modules]), own.pop(".bias").float())
            else:
                assert first.bias is None
            if type(first) is Int8Linear:
                quantized += 1
                rotation = CASES[case][1].get("rotation", 0)
                if ".comfy_quant" in own:
                    weight = w8a8.decode_comfy(own)
                    own = {".wq": weight.codes, ".ws": weight.scales}
                    assert first.rotation == weight.rotation
                assert bool(first.rotation) == bool(rotation)
                for m in modules:  # q, k and v share these
                    for suffix, buffer in ((".smooth", m.smooth), (".x_scale", m.x_scale)):
                        assert (buffer is None) == (suffix not in own)
                        assert buffer is None or torch.equal(buffer, own[suffix])
                assert torch.equal(torch.cat([m.wq for m in modules]), own[".wq"])
                assert torch.equal(torch.cat([m.ws for m in modules]), own[".ws"])
            elif type(first) is WeightOnlyLinear:
                quantized += 1
                assert own.keys() == first.tensors.keys()
                for suffix, tensor in own.items():
                    if "quant_" not in suffix:  # levels and JSON of NF4 belong to every part
                        parts_of_it = torch.cat([m.tensors[suffix] for m in modules])
                        assert same_bytes(parts_of_it, tensor)
                decoded = first.codec.decode(own, torch.float32)
                made = [m.codec.decode(m.tensors, torch.float32) for m in modules]
                assert torch.equal(torch.cat(made), decoded)
            else:
                assert own.keys() == {".weight"}
                assert torch.equal(torch.cat([m.weight for m in modules]), own[".weight"].float())
        names = {f"{name}.weight" for name in tiny.architecture.linears}
        for name, parameter in module.named_parameters():
            if name not in names and not name.endswith(".bias"):
                assert torch.equal(parameter, tensors[branch][name].float())
    assert (quantized > 0) == (case != "bf16")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pipeline_without_weights_becomes_the_same(tiny, save, case, dtype):
    path = save(case, dtype)
    empty = tiny.make_pipeline(dtype)
    for module in (m for branch in vars(empty).values() for m in branch.modules()):
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(value.to("meta")))
    load_quantized(empty, path)
    full = load_quantized(tiny.make_pipeline(dtype), path)
    for a, b in zip(outputs(tiny, empty), outputs(tiny, full), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", ["folded", "explicit", "rotated", "per_tensor", "comfy_rotated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_paths_agree(tiny, save, case, dtype):
    path = save(case, dtype)
    plain = outputs(tiny, tiny.make_pipeline(dtype))
    fused = outputs(tiny, load_quantized(tiny.make_pipeline(dtype), path))
    fake = outputs(tiny, load_quantized(tiny.make_pipeline(dtype), path, "fake_quant"))
    # One linear's paths differ by fp32 or bf16 rounding (test_linear); where that moves a value
    # over the middle between two codes of a later layer it becomes a whole code, rarely. In bf16
    # the dequantized operands carry 8 bits, as coarse as the codes themselves.
    between = {torch.float32: 5e-3, torch.bfloat16: 3e-2}[dtype]
    for a, b, exact in zip(fused, fake, plain, strict=True):
        assert (a - b).norm() / exact.norm() < between


def test_folded_and_explicit_differ_only_by_the_snapping(tiny, save):
    explicit = load_quantized(tiny.make_pipeline(), save("explicit"))
    folded = load_quantized(tiny.make_pipeline(), save("folded"))
    layer = explicit.transformer.layers[0]
    assert layer.attention.to_q.smooth is not None
    assert folded.transformer.layers[0].attention.to_q.smooth is None
    assert torch.equal(layer.feed_forward.w1.smooth, layer.feed_forward.w3.smooth)
    for error in errors(tiny, explicit, folded):
        assert 0 < error < 3e-2


def test_protected_and_unlisted_linears_stay_stock(tiny, save):
    path = save("folded")
    with open_checkpoint(path, BRANCHES) as stored:
        protected = stored.resolved.protected
    pipeline = load_quantized(tiny.make_pipeline(), path)
    for branch, module in tiny.branch_modules(pipeline).items():
        kept = {name for name in protected if name.startswith(f"{branch}.")}
        assert len(kept) == 1  # half of two layers
        for group in tiny.architecture.groups:
            for name in group.targets:
                is_stock = group.role == "rest" or f"{branch}.{name}" in kept
                linear = module.get_submodule(name)
                assert type(linear) is (nn.Linear if is_stock else Int8Linear)


def test_kept_linears_load_with_the_scale_they_absorbed(tiny, tiny_stats, tmp_path):
    names = (f"conditional.{QKV}", "conditional.layers.0.feed_forward.w1")
    path = tiny.save(tmp_path / "x", tiny_stats, keep=names, quantize_text=False)
    plain, pipeline = tiny.make_pipeline(), load_quantized(tiny.make_pipeline(), path)
    stored = stored_tensors(path)["conditional"]
    before, block = plain.transformer.layers[0], pipeline.transformer.layers[0]
    heads = [getattr(block.attention, f"to_{letter}") for letter in "qkv"]
    # v's rows feed the int8 output projection and w3's the int8 w2: both absorb
    stock = (
        *heads,
        block.feed_forward.w1,
        block.feed_forward.w3,
        pipeline.transformer.llm_cond_proj,
    )
    assert all(type(linear) is nn.Linear for linear in stock)
    assert torch.equal(torch.cat([head.weight for head in heads]), stored[f"{QKV}.weight"])
    assert torch.equal(heads[0].weight, before.attention.to_q.weight)
    assert not torch.equal(heads[2].weight, before.attention.to_v.weight)
    assert torch.equal(block.feed_forward.w1.weight, before.feed_forward.w1.weight)
    for error in errors(tiny, pipeline, plain):
        assert 1e-4 < error < 3e-2


@pytest.mark.parametrize("case", ["folded", "fp8", "q8_0"])
def test_values_go_to_the_dtype_of_the_pipeline(tiny, save, case):
    path = save(case, torch.bfloat16)  # GGUF keeps the rest in fp32
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = tiny.make_pipeline(torch.bfloat16)
        for module in tiny.branch_modules(pipeline).values():
            module.to(dtype)
        load_quantized(pipeline, path)
        assert pipeline.transformer.dtype == dtype
        assert pipeline.transformer.layers[0].attention_norm1.weight.dtype == dtype
        assert pipeline.transformer.llm_cond_proj.bias.dtype == dtype
        assert tiny.run_branch(pipeline.transformer).dtype == dtype


def test_q4_k_leaves_rows_that_are_no_whole_blocks_alone(tiny, save):
    """Blocks have 256 values; only the down-projections have such rows here."""
    path = save("q4_k")
    tensors = stored_tensors(path)["conditional"]
    module = load_quantized(tiny.make_pipeline(), path).transformer
    assert tensors["layers.0.feed_forward.w2.weight"].dtype == torch.uint8
    assert tensors["layers.0.feed_forward.w1.weight"].dtype == torch.float32
    assert type(module.layers[0].feed_forward.w2) is WeightOnlyLinear
    assert type(module.layers[0].feed_forward.w1) is nn.Linear
    plain = tiny.make_pipeline().transformer.layers[0].feed_forward
    assert torch.equal(module.layers[0].feed_forward.w1.weight, plain.w1.weight)


def test_planted_outliers_are_repaired_by_smoothing(tiny, tmp_path):
    """Planted outliers hurt naive W8A8; smoothing takes it back."""

    def planted_pipeline():
        pipeline = tiny.make_pipeline()
        for module in tiny.branch_modules(pipeline).values():
            module.load_state_dict(plant_outliers(module.state_dict(), tiny.architecture, 0)[0])
        return pipeline

    source = planted_pipeline()
    modules = tiny.branch_modules(source)
    stats = calibrate(
        modules,
        tiny.architecture,
        lambda prompt: tiny.run_steps(source, prompt),
        tiny.prompts,
        tmp_path / "stats.safetensors",
        model_key="planted",
        prompts_key="abc",
    )
    sources = {branch: MemorySource(module.state_dict()) for branch, module in modules.items()}
    worst = {}
    for name, fields in {
        "naive": {"alpha": None},
        "folded": {},
        "explicit": {"smoothing_carrier": "explicit"},
    }.items():
        path = tiny.save(
            tmp_path / name, stats, sources=sources, model_key="planted", protect=0, **fields
        )
        loaded = load_quantized(planted_pipeline(), path, model_key="planted")
        worst[name] = max(errors(tiny, loaded, source))
    assert worst["folded"] < 0.5 * worst["naive"]
    assert worst["explicit"] < 0.5 * worst["naive"]
