"""Files as others publish them, made here without any writer of this project."""

import json

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import nn

from dit8.quant.checkpoint.load import load_quantized
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.int8 import quantize_weight
from dit8.quant.linear import Int8Linear, WeightOnlyLinear

SUBFOLDERS = {"conditional": "transformer", "unconditional": "unconditional_transformer"}
FP8_MAX = 448.0


def is_quantized(name):
    """Tell the linears that the published files quantize: the blocks' and the text projection."""
    return "attention.to_" in name or "feed_forward" in name or name.startswith("llm_cond_proj")


def states(tiny, dtype=torch.bfloat16):
    modules = tiny.branch_modules(tiny.make_pipeline(dtype))
    return {branch: module.state_dict() for branch, module in modules.items()}


def original_names(state):
    """Stack q, k and v and rename the output projection."""
    made = {}
    for name, tensor in state.items():
        if ".to_q." in name:
            parts = [state[name.replace("to_q", f"to_{letter}")] for letter in "qkv"]
            made[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".to_out.0." in name:
            made[name.replace("to_out.0", "o")] = tensor
        elif ".to_k." not in name and ".to_v." not in name:
            made[name] = tensor
    return made


def quantized_names(state):
    return [
        name.removesuffix(".weight")
        for name, tensor in state.items()
        if name.endswith(".weight")
        and tensor.ndim == 2
        and is_quantized(name.replace(".qkv", ".to_q").replace(".attention.o", ".attention.to_o"))
    ]


def with_fp8(state):
    made = dict(state)
    for name in quantized_names(state):
        weight = state[f"{name}.weight"].float()
        scale = weight.abs().amax(dim=1) / FP8_MAX
        made[f"{name}.weight"] = (weight / scale[:, None]).to(torch.float8_e4m3fn)
        made[f"{name}.weight_scale"] = scale
    return made


def with_w8a8(state, smooth_of):
    made = {}
    quantized = quantized_names(state)
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module not in quantized or kind == "bias":
            made[name] = tensor
            continue
        smooth = smooth_of(tensor)
        codes, scales = quantize_weight(tensor.float() * smooth)
        made |= {f"{module}.wq": codes, f"{module}.ws": scales, f"{module}.smooth": smooth}
    return made


def sharded(tensors, folder):
    folder.mkdir(parents=True)
    names, weight_map = sorted(tensors), {}
    for index, chunk in enumerate((names[::2], names[1::2]), start=1):
        shard = f"diffusion_pytorch_model-0000{index}-of-00002.safetensors"
        save_file({name: tensors[name].contiguous() for name in chunk}, folder / shard)
        weight_map |= dict.fromkeys(chunk, shard)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def one_file(branches, path):
    save_file(
        {f"{b}.{n}": t.clone() for b, tensors in branches.items() for n, t in tensors.items()},
        path,
    )


def outputs(tiny, pipeline):
    return tiny.run_branch(pipeline.transformer), tiny.run_branch(
        pipeline.unconditional_transformer, has_text=False
    )


def check_near(tiny, pipeline, bound, dtype=torch.bfloat16):
    plain = tiny.make_pipeline(dtype)
    for a, b in zip(outputs(tiny, pipeline), outputs(tiny, plain), strict=True):
        assert 1e-3 < (a - b).norm() / b.norm() < bound


def draw_scale(weight):
    """Draw a smoothing scale from 1/2 to 2 for every column."""
    generator = torch.Generator().manual_seed(weight.shape[1])
    return torch.exp2(torch.rand(weight.shape[1], generator=generator) * 2 - 1)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("container", ["file", "shards"])
@pytest.mark.parametrize("is_empty", [False, True])
def test_official_fp8(tiny, tmp_path, layout, container, is_empty):
    rename = original_names if layout == "original" else dict
    made = {branch: with_fp8(rename(state)) for branch, state in states(tiny).items()}
    path = tmp_path / "fp8"
    if container == "shards":
        for branch, tensors in made.items():
            sharded(tensors, path / SUBFOLDERS[branch])
    else:
        path = tmp_path / "fp8.safetensors"
        one_file(made, path)
    if is_empty:
        with init_empty_weights():
            pipeline = tiny.make_pipeline(torch.bfloat16)
    else:
        pipeline = tiny.make_pipeline(torch.bfloat16)
    load_quantized(pipeline, path)
    attention = pipeline.transformer.layers[0].attention
    for linear, letter in zip((attention.to_q, attention.to_k, attention.to_v), "qkv", strict=True):
        own = with_fp8(states(tiny)["conditional"])
        name = f"layers.0.attention.to_{letter}.weight"
        assert torch.equal(linear.tensors[".weight"].float(), own[name].float())
        assert torch.equal(linear.tensors[".weight_scale"], own[f"{name}_scale"])
    assert type(pipeline.transformer.layers[0].adaln_modulation) is nn.Linear
    # three bits of mantissa move a weight by 2.6 %; the residual carries two thirds past that
    check_near(tiny, pipeline, 0.016)


@pytest.mark.parametrize("is_empty", [False, True])
def test_published_w8a8_with_smooth_as_the_divisor(tiny, tmp_path, is_empty):
    path = tmp_path / "w8a8.safetensors"
    made = {b: with_w8a8(original_names(state), draw_scale) for b, state in states(tiny).items()}
    one_file(made, path)
    if is_empty:
        with init_empty_weights():
            pipeline = tiny.make_pipeline(torch.bfloat16)
    else:
        pipeline = tiny.make_pipeline(torch.bfloat16)
    load_quantized(pipeline, path)
    to_k = pipeline.transformer.layers[1].attention.to_k
    assert type(to_k) is Int8Linear
    own = made["conditional"]
    assert torch.equal(to_k.wq, own["layers.1.attention.qkv.wq"][128:256])
    assert torch.equal(to_k.ws, own["layers.1.attention.qkv.ws"][128:256])
    assert torch.equal(to_k.smooth, own["layers.1.attention.qkv.smooth"])
    # 1 % from the activation, as much from the weight and from bf16; half of it reaches the output
    check_near(tiny, pipeline, 0.015)


def test_inverted_smooth_is_refused(tiny, tmp_path):
    """The same codes with 1 / s beside them: what a file with factors would look like."""
    path = tmp_path / "w8a8.safetensors"
    one_file({b: with_w8a8(original_names(s), draw_scale) for b, s in states(tiny).items()}, path)
    tensors = load_file(path)
    tensors = {n: 1 / t if n.endswith(".smooth") else t for n, t in tensors.items()}
    save_file(tensors, path)
    pipeline = tiny.make_pipeline(torch.bfloat16)
    with pytest.raises(
        UserError,
        match=r"layers.0.attention.to_q in .*\(conditional\) must approximate the pipeline's "
        r"weight .*relative difference of .*opposite reading: 0.0.*; invert the vectors",
    ):
        load_quantized(pipeline, path)
    assert type(pipeline.transformer.layers[0].attention.to_q) is nn.Linear


def test_codes_of_another_model_are_refused(tiny, tmp_path):
    path = tmp_path / "w8a8.safetensors"
    made = {b: with_w8a8(original_names(s), draw_scale) for b, s in states(tiny).items()}
    made["conditional"]["layers.0.feed_forward.w1.wq"] = made["conditional"][
        "layers.0.feed_forward.w3.wq"
    ]
    one_file(made, path)
    with pytest.raises(UserError, match="feed_forward.w1 in .*; quantize this model again"):
        load_quantized(tiny.make_pipeline(torch.bfloat16), path)


def test_nf4_of_bitsandbytes_itself(tiny, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for branch, state in states(tiny).items():
        made = {}
        for name, tensor in state.items():
            module, _, kind = name.rpartition(".")
            if kind != "weight" or not is_quantized(name) or tensor.shape[1] % 64:
                made[name] = tensor
                continue
            linear = bitsandbytes.nn.Linear4bit(
                tensor.shape[1],
                tensor.shape[0],
                bias=False,
                compute_dtype=torch.bfloat16,
                compress_statistics=False,
                quant_type="nf4",
            )
            linear.weight = bitsandbytes.nn.Params4bit(
                tensor, requires_grad=False, compress_statistics=False, quant_type="nf4"
            )
            linear = linear.to("cpu")
            made |= {f"{module}.{key}": value for key, value in linear.state_dict().items()}
        (tmp_path / SUBFOLDERS[branch]).mkdir()
        save_file(made, tmp_path / SUBFOLDERS[branch] / "diffusion_pytorch_model.safetensors")
    pipeline = load_quantized(tiny.make_pipeline(torch.bfloat16), tmp_path)
    block = pipeline.unconditional_transformer.layers[1]
    assert type(block.feed_forward.w2) is WeightOnlyLinear
    assert torch.equal(
        block.feed_forward.w2.tensors[".weight"], made["layers.1.feed_forward.w2.weight"]
    )
    # 208 text features are no whole blocks of 64
    assert type(pipeline.transformer.llm_cond_proj) is nn.Linear
    check_near(tiny, pipeline, 0.1)  # 4 bits move a weight by 8 %, and the residual helps


@pytest.mark.parametrize("rest", ["F32", "F16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gguf_of_the_package_gguf(tiny, tmp_path, dtype, rest):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "any.gguf"
    writer = gguf.GGUFWriter(path, "ideogram4")
    made = {}
    for prefix, state in zip(("cond.", "uncond."), states(tiny).values(), strict=True):
        for name, tensor in original_names(state).items():
            values = tensor.float().numpy()
            if tensor.ndim == 2 and "embed" not in name and tensor.shape[1] % 32 == 0:
                kind = gguf.GGMLQuantizationType.Q8_0
                made[f"{prefix}{name}"] = gguf.quants.quantize(values, kind)
                writer.add_tensor(f"{prefix}{name}", made[f"{prefix}{name}"], raw_dtype=kind)
            else:
                writer.add_tensor(f"{prefix}{name}", values.astype(f"float{rest[1:]}"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pipeline = tiny.make_pipeline(torch.bfloat16)
    for module in tiny.branch_modules(pipeline).values():
        module.to(dtype)
    load_quantized(pipeline, path)
    attention = pipeline.transformer.layers[0].attention
    parts = (attention.to_q, attention.to_k, attention.to_v)
    rows = torch.cat([part.tensors[".weight"] for part in parts])
    assert torch.equal(rows, torch.from_numpy(made["cond.layers.0.attention.qkv.weight"].copy()))
    assert attention.to_q.codec is FORMATS["q8_0"].codec
    assert type(pipeline.transformer.input_proj) is nn.Linear  # 16 channels are half a block
    # Q8_0 moves a weight by 0.4 %; bf16 activations by as much
    for a, b in zip(
        outputs(tiny, pipeline), outputs(tiny, tiny.make_pipeline(torch.bfloat16)), strict=True
    ):
        assert (a.float() - b.float()).norm() / b.float().norm() < 0.015


def test_an_unquantized_file_loads_as_it_is(tiny, tmp_path):
    path = tmp_path / "plain.safetensors"
    one_file({b: original_names(state) for b, state in states(tiny).items()}, path)
    pipeline = load_quantized(tiny.make_pipeline(torch.bfloat16), path)
    plain = tiny.make_pipeline(torch.bfloat16)
    for a, b in zip(outputs(tiny, pipeline), outputs(tiny, plain), strict=True):
        assert torch.equal(a, b)


def test_another_architecture_is_refused(tiny, tmp_path):
    path = tmp_path / "other.safetensors"
    tensors = {"double_blocks.0.img_attn.qkv.weight": torch.ones(3, 3)}
    one_file({branch: tensors for branch in SUBFOLDERS}, path)
    with pytest.raises(UserError, match="must hold the linear layers.0.attention.qkv, got no tens"):
        load_quantized(tiny.make_pipeline(), path)
    save_file(tensors, path)
    with pytest.raises(UserError, match="no tensor of conditional .first name .*double_blocks"):
        load_quantized(tiny.make_pipeline(), path)
