import pytest
import torch
from torch import nn

from dit8.kernels.backend import KernelError
from dit8.kernels.hadamard import rotate
from dit8.quant.errors import UserError
from dit8.quant.int8 import quantize_weight
from dit8.quant.linear import Int8Linear, swap_linears

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


def make_rotated(rotation, **options):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(24, 128, generator=generator)
    codes, scales = quantize_weight(rotate(weight, rotation) if rotation else weight)
    return weight, Int8Linear(codes, scales, rotation=rotation, **options)


@pytest.mark.parametrize("gemm", ["fused", "fake_quant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_saves_a_row_with_an_outlier(dtype, gemm):
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(6))
    x[..., 9] = 200.0
    errors = {}
    for rotation in (0, 4, 64):
        weight, layer = make_rotated(rotation, gemm=gemm)
        y = layer(x.to(dtype))
        assert y.dtype == dtype and y.shape == (2, 5, 24)
        exact = nn.functional.linear(x.to(dtype).double(), weight.double())
        others = nn.functional.linear(x[..., 10:].double(), weight[:, 10:].double())
        errors[rotation] = float((y.double() - exact).norm() / others.norm())
    # The step of the row falls by up to sqrt(group), and with it what the other channels lose (46 %
    # unrotated); what rounding the weights costs, times 200, stays (14 %).
    assert errors[4] < 0.75 * errors[0]
    assert errors[64] < 0.5 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotated_codes_are_those_of_the_fp32_rotation(dtype):
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(6)).to(dtype)
    _, layer = make_rotated(64)
    plain = Int8Linear(layer.wq, layer.ws)
    assert torch.equal(layer(x), plain(rotate(x.float(), 64)).to(dtype))
    _, fake = make_rotated(64, gemm="fake_quant")
    error = (fake(x).double() - layer(x).double()).norm() / layer(x).double().norm()
    # the same codes; fake_quant rounds x and w to dtype before the product, and y: three roundings
    assert error <= 2 * torch.finfo(dtype).eps


def test_rotation_of_large_fp16_values_does_not_overflow():
    x = torch.zeros(1, 128, dtype=torch.float16)
    x[0, :64] = 1e4 * rotate(torch.eye(64)[0], 64).sign()  # gathers into one value, 8e4 > 65504
    assert rotate(x, 64).isinf().any()
    weight = torch.zeros(1, 128)
    weight[0, 0] = 1
    codes, scales = quantize_weight(rotate(weight, 64))
    # one code 127 of step 8e4 / 127 times one code 127 of step 1 / (8 * 127)
    assert Int8Linear(codes, scales, rotation=64)(x) == 1e4


@pytest.mark.parametrize(
    ("has_smooth", "rotation"),
    [(False, 0), (True, 0), (False, 16)],
    ids=["plain", "smooth", "rotated"],
)
def test_static_scale_saturates_on_both_paths(has_smooth, rotation):
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(3, 4, 96, generator=generator)
    weight = torch.randn(24, 96, generator=generator)
    smooth = torch.rand(96, generator=generator) + 0.5 if has_smooth else None
    codes, scales = quantize_weight(weight)
    step = torch.tensor(0.01)  # saturates beyond 1.27
    seen = x / smooth if has_smooth else rotate(x, rotation) if rotation else x
    clipped = (seen / step).round().clamp(-127, 127)
    assert (clipped.abs() == 127).sum() > 100
    exact = (clipped.double() @ codes.double().T) * 0.01 * scales.double()
    for gemm in ("fused", "fake_quant"):
        y = Int8Linear(codes, scales, smooth, gemm=gemm, rotation=rotation, x_scale=step)(x)
        # fp32: (96 + 4) roundings of terms that all have the size of the largest at most
        assert ((y - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("gemm", ["fused", "fake_quant"])
@pytest.mark.parametrize("options", ["dynamic", "static", "rotated", "rotated static"])
def test_a_row_that_is_not_finite_gives_nan(options, gemm):
    x = torch.ones(4, 128)
    x[0, 3], x[1, 70], x[2, 0] = torch.nan, torch.inf, -torch.inf
    scale = torch.tensor(0.1) if "static" in options else None
    _, layer = make_rotated(64 if "rotated" in options else 0, gemm=gemm, x_scale=scale)
    y = layer(x)
    assert y[:3].isnan().all() and y[3].isfinite().all()


def test_static_scale_makes_no_rows_from_no_rows():
    _, layer = make_rotated(64, x_scale=torch.tensor(0.1))
    assert layer(torch.ones(0, 128)).shape == (0, 24)


def test_layers_trace_into_one_graph():
    x = torch.ones(2, 128)
    for rotation, scale in ((64, None), (0, torch.tensor(0.1))):
        _, layer = make_rotated(rotation, x_scale=scale)
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), layer(x))


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
    _, _, layer = make(has_smooth=True, has_bias=True, x_scale=torch.tensor(0.1))
    ws, smooth = layer.ws.clone(), layer.smooth.clone()
    nn.Sequential(layer).to(dtype)
    assert torch.equal(layer.x_scale, torch.tensor(0.1)) and layer.x_scale.dtype == torch.float32
    assert torch.equal(layer.ws, ws) and layer.ws.dtype == torch.float32
    assert torch.equal(layer.smooth, smooth) and layer.smooth.dtype == torch.float32
    assert layer.bias.dtype == dtype
    assert layer.wq.dtype == torch.int8
    names = {name for name, _ in layer.named_buffers()}
    assert names == {"wq", "ws", "smooth", "bias", "x_scale"}


def test_print_says_what_is_done_to_the_input():
    assert "smooth=explicit, rotation=0, x_scale=per row" in repr(make(has_smooth=True)[2])
    _, layer = make_rotated(16, x_scale=torch.tensor(0.1))
    assert "smooth=none or folded, rotation=16, x_scale=one, calibrated" in repr(layer)


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
    for scale, text in (
        (torch.ones(1), r"\(1,\) float32"),
        (torch.tensor(1, dtype=torch.float64), r"\(\) float64"),
    ):
        with pytest.raises(ValueError, match=rf"x_scale must be \(\) float32, got {text}"):
            Int8Linear(codes, scales, x_scale=scale)
    with pytest.raises(KernelError, match="divides K=8, got 16"):
        Int8Linear(codes, scales, rotation=16)
    with pytest.raises(UserError, match=r"got rotation 4 and smooth \(8,\) float32; keep one"):
        Int8Linear(codes, scales, torch.ones(8), rotation=4)


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
