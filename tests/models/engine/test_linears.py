import pytest
import torch
from torch import nn

from dit8.kernels.hadamard import rotate
from dit8.models.engine.linears import Projection, SideBySide, is_fused, project
from dit8.quant.formats.table import FORMATS
from dit8.quant.int8 import quantize_weight
from dit8.quant.linear import Int8Linear, WeightOnlyLinear

K, COUNTS = 64, (32, 48)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def stock(n, bias=False):
    return nn.Linear(K, n, bias=bias)


def int8(n, **changes):
    codes, scales = quantize_weight(torch.randn(n, K))
    return Int8Linear(codes, scales, **changes)


def stored(n, name="fp8"):
    codec = FORMATS[name].codec
    return WeightOnlyLinear(codec, codec.encode(torch.randn(n, K)), (n, K))


SMOOTH = torch.rand(K) + 0.5


@pytest.mark.parametrize(
    "make",
    [
        stock,
        int8,
        lambda n: int8(n, smooth=SMOOTH.clone()),
        lambda n: int8(n, rotation=16),
        lambda n: int8(n, gemm="fake_quant"),
        lambda n: int8(n, x_scale=torch.tensor(0.02)),
    ],
)
def test_equal_linears_become_one_and_stay_usable(make):
    parts, x = [make(n) for n in COUNTS], torch.randn(5, K)
    expected = [part(x) for part in parts]
    projection = project(*parts)
    assert projection.is_stacked and projection.linear.out_features == sum(COUNTS)
    # the same products in another block size: fp32 units, and equal integers
    for whole, own in zip(projection.from_values(x).split(COUNTS, dim=1), expected, strict=True):
        assert torch.allclose(whole, own, rtol=1e-5, atol=1e-6)
    for part, own in zip(parts, expected, strict=True):
        assert torch.allclose(part(x), own, rtol=1e-5, atol=1e-6)
    name = "weight" if isinstance(projection.linear, nn.Linear) else "wq"
    whole = getattr(projection.linear, name)
    assert getattr(parts[0], name).data_ptr() == whole.data_ptr()
    assert getattr(parts[1], name).data_ptr() == whole[COUNTS[0] :].data_ptr()


@pytest.mark.parametrize(
    "makes",
    [
        (stock, int8),
        (int8, lambda n: int8(n, gemm="fake_quant")),
        (int8, lambda n: int8(n, smooth=SMOOTH)),
        (lambda n: int8(n, smooth=SMOOTH), lambda n: int8(n, smooth=SMOOTH * 2)),
        (lambda n: int8(n, rotation=4), lambda n: int8(n, rotation=16)),
        (int8, lambda n: int8(n, x_scale=torch.tensor(0.02))),
        (stock, lambda n: stock(n, bias=True)),
        (int8, lambda n: int8(n, bias=torch.randn(n))),
        (stock, lambda n: stock(n).double()),
        (stored, stored),
        (stored, lambda n: stored(n, "nf4")),
        (stored, stock),
    ],
)
def test_unequal_linears_run_side_by_side(makes):
    parts = [make(n) for make, n in zip(makes, COUNTS, strict=True)]
    before = [{k: v.data_ptr() for k, v in part.state_dict().items()} for part in parts]
    projection = project(*parts)
    assert isinstance(projection.linear, SideBySide)
    assert not projection.is_stacked and not projection.takes_codes
    assert before == [{k: v.data_ptr() for k, v in p.state_dict().items()} for p in parts]
    if parts[1].state_dict().get("weight", torch.empty(0)).dtype == torch.float64:
        return  # no product takes both
    x = torch.randn(5, K)
    for whole, part in zip(projection.from_values(x).split(COUNTS, dim=1), parts, strict=True):
        assert torch.allclose(whole, part(x), rtol=1e-5, atol=1e-6)


def test_only_the_integer_product_with_row_scales_takes_codes():
    assert is_fused(int8(16))
    for linear in (stock(16), int8(16, gemm="fake_quant"), int8(16, x_scale=torch.tensor(1.0))):
        assert not is_fused(linear)
        assert not Projection(linear, (linear,)).takes_codes


def test_codes_and_values_give_one_result():
    linear = int8(48, smooth=SMOOTH, bias=torch.randn(48))
    projection, x = project(linear), torch.randn(5, K)
    assert projection.linear is linear and projection.takes_codes and not projection.is_stacked
    assert projection.input_change == {"smooth": SMOOTH, "rotation": 0}
    codes, scales = linear._quantize(x)
    assert torch.equal(projection((codes, scales[:, 0]), torch.float32), linear(x))
    assert torch.equal(projection.from_values(x), linear(x))


def test_a_rotated_linear_rotates_its_input():
    linear = int8(48, rotation=16)
    projection, x = project(linear), torch.randn(5, K)
    exact = rotate(x, 16) @ (linear.wq.float() * linear.ws[:, None]).t()
    # rounding the activation to 8 bits: about 1/2 percent
    assert (projection.from_values(x) - exact).norm() / exact.norm() < 1e-2


def test_parts_follow_the_stacked_weight_when_it_moves():
    for parts in ([int8(n, smooth=SMOOTH.clone()) for n in COUNTS], [stock(n) for n in COUNTS]):
        projection = project(*parts)
        linear, x = projection.linear, torch.randn(5, K)
        expected = parts[1](x)
        linear._apply(torch.clone)
        projection.share()
        name = "wq" if isinstance(linear, Int8Linear) else "weight"
        whole, part = getattr(linear, name), getattr(parts[1], name)
        assert part.data_ptr() == whole[COUNTS[0] :].data_ptr()
        assert torch.equal(parts[1](x), expected)
        if name == "wq":
            assert parts[1].smooth is linear.smooth


def test_bf16_goes_straight_into_place():
    parts = [stored(n) for n in COUNTS]
    x = torch.randn(5, K, dtype=torch.bfloat16)
    y = project(*parts).from_values(x)
    assert y.dtype == torch.bfloat16
    for columns, part in zip(y.split(COUNTS, dim=1), parts, strict=True):
        assert torch.allclose(columns, part(x), rtol=2**-7, atol=2**-9)
