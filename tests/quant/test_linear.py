import pytest
import torch
from torch import nn

from quant.errors import UserError
from quant.int8 import quantize_weight
from quant.linear import Int8Linear, swap_linears

EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7}


def make(n=24, k=96, *, has_smooth=False, has_bias=False, **options):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(n, k, generator=generator)
    smooth = torch.rand(k, generator=generator) + 0.5 if has_smooth else None
    bias = torch.randn(n, generator=generator) if has_bias else None
    codes, scales = quantize_weight(weight if smooth is None else weight * smooth)
    return weight, bias, Int8Linear(codes, scales, smooth, bias, **options)


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("has_smooth", [False, True], ids=["plain", "smooth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_paths_agree_and_differ_from_the_unquantized(dtype, has_smooth, has_bias):
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(6)).to(dtype)
    options = {"has_smooth": has_smooth, "has_bias": has_bias}
    weight, bias, fused = make(gemm="fused", **options)
    _, _, fake = make(gemm="fake_quant", **options)
    y_fused, y_fake = fused(x), fake(x)
    assert y_fused.dtype == y_fake.dtype == dtype
    assert y_fused.shape == (2, 5, 24)
    # Both multiply the same codes. The fused path is exact up to fp32 scaling and one cast. The
    # other rounds x and w to dtype (eps / 2 each), sums K products in fp32 and casts: so the
    # difference is below (eps + K * 2^-23) * sum |x||w| + eps * |y| (both casts).
    divided = x.float() if fused.smooth is None else x.float() / fused.smooth
    rounded = (fused.wq.float() * fused.ws[:, None]).abs()
    bound = (EPS[dtype] + (96 + 8) * 2.0**-23) * 1.02 * (divided.abs() @ rounded.T)
    bound = bound + EPS[dtype] * y_fused.float().abs() + 1e-6
    assert ((y_fused.float() - y_fake.float()).abs() <= bound).all()
    exact = nn.functional.linear(x.float(), weight, bias)
    for y in (y_fused, y_fake):
        error = (y.float() - exact).norm() / exact.norm()
        assert 1e-3 < error < 3e-2  # int8 leaves about 1 %: less would mean that nothing is rounded


def test_equal_codes_make_the_fused_path_exact():
    # integers and unit scales: both paths are plain integer products
    x = torch.randint(-127, 128, (3, 16), generator=torch.Generator().manual_seed(0)).float()
    x[:, 0] = 127
    weight = torch.randint(-127, 128, (8, 16), generator=torch.Generator().manual_seed(1)).float()
    weight[:, 0] = -127
    for gemm in ("fused", "fake_quant"):
        assert torch.equal(Int8Linear(*quantize_weight(weight), gemm=gemm)(x), x @ weight.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_of_the_model_leaves_the_scales_in_fp32(dtype):
    _, _, layer = make(has_smooth=True, has_bias=True)
    ws, smooth = layer.ws.clone(), layer.smooth.clone()
    nn.Sequential(layer).to(dtype)
    assert torch.equal(layer.ws, ws) and layer.ws.dtype == torch.float32
    assert torch.equal(layer.smooth, smooth) and layer.smooth.dtype == torch.float32
    assert layer.bias.dtype == dtype
    assert layer.wq.dtype == torch.int8
    assert {name for name, _ in layer.named_buffers()} == {"wq", "ws", "smooth", "bias"}


def test_refuses_arguments_that_disagree():
    codes, scales = torch.zeros(4, 8, dtype=torch.int8), torch.ones(4)
    cases = [
        ((codes.float(), scales), r"wq must be \(N, K\) int8, got \(4, 8\) float32"),
        ((codes, torch.ones(8)), r"ws must be \(4,\) float32, got \(8,\)"),
        ((codes, scales.bfloat16()), r"ws must be \(4,\) float32, got \(4,\) bfloat16"),
        ((codes, scales, torch.ones(4)), r"smooth must be \(8,\) float32, got \(4,\)"),
        ((codes, scales, None, torch.ones(8)), r"bias must be \(4,\) floating, got \(8,\)"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            Int8Linear(*arguments)
    with pytest.raises(UserError, match="gemm must be one of fused, fake_quant, got 'fuse'"):
        Int8Linear(codes, scales, gemm="fuse")


def test_swap_is_all_or_nothing():
    model = nn.ModuleDict({"a": nn.Linear(8, 4), "b": nn.ModuleList([nn.Linear(8, 4), nn.ReLU()])})
    layer = Int8Linear(torch.zeros(4, 8, dtype=torch.int8), torch.ones(4))
    for name, kind in (("b.1", "ReLU"), ("c", "NoneType")):
        with pytest.raises(UserError, match=f"{name} must be a torch.nn.Linear, got {kind}"):
            swap_linears(model, {"a": layer, name: layer})
    assert type(model["a"]) is nn.Linear
    swap_linears(model, {"a": layer, "b.0": layer})
    assert model["a"] is layer and model["b"][0] is layer
    with pytest.raises(UserError, match="a must be a torch.nn.Linear, got Int8Linear"):
        swap_linears(model, {"a": layer})
