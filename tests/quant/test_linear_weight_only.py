import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dit8.quant.formats import fp8, nf4
from dit8.quant.linear import WeightOnlyLinear

N, K = 24, 128


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nf4_tensors():
    """Hand-built: bitsandbytes is not needed to run such a layer."""
    generator = torch.Generator().manual_seed(2)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [N, K]}
    return {
        ".weight": torch.randint(256, (N * K // 2, 1), generator=generator, dtype=torch.uint8),
        ".weight.absmax": torch.rand(N * K // 64, generator=generator) + 0.5,
        ".weight.quant_map": torch.linspace(-1, 1, 16),
        ".weight.quant_state.bitsandbytes__nf4": as_text(state),
    }


def as_text(state):
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


STORED = {
    "fp8": (fp8.CODEC, fp8.CODEC.encode(random(N, K))),
    "nf4": (nf4.CODEC, nf4_tensors()),
}


def make(name, has_bias=True):
    codec, tensors = STORED[name]
    bias = random(N, seed=5) if has_bias else None
    return WeightOnlyLinear(codec, {s: t.clone() for s, t in tensors.items()}, (N, K), bias)


def assert_unchanged(layer, name):
    for suffix, tensor in STORED[name][1].items():
        assert layer.tensors[suffix].dtype == tensor.dtype
        kept, wanted = layer.tensors[suffix].view(torch.uint8), tensor.view(torch.uint8)
        assert torch.equal(kept.cpu(), wanted), suffix


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STORED)
def test_multiplies_by_the_decoded_weight(name, dtype, has_bias):
    layer, x = make(name, has_bias), random(2, 5, K, seed=1).to(dtype)
    codec, tensors = STORED[name]
    bias = random(N, seed=5).to(dtype) if has_bias else None
    y = layer(x)
    assert y.dtype == dtype
    assert y.shape == (2, 5, N)
    assert torch.equal(y, F.linear(x, codec.decode(tensors, dtype), bias))
    assert (layer.out_features, layer.in_features) == (N, K)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", STORED)
def test_a_cast_of_the_model_changes_no_stored_tensor(name, dtype):
    layer, x = make(name), random(3, K, seed=1)
    before = layer(x)
    nn.Sequential(layer).to(dtype)
    assert_unchanged(layer, name)
    assert layer.bias.dtype == torch.float32
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("name", STORED)
def test_moves_with_the_model_but_leaves_the_text_on_the_host(name):
    layer = make(name)
    nn.Sequential(layer).to("meta")
    for suffix, tensor in layer.tensors.items():
        assert tensor.dtype == STORED[name][1][suffix].dtype
        assert tensor.shape == STORED[name][1][suffix].shape
        assert tensor.device.type == ("cpu" if "quant_state" in suffix else "meta"), suffix
    assert layer.bias.device.type == "meta"


@pytest.mark.parametrize("name", STORED)
def test_a_state_dict_has_every_tensor_and_a_copy_computes_the_same(name):
    layer, x = make(name), random(3, K, seed=1)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    fresh = make(name)
    for buffer in fresh.buffers():
        buffer.view(-1)[:1] = 0
    fresh.load_state_dict(layer.state_dict(), strict=True)
    assert_unchanged(fresh, name)
    assert len(layer.state_dict()) == len(STORED[name][1]) + 1
    assert not hasattr(layer, "weight")  # its dtype would be taken for the compute dtype


def test_decodes_in_every_call_and_keeps_no_copy():
    codec, tensors = STORED["fp8"]
    layer, x = make("fp8", has_bias=False), random(3, K, seed=1)
    stored_bytes = sum(tensor.nbytes for tensor in tensors.values())
    first = layer(x)
    assert sum(buffer.nbytes for buffer in layer.buffers()) == stored_bytes
    layer.stored_weight_scale.mul_(2)
    assert torch.equal(layer(x), first * 2)


def test_accepts_a_text_of_another_length():
    codec, tensors = STORED["nf4"]
    suffix = ".weight.quant_state.bitsandbytes__nf4"
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [N, K]}
    layer = WeightOnlyLinear(codec, tensors | {suffix: as_text(state)}, (N, K))
    x = random(3, K, seed=1)
    assert torch.equal(layer(x), make("nf4", has_bias=False)(x))


def test_gradients_reach_the_input():
    layer, x = make("fp8"), random(3, K, seed=1).requires_grad_()
    layer(x).sum().backward()
    weight = fp8.CODEC.decode(STORED["fp8"][1], torch.float32)
    assert torch.equal(x.grad, torch.ones(3, N) @ weight)


def test_names_shape_and_format():
    assert repr(make("fp8")) == f"WeightOnlyLinear({K}, {N}, format=fp8, bias=True)"
    assert repr(make("nf4", has_bias=False)).endswith("format=nf4, bias=False)")


def test_refuses_tensors_that_do_not_fit():
    codec, tensors = STORED["fp8"]
    scale = tensors[".weight_scale"]
    only = {".weight": tensors[".weight"]}
    short = r"fp8 tensor .weight_scale must be \(24,\) float32, got \(1,\) float32"
    half = r"fp8 tensor .weight_scale must be \(24,\) float32, got \(24,\) bfloat16"
    cases = [
        (only, None, "fp8 must have the tensors .weight, .weight_scale, got .weight$"),
        ({}, None, "must have the tensors .weight, .weight_scale, got none"),
        (tensors | {".extra": scale}, None, "got .extra, .weight, .weight_scale"),
        (tensors | {".weight_scale": scale[:1]}, None, short),
        (tensors | {".weight_scale": scale.bfloat16()}, None, half),
        (tensors, torch.ones(K), r"bias must be \(24,\) floating, got \(128,\) float32"),
        (tensors, torch.ones(N).int(), r"bias must be \(24,\) floating, got \(24,\) int32"),
    ]
    for given, bias, message in cases:
        with pytest.raises(ValueError, match=message):
            WeightOnlyLinear(codec, given, (N, K), bias)
    with pytest.raises(ValueError, match=r"tensor .weight must be \(128, 24\) float8_e4m3fn, got"):
        WeightOnlyLinear(codec, tensors, (K, N))


@pytest.mark.gpu
@pytest.mark.parametrize("name", STORED)
def test_runs_on_a_gpu(name):
    layer, x = make(name), random(3, K, seed=1)
    on_gpu = nn.Sequential(copy.deepcopy(layer)).to("cuda", torch.bfloat16)
    assert_unchanged(on_gpu[0], name)
    codec, tensors = STORED[name]
    weight = codec.decode(tensors, torch.bfloat16).cuda()
    expected = F.linear(x.cuda().bfloat16(), weight, layer.bias.cuda().bfloat16())
    assert torch.equal(on_gpu(x.cuda().bfloat16()), expected)
