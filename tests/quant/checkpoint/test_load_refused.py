import functools
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dit8.quant.checkpoint.load import load_quantized
from dit8.quant.checkpoint.safetensors_file import SafetensorsFile, SafetensorsWriter
from dit8.quant.errors import UserError
from dit8.quant.types import TensorSpec

BRANCH = "unconditional"  # the second to be looked at: the first must not have been changed
QKV = "layers.0.attention.qkv"
NORM = "layers.1.attention_norm2.weight"


@pytest.fixture(scope="module")
def saved(tiny, tiny_stats, tmp_path_factory):
    """Write a checkpoint once."""

    @functools.cache
    def make(format, **fields):
        fields = {"smoothing_carrier": "explicit", "protect": 0} if format == "w8a8" else fields
        folder = tmp_path_factory.mktemp("saved") / format
        return tiny.save(folder, tiny_stats, format=format, **fields)

    return make


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy that may be damaged."""

    def make(format="w8a8", **fields):
        path = saved(format, **fields)
        copy = shutil.copytree(path if path.is_dir() else path.parent, tmp_path / format)
        return copy if path.is_dir() else copy / path.name

    return make


def outputs(tiny, pipeline):
    return tiny.run_branch(pipeline.transformer), tiny.run_branch(
        pipeline.unconditional_transformer, has_text=False
    )


def edit(path, change, *, is_ours):
    """Change the tensors of one branch; by our writer with the header, else as a foreign file."""
    with SafetensorsFile(path) as file:
        metadata = file.metadata
    tensors = load_file(path)
    own = {
        name.removeprefix(f"{BRANCH}."): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(f"{BRANCH}.")
    }
    change(own)
    tensors |= {f"{BRANCH}.{name}": tensor.contiguous() for name, tensor in own.items()}
    if not is_ours:
        save_file(tensors, path)
        return
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    with SafetensorsWriter(path, specs, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def drop(name):
    return lambda own: own.pop(name)


def put(name, tensor):
    return lambda own: own.update({name: tensor})


def change(name, how):
    return lambda own: own.update({name: how(own[name])})


def at_the_end(value):
    def how(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return how


def check_refused_and_unchanged(tiny, path, message, **options):
    pipeline = tiny.make_pipeline()
    before = outputs(tiny, pipeline)
    with pytest.raises(UserError, match=message) as raised:
        load_quantized(pipeline, path, **options)
    assert "\n" not in str(raised.value)
    for module in tiny.branch_modules(pipeline).values():
        assert all(
            type(module.get_submodule(name)) is nn.Linear for name in tiny.architecture.linears
        )
    for a, b in zip(before, outputs(tiny, pipeline), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "foreign"])
@pytest.mark.parametrize(
    ("edited", "message"),
    [
        (drop(f"{QKV}.ws"), rf"linear {QKV} in .*\(unconditional\) must be stored in one known "),
        (drop(f"{QKV}.wq"), rf"linear {QKV} .* one known way .*got .ws \(384,\) float32, .smooth"),
        (drop(NORM), f"misses 1 tensors, first '{NORM}'"),
        (drop("llm_cond_proj.bias"), "llm_cond_proj in .* must have a bias"),
        (drop("adaln_proj.weight"), "linear adaln_proj .* one known way .* got .bias"),
        (put("layers.0.extra.weight", torch.ones(1)), "too much: 1 tensors, first 'layers.0.extra"),
        (put("layers.2.attention.qkv.wq", torch.ones(1)), "too much: 1 tensors, first 'layers.2"),
        (
            put("layers.0.attention.to_q.weight", torch.ones(128, 128)),
            "too much: 1 tensors, first 'layers.0.attention.to_q.weight'",
        ),
        (put(f"{QKV}.weight", torch.ones(384, 128)), f"linear {QKV} in .* one known way"),
        (put(f"{QKV}.bias", torch.ones(384)), f"{QKV} in .* must not have a bias"),
        (
            change(f"{QKV}.wq", lambda t: t[:-1]),
            rf"'{QKV}.wq' in .*\(unconditional\) must be \(384, 128\) int8, got \(383, 128\) int8",
        ),
        (change(f"{QKV}.wq", lambda t: t.float()), r"must be .* int8, got \(384, 128\) float32"),
        (change(f"{QKV}.ws", lambda t: t[:, None]), r"must be \(384,\) float32, got \(384, 1\)"),
        (change(f"{QKV}.ws", lambda t: t.bfloat16()), r"\(384,\) float32, got \(384,\) bfloat16"),
        (change(f"{QKV}.smooth", lambda t: t[1:]), r"must be \(128,\) float32, got \(127,\)"),
        (put(f"{QKV}.x_scale", torch.ones(1)), r"must be \(\) float32, got \(1,\) float32"),
        (
            change("llm_cond_proj.bias", lambda t: t.int()),
            r"must be \(128,\) float32 or bfloat16 or float16, got \(128,\) int32",
        ),
        (change(NORM, lambda t: t[1:]), rf"'{NORM}' in .* must be \(128,\) floating, got \(127,\)"),
        (change(NORM, lambda t: t.int()), rf"'{NORM}' in .* floating, got \(128,\) int32"),
        (change(f"{QKV}.ws", at_the_end(torch.nan)), f"'{QKV}.ws' in .* must be finite, got NaN"),
        (change(NORM, at_the_end(torch.inf)), f"'{NORM}' in .* must be finite"),
        (change("input_proj.weight", at_the_end(torch.nan)), "'input_proj.weight' .* be finite"),
        (change(f"{QKV}.ws", at_the_end(-1)), f"'{QKV}.ws' in .* must be positive, got -1"),
        (change(f"{QKV}.smooth", at_the_end(0)), f"'{QKV}.smooth' in .* must be positive, got 0"),
        (change(NORM, lambda t: t + 1), f"is of another model: '{NORM}' must equal the pipeline's"),
    ],
)
def test_a_wrong_checkpoint_is_refused_and_changes_nothing(
    tiny, checkpoint, edited, message, is_ours
):
    path = checkpoint()
    edit(path, edited, is_ours=is_ours)
    check_refused_and_unchanged(tiny, path, message)


def test_the_edits_alone_are_not_what_is_refused(tiny, checkpoint):
    for is_ours in (True, False):
        path = checkpoint()
        edit(path, lambda own: None, is_ours=is_ours)
        load_quantized(tiny.make_pipeline(), path)
        shutil.rmtree(path.parent)


def test_a_renamed_branch_is_refused(tiny, checkpoint):
    path = checkpoint()
    save_file({n.replace(f"{BRANCH}.", "other."): t for n, t in load_file(path).items()}, path)
    check_refused_and_unchanged(tiny, path, "must hold the branches conditional, unconditional, ")


@pytest.mark.parametrize(
    ("format", "name", "how", "message"),
    [
        ("fp8", f"{QKV}.weight_scale", None, "must be stored in one known way"),
        ("fp8", f"{QKV}.weight_scale", lambda t: t[:-1], r"must be \(128,\) float32, got \(127,\)"),
        ("fp8", f"{QKV}.weight_scale", at_the_end(torch.nan), "weight_scale' .* must be finite"),
        ("fp8", f"{QKV}.weight_scale", lambda t: t.half(), "float32, got .* float16"),
        ("fp8", f"{QKV}.weight_scale", at_the_end(-1), "weight_scale' .* must be positive, got -1"),
        ("fp8", f"{QKV}.weight", at_the_end(torch.nan), "to_q.weight' .* must be finite"),
        ("nf4", f"{QKV}.weight.absmax", None, "must be stored in one known way"),
        ("nf4", f"{QKV}.weight.absmax", at_the_end(torch.inf), "absmax' .* must be finite"),
        ("nf4", f"{QKV}.weight", lambda t: t[:-1], r"must be \(8192, 1\) uint8, got \(8191, 1\)"),
        ("nf4", f"{QKV}.weight", lambda t: t.char(), r"\(8192, 1\) uint8, got \(8192, 1\) int8"),
        ("nf4", f"{QKV}.weight.quant_state.bitsandbytes__nf4", lambda t: t[:-1], "must be JSON"),
    ],
)
def test_wrong_weight_only_tensors_are_refused(tiny, checkpoint, format, name, how, message):
    if format == "nf4":
        pytest.importorskip("bitsandbytes")
    path = checkpoint(format)
    file = path / "unconditional_transformer" / "diffusion_pytorch_model.safetensors"
    tensors, name = load_file(file), name.replace("qkv", "to_q")
    tensor = tensors.pop(name)
    if how is not None:
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = how(tensor.float()).to(torch.float8_e4m3fn)
        else:
            tensor = how(tensor)
        tensors[name] = tensor.contiguous()
    save_file(tensors, file)
    check_refused_and_unchanged(tiny, path, message)


@pytest.mark.parametrize(
    ("suffix", "tensor", "message"),
    [
        (".weight", torch.ones(384, 64, dtype=torch.int8), r"must be \(384, 128\) int8, got"),
        (".weight_scale", torch.zeros(384, 1), "weight_scale must be positive and finite, got"),
        (".weight_scale", torch.ones(128, 1), r"weight_scale must be \(384, 1\) or a single value"),
        (".comfy_quant", torch.tensor(list(b"{}"), dtype=torch.uint8), "must name the format"),
    ],
)
def test_wrong_comfy_tensors_are_refused(tiny, checkpoint, suffix, tensor, message):
    path = checkpoint("comfy", alpha=None, protect=0)
    file = path / f"{BRANCH}.safetensors"
    save_file(load_file(file) | {f"{QKV}{suffix}": tensor}, file)
    check_refused_and_unchanged(tiny, path, message)


def test_damage_in_the_data_is_refused(tiny, checkpoint):
    path = checkpoint()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    check_refused_and_unchanged(tiny, path, "tensor 'unconditional.* is damaged .checksum")
    pytest.importorskip("gguf")
    path = checkpoint("q8_0")
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    check_refused_and_unchanged(tiny, path, "tensor 'uncond.* is damaged .checksum")
    path.write_bytes(data[:-4096])
    check_refused_and_unchanged(tiny, path, "not a readable GGUF file: .*truncated")


def test_refuses_another_model_by_key_and_by_shape(tiny, checkpoint):
    path = checkpoint()
    with pytest.raises(UserError, match="must be made from model planted, got model tiny"):
        load_quantized(tiny.make_pipeline(), path, model_key="planted")
    load_quantized(tiny.make_pipeline(), path, model_key="tiny")
    smaller = tiny.make_pipeline()
    del smaller.transformer.layers[1]
    with pytest.raises(UserError, match=r"swap_linears: layers\.1\.attention\.to_q must be"):
        load_quantized(smaller, path)
    config = {**smaller.transformer.config, "num_layers": 1}
    smaller.transformer._internal_dict = config
    with pytest.raises(
        UserError, match=r"conditional\) has too much: \d+ tensors, first 'layers.1"
    ):
        load_quantized(smaller, path)


def test_a_foreign_file_has_no_key_to_compare(tiny, checkpoint):
    path = checkpoint()
    edit(path, lambda own: None, is_ours=False)
    load_quantized(tiny.make_pipeline(), path, model_key="another")


def test_refuses_a_pipeline_already_quantized_and_unknown_arguments(tiny, checkpoint):
    path = checkpoint()
    pipeline = load_quantized(tiny.make_pipeline(), path)
    before = outputs(tiny, pipeline)
    with pytest.raises(UserError, match="got Int8Linear; load the unquantized model first"):
        load_quantized(pipeline, path)
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(tiny, pipeline), strict=True))
    check_refused_and_unchanged(
        tiny, path, "gemm must be one of fused, fake_quant, got 'int4'", gemm="int4"
    )
    with pytest.raises(UserError, match="the pipeline must be one of .*, got 'object'"):
        load_quantized(object(), path)


def test_a_quantized_pipeline_takes_no_lora(tiny, checkpoint):
    pipeline = load_quantized(tiny.make_pipeline(), checkpoint("fp8"))
    with pytest.raises(UserError, match="is quantized and cannot take a LoRA"):
        pipeline.load_lora_weights("any")
    plain = load_quantized(tiny.make_pipeline(), checkpoint("bf16"))
    assert not hasattr(plain, "load_lora_weights")
