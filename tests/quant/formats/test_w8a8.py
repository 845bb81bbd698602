"""comfy-kitchen 0.2.40 imports and runs on a CPU build of torch as it is, without any shim."""

import json

import pytest
import torch
from torch import nn

from dit8.kernels.backend import KernelError
from dit8.kernels.hadamard import rotate
from dit8.kernels.int8_gemm import int8_gemm, int_mm_is_exact
from dit8.quant.errors import UserError
from dit8.quant.formats.w8a8 import comfy_specs as specs
from dit8.quant.formats.w8a8 import decode_comfy
from dit8.quant.formats.w8a8 import encode_comfy as encode_codes
from dit8.quant.int8 import dequantize, quantize_weight
from dit8.quant.linear import Int8Linear
from dit8.quant.types import TensorSpec

PLAIN = b'{"format": "int8_tensorwise"}'
ROTATED = b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}'
N, K = 24, 512


def decode_codes(*given):
    weight = decode_comfy(*given)
    assert weight.smooth is None and weight.x_scale is None
    return weight.codes, weight.scales, weight.rotation


def make(rotation, seed=0):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    return weight, *quantize_weight(rotate(weight, rotation) if rotation else weight)


def as_bytes(text):
    return torch.tensor(list(text), dtype=torch.uint8)


def with_config(text):
    _, codes, scales = make(0)
    return encode_codes(codes, scales, 0) | {".comfy_quant": as_bytes(text)}


@pytest.mark.parametrize(("rotation", "text"), [(0, PLAIN), (256, ROTATED)])
def test_stored_tensors_are_those_of_comfyui(rotation, text):
    _, codes, scales = make(rotation)
    tensors = encode_codes(codes, scales, rotation)
    assert bytes(tensors[".comfy_quant"].tolist()) == text
    assert tensors[".weight"] is codes
    assert torch.equal(tensors[".weight_scale"], scales[:, None])
    found = {suffix: TensorSpec(tuple(t.shape), t.dtype) for suffix, t in tensors.items()}
    assert found == specs(N, K, rotation)
    assert found[".weight_scale"] == TensorSpec((N, 1), torch.float32)
    assert len(ROTATED) == 72  # as in the published text encoder for ComfyUI


@pytest.mark.parametrize("rotation", [0, 4, 16, 64, 256])
def test_round_trip_is_bit_for_bit(rotation):
    _, codes, scales = make(rotation)
    tensors = encode_codes(codes, scales, rotation)
    got_codes, got_scales, got_rotation = decode_codes(tensors | {".bias": torch.zeros(N)})
    assert torch.equal(got_codes, codes) and torch.equal(got_scales, scales)
    assert got_rotation == rotation and got_scales.shape == (N,)
    assert {suffix: TensorSpec(tuple(t.shape), t.dtype) for suffix, t in tensors.items()} == specs(
        N, K, rotation
    )


@pytest.mark.parametrize(
    ("text", "rotation"),
    [
        (b'{"convrot_groupsize":64,"convrot":true,"format":"int8_tensorwise"}', 64),
        (b'{"format": "int8_tensorwise", "convrot": true}', 256),
        (b'{"format": "int8_tensorwise", "convrot": false, "convrot_groupsize": 64}', 0),
        (b'{"format": "int8_tensorwise", "convrot_groupsize": 64}', 0),
        (
            b'{"format": "int8_tensorwise", "params": {"convrot": true, "convrot_groupsize": 16}}',
            16,
        ),
        (b'{"format": "int8_tensorwise", "convrot": false, "params": {"convrot": true}}', 0),
        (b'{"format": "int8_tensorwise", "params": [1]}', 0),
        (b'{"format": "int8_tensorwise", "params": null, "full_precision_matrix_mult": false}', 0),
        (b'{"format": "int8_tensorwise", "orig_dtype": "torch.bfloat16", "per_row": true}', 0),
    ],
)
def test_reads_what_other_writers_put_there(text, rotation):
    assert decode_codes(with_config(text))[2] == rotation


def test_reads_other_scales():
    _, codes, scales = make(0)
    tensors = encode_codes(codes, scales, 0)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = tensors[".weight_scale"].to(dtype)
        _, got, _ = decode_codes(tensors | {".weight_scale": rounded})
        assert torch.equal(got, rounded.float()[:, 0]) and got.dtype == torch.float32
    for shape in ((), (1,), (1, 1)):
        _, got, _ = decode_codes(tensors | {".weight_scale": torch.full(shape, 0.25)})
        assert torch.equal(got, torch.full((N,), 0.25)) and got.is_contiguous()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b'{"format": "int8_blockwise", "group_size": 128}',
            "name the format int8_tensorwise, got",
        ),
        (b'{"format": "convrot_w4a4"}', r"name the format int8_tensorwise, got b'.*convrot_w4a4"),
        (b'{"convrot": true, "per_row": true}', "must name the format int8_tensorwise, got"),
        (b'["int8_tensorwise"]', "must name the format int8_tensorwise, got"),
        (b"{", r"a.w2.comfy_quant must hold a JSON object, got b'\{'"),
        (b"\xff\xfe", "must hold a JSON object, got"),
        (b"", "must hold a JSON object, got b''"),
        (
            PLAIN[:-1] + b', "full_precision_matrix_mult": true}',
            "a.w2 must allow int8 products, got",
        ),
        (ROTATED.replace(b"256", b"1024"), "power of 4 that divides K=512, got 1024; download"),
        (ROTATED.replace(b"256", b"128"), "power of 4 that divides K=512, got 128;"),
        (ROTATED.replace(b"256", b"0"), "power of 4 that divides K=512, got 0;"),
        (ROTATED.replace(b"256", b'"64"'), "power of 4 that divides K=512, got '64';"),
        (ROTATED.replace(b"256", b"64.0"), "power of 4 that divides K=512, got 64.0;"),
    ],
)
def test_refuses_other_configurations(text, message):
    with pytest.raises(UserError, match=message):
        decode_codes(with_config(text), "a.w2")


def test_refuses_other_tensors():
    good = encode_codes(*make(0)[1:], 0)
    nan, zero = good[".weight_scale"].clone(), good[".weight_scale"].clone()
    nan[3], zero[4] = torch.nan, 0
    cases = [
        ({".weight": good[".weight"].float()}, r"a.weight must be \(N, K\) int8, got .* float32"),
        ({".weight": good[".weight"][0]}, r"a.weight must be \(N, K\) int8, got \(512,\) int8"),
        # comfy-kitchen would scale the columns of a dequantized weight with this one
        ({".weight_scale": torch.ones(N)}, r"a.weight_scale must be \(24, 1\) or .* got \(24,\)"),
        ({".weight_scale": torch.ones(1, N)}, r"must be \(24, 1\) or a single .* got \(1, 24\)"),
        ({".weight_scale": torch.ones(N, 1).double()}, r"got \(24, 1\) float64"),
        ({".weight_scale": nan}, "a.weight_scale must be positive and finite, got values from nan"),
        ({".weight_scale": nan.nan_to_num(nan=torch.inf)}, "positive and finite, got .* to inf"),
        ({".weight_scale": zero}, "positive and finite, got values from 0 to"),
        ({".weight_scale": -nan.nan_to_num(nan=1)}, "positive and finite, got values from -1"),
        ({".comfy_quant": torch.ones(4)}, r"a.comfy_quant must be the bytes .* got \(4,\) float32"),
        ({".comfy_quant": as_bytes(PLAIN)[None]}, r"must be the bytes .* got \(1, 29\) uint8"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            decode_codes(good | change, "a")
    for suffix in good:
        rest = {key: value for key, value in good.items() if key != suffix}
        with pytest.raises(UserError, match=rf"a must have a\{suffix}, got \."):
            decode_codes(rest, "a")


def test_refuses_to_write_what_cannot_be_read():
    codes, scales = torch.zeros(4, 32, dtype=torch.int8), torch.ones(4)
    with pytest.raises(ValueError, match=r"wq must be \(N, K\) int8, got \(4, 32\) float32"):
        encode_codes(codes.float(), scales, 0)
    for wrong in (torch.ones(4, 1), torch.ones(32), scales.bfloat16()):
        with pytest.raises(ValueError, match=r"ws must be \(4,\) float32, got"):
            encode_codes(codes, wrong, 0)
    for call in (lambda: encode_codes(codes, scales, 64), lambda: specs(4, 32, 64)):
        with pytest.raises(KernelError, match="divides K=32, got 64"):
            call()


needs_exact_int_mm = pytest.mark.skipif(
    not int_mm_is_exact(),
    reason="comfy-kitchen's CPU linear calls torch._int_mm, whose sums are wrong without VNNI",
)


def load_as_comfyui_does(tensors, dtype):
    """Follow comfy/ops.py: the JSON names the layout, the scale goes in as it is stored."""
    kitchen = pytest.importorskip("comfy_kitchen.tensor")
    config = json.loads(tensors[".comfy_quant"].numpy().tobytes())
    assert config.pop("format") == "int8_tensorwise"
    params = kitchen.TensorWiseINT8Layout.Params(
        scale=tensors[".weight_scale"],
        orig_dtype=dtype,
        orig_shape=tuple(tensors[".weight"].shape),
        **config,
    )
    return kitchen.QuantizedTensor(tensors[".weight"], "TensorWiseINT8Layout", params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotation", [0, 64, 256])
def test_comfy_kitchen_dequantizes_to_our_weight(rotation, dtype):
    weight, codes, scales = make(rotation)
    theirs = load_as_comfyui_does(encode_codes(codes, scales, rotation), dtype).dequantize()
    ours = dequantize(codes, scales[:, None], torch.float32)
    if rotation:
        ours = rotate(ours, rotation)
        # two orders of one fp32 sum of up to 256 terms, then one rounding to dtype
        bound = 256 * 2.0**-24 * ours.abs().max() + torch.finfo(dtype).eps * ours.abs()
        assert ((theirs.float() - ours).abs() <= bound).all()
    else:
        assert torch.equal(theirs, ours.to(dtype))
    assert theirs.dtype == dtype
    assert (theirs.float() - weight).norm() < 0.012 * weight.norm()


@pytest.mark.parametrize("rotation", [0, 64, 256])
def test_comfy_kitchen_dequantizes_exact_sums_bit_for_bit(rotation):
    _, codes, _ = make(rotation)
    scales = 2.0 ** torch.arange(-12.0, N - 12)
    theirs = load_as_comfyui_does(encode_codes(codes, scales, rotation), torch.float32)
    ours = codes.float() * scales[:, None]
    assert torch.equal(theirs.dequantize(), rotate(ours, rotation) if rotation else ours)


@needs_exact_int_mm
@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("rotation", [0, 64, 256])
def test_comfy_kitchen_multiplies_as_we_do(rotation, has_bias):
    _, codes, scales = make(rotation)
    loaded = load_as_comfyui_does(encode_codes(codes, scales, rotation), torch.float32)
    # Integers: the rotation is exact in any order, so both round the same values to codes.
    x = torch.randint(-64, 65, (2, 5, K), generator=torch.Generator().manual_seed(1)).float()
    bias = torch.randn(N, generator=torch.Generator().manual_seed(2)) if has_bias else None
    theirs = nn.functional.linear(x, loaded, bias)
    ours = Int8Linear(*decode_codes(encode_codes(codes, scales, rotation))[:2], None, bias,
                      rotation=rotation)(x)  # fmt: skip
    # x_scale * ws first there, acc * x_scale first here: four roundings, and one for the bias
    size = theirs.abs() + (0 if bias is None else bias.abs())
    assert ((theirs - ours).abs() <= 4 * 2.0**-24 * size).all()


@needs_exact_int_mm
@pytest.mark.parametrize("rotation", [0, 256])
def test_comfy_kitchen_rounds_bf16_activations_by_bf16_scales(rotation):
    """Their codes are the only difference."""
    quantization = pytest.importorskip("comfy_kitchen.backends.eager.quantization")
    weight, codes, scales = make(rotation)
    loaded = load_as_comfyui_does(encode_codes(codes, scales, rotation), torch.bfloat16)
    x = torch.randn(64, K, generator=torch.Generator().manual_seed(1)).bfloat16()
    layer = Int8Linear(codes, scales, rotation=rotation)
    if rotation:
        matrix = quantization._build_hadamard(rotation, dtype=torch.bfloat16)
        rounded = quantization.quantize_and_rotate_rowwise(x, matrix, rotation)
    else:
        rounded = quantization.quantize_int8_rowwise(x)
    their_codes, their_scales = rounded
    our_codes, _ = layer._quantize(x)
    # The scale and the quotient in bf16, 127 * 2 * 2^-9 = half a code; the rotated x, a quarter.
    differences = (their_codes.int() - our_codes.int()).abs()
    assert 1 <= differences.max() <= (2 if rotation else 1)
    theirs, ours = nn.functional.linear(x, loaded), layer(x)
    through_ours = int8_gemm(their_codes, their_scales, codes, scales, out_dtype=torch.bfloat16)
    # the order of two fp32 factors can move a value across one bf16 rounding
    assert ((theirs - through_ours).abs() <= 2.0**-7 * theirs.abs()).all()
    exact = x.double() @ weight.double().T
    errors = [float((y.double() - exact).norm() / exact.norm()) for y in (ours, theirs)]
    assert errors[0] < errors[1] < 0.014  # ours is the smaller


@pytest.mark.parametrize("rotation", [0, 64, 256])
def test_comfy_kitchen_quantizes_an_fp32_weight_to_our_codes(rotation):
    kitchen = pytest.importorskip("comfy_kitchen.tensor")
    # integers: the rotation is exact in any order
    weight = torch.randint(-64, 65, (N, K), generator=torch.Generator().manual_seed(3)).float()
    theirs = kitchen.QuantizedTensor.from_float(
        weight,
        "TensorWiseINT8Layout",
        per_channel=True,
        convrot=bool(rotation),
        convrot_groupsize=rotation or 256,
    )
    codes, scales = quantize_weight(rotate(weight, rotation) if rotation else weight)
    saved = theirs.state_dict("a.weight")  # the names it saves under
    tensors = encode_codes(codes, scales, rotation)
    assert saved.keys() == {"a.weight", "a.weight_scale"}
    assert torch.equal(saved["a.weight"], tensors[".weight"])
    assert torch.equal(saved["a.weight_scale"], tensors[".weight_scale"])


def test_comfy_kitchen_widens_a_stored_bf16_scale_at_the_end():
    _, codes, scales = make(0)
    tensors = encode_codes(codes, scales, 0)
    tensors[".weight_scale"] = tensors[".weight_scale"].bfloat16()
    loaded = load_as_comfyui_does(tensors, torch.float32)
    _, read, _ = decode_codes(tensors)
    assert torch.equal(loaded.dequantize(), dequantize(codes, read[:, None], torch.float32))
    assert not torch.equal(read, scales)  # what was lost in the file stays lost
