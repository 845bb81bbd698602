import pytest
import torch

from dit8.kernels.quant_rows import quant_rows
from dit8.quant.errors import UserError
from dit8.quant.int8 import (
    BLOCK_VALUES,
    dequantize,
    quantize_rows,
    quantize_static,
    quantize_weight,
    relative_error,
)


def test_codes_by_hand():
    # max 127 -> scale 1: ties go to the even code, the ends are -127 and 127
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0]])
    codes, scales = quantize_rows(x)
    assert torch.equal(codes, torch.tensor([[127, 0, 2, 2, 0, -2, -127]], dtype=torch.int8))
    assert torch.equal(scales, torch.ones(1, 1))


def test_weight_scales_are_per_output_channel():
    weight = torch.tensor([[1.0, -2.0], [254.0, 127.0]])
    codes, scales = quantize_weight(weight)
    assert scales.shape == (2,)
    assert torch.equal(scales, torch.tensor([2.0, 254.0]) / 127)
    # 1 / (2 / 127) = 63.5 falls to a neighbour by the rounding of the scale: 63 or 64 are both fair
    assert codes[0, 0].item() in (63, 64)
    assert torch.equal(codes[:, 1], torch.tensor([-127, 64], dtype=torch.int8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_half_a_code(dtype):
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, scales = quantize_rows(x)
    error = (x.double() - codes.double() * scales.double()).abs()
    # half a code, and the fp32 division may move a value by 127 eps/2 codes before it is rounded
    assert (error <= scales.double() * (0.5 + 127 * 2**-24)).all()
    assert codes.abs().max() == 127


def test_scale_stays_fp32_for_bf16_input():
    x = torch.tensor([[1.0, 0.37]], dtype=torch.bfloat16)
    _, scales = quantize_rows(x)
    assert torch.equal(scales, torch.tensor([[1.0 / 127]], dtype=torch.float64).float())
    assert scales.bfloat16().float() != scales


def test_zero_tiny_and_broken_rows():
    x = torch.tensor([[0.0, 0.0], [1e-44, 0.0], [torch.nan, 1.0], [torch.inf, 1.0], [1.0, 1.0]])
    codes, scales = quantize_rows(x)
    assert torch.equal(codes[[0, 2, 3]], torch.zeros(3, 2, dtype=torch.int8))
    assert scales[0] == 1.0
    assert torch.equal(scales[2:4].isnan(), torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(codes[4], torch.tensor([127, 127], dtype=torch.int8))


def test_codes_stay_in_range_where_the_scale_is_a_rounded_subnormal():
    # 178 / 127 = 1.4 steps of the smallest fp32 number round to 1, so the quotient is 178
    codes, _ = quantize_rows(torch.tensor([[-178.0, 178.0]]) * 2.0**-149)
    assert torch.equal(codes, torch.tensor([[-127, 127]], dtype=torch.int8))


@pytest.mark.parametrize("has_smooth", [False, True], ids=["plain", "smooth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_equal_the_kernel_bit_for_bit(dtype, has_smooth):
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(3, 17, 100, generator=generator) * 10).to(dtype)
    x[0, 0], x[1, 2], x[2, 3, 4] = 0.0, 1e-38, torch.nan
    smooth = torch.rand(100, generator=generator) + 0.1 if has_smooth else None
    codes, scales = quantize_rows(x, smooth)
    kernel_codes, kernel_scales = quant_rows(x, smooth)
    assert torch.equal(codes, kernel_codes)
    assert torch.equal(scales.nan_to_num(), kernel_scales.nan_to_num())
    assert scales.shape == kernel_scales.shape == (3, 17, 1)


def test_smooth_divides_before_rounding():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    smooth = torch.arange(1.0, 9.0)
    for got, wanted in zip(quantize_rows(x, smooth), quantize_rows(x / smooth), strict=True):
        assert torch.equal(got, wanted)


def test_weight_in_blocks_is_the_weight_row_by_row():
    k = 2048
    weight = torch.randn(BLOCK_VALUES // k * 2 + 3, k, generator=torch.Generator().manual_seed(5))
    weight[1] = 0
    codes, scales = quantize_weight(weight.bfloat16())  # two blocks and a rest of three rows
    row_codes, row_scales = quantize_rows(weight.bfloat16())
    assert torch.equal(codes, row_codes) and torch.equal(scales, row_scales[:, 0])
    assert scales[1] == 1.0
    weight[-1, -1] = torch.nan
    with pytest.raises(UserError, match="must be finite, got NaN"):
        quantize_weight(weight)


def test_per_tensor_weight_by_hand():
    weight = torch.tensor([[1.0, -2.0, 0.5], [-254.0, 127.0, 3.0]])
    codes, scales = quantize_weight(weight, per_tensor=True)
    assert torch.equal(scales, torch.tensor([2.0, 2.0]))
    assert torch.equal(codes, torch.tensor([[0, -1, 0], [-127, 64, 2]], dtype=torch.int8))
    assert scales.is_contiguous()  # an expanded one cannot be stored
    codes, scales = quantize_weight(torch.zeros(2, 3), per_tensor=True)
    assert not codes.any() and torch.equal(scales, torch.ones(2))


def test_off_the_cpu_nothing_waits_for_a_value():
    """A CUDA graph cannot hold such a wait; a tensor on the meta device has no value to tell."""
    x, smooth = torch.empty(3, 5, 8, device="meta"), torch.empty(8, device="meta")
    for made in (quantize_rows(x, smooth), quantize_static(x, smooth[0], smooth)):
        assert [tuple(part.shape) for part in made] == [(3, 5, 8), (3, 5, 1)]


def test_static_codes_by_hand():
    # one scale whatever the row holds: small rows use few codes, ties go to the even code
    x = torch.tensor([[1.0, 2.0, 3.0], [-5.0, 253.0, 254.0], [-255.0, 1e30, -1e30]])
    codes, scales = quantize_static(x, torch.tensor(2.0))
    wanted = [[0, 1, 2], [-2, 126, 127], [-127, 127, -127]]  # beyond 127 codes it saturates
    assert torch.equal(codes, torch.tensor(wanted, dtype=torch.int8))
    assert torch.equal(scales, torch.full((3, 1), 2.0))


def test_static_with_a_rows_own_scale_is_the_dynamic_one():
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    smooth = torch.rand(64, generator=torch.Generator().manual_seed(3)) + 0.5
    codes, scales = quantize_rows(x, smooth)
    got, got_scales = quantize_static(x[1, 2:3], scales[1, 2, 0], smooth)
    assert torch.equal(got, codes[1, 2:3]) and torch.equal(got_scales, scales[1, 2:3])
    assert quantize_static(x, scales[0, 0, 0])[1].shape == scales.shape == (2, 5, 1)


def test_static_rows_that_are_not_finite_give_nan():
    x = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [-torch.inf, 0.0], [1.0, 1.0]])
    codes, scales = quantize_static(x, torch.tensor(0.5))
    assert torch.equal(codes, torch.tensor([[0, 0]] * 3 + [[2, 2]], dtype=torch.int8))
    assert scales[:3].isnan().all() and scales[3] == 0.5


def test_static_refuses_other_scales():
    x = torch.ones(2, 4)
    for scale, text in (
        (torch.ones(1), r"\(1,\) torch.float32"),
        (torch.ones(2, 1), r"\(2, 1\) torch.float32"),
        (torch.tensor(1.0, dtype=torch.bfloat16), r"\(\) torch.bfloat16"),
    ):
        with pytest.raises(ValueError, match=rf"scale must be \(\) float32, got {text}"):
            quantize_static(x, scale)
    with pytest.raises(ValueError, match=r"at least one column, got \(3, 0\)"):
        quantize_static(torch.ones(3, 0), torch.tensor(1.0))


def test_dequantize_rounds_once():
    codes, scale = torch.tensor([[101]], dtype=torch.int8), torch.tensor([[1.0039062]])
    assert torch.equal(
        dequantize(codes, scale, torch.bfloat16), torch.tensor([[101 * 1.0039062]]).bfloat16()
    )
    # rounding the scale to bf16 first would give 101, the two must differ for this test to mean it
    assert dequantize(codes, scale, torch.bfloat16) != (codes.bfloat16() * scale.bfloat16())


def test_relative_error_by_hand():
    a, b = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert relative_error(a, b) == pytest.approx(3 / 5)
    assert relative_error(torch.zeros(2, 2), b) == 0.0
    tall = torch.randn(5, BLOCK_VALUES // 2, generator=torch.Generator().manual_seed(0))  # 3 blocks
    assert relative_error(tall, tall * 1.5) == pytest.approx(0.5)
    for shape in ((3,), (2, 3, 4)):
        assert relative_error(torch.ones(shape), torch.full(shape, 1.5)) == 0.5


def test_weight_refuses_what_is_no_finite_matrix():
    with pytest.raises(ValueError, match=r"must be a floating \(N, K\) matrix, got \(3,\)"):
        quantize_weight(torch.ones(3))
    with pytest.raises(ValueError, match="got .* torch.int8"):
        quantize_weight(torch.ones(3, 3, dtype=torch.int8))
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=rf"matrix, got \({shape[0]}, {shape[1]}\)"):
            quantize_weight(torch.ones(shape), per_tensor=True)
    with pytest.raises(UserError, match=r"layers.0.w2 \(1, 2\) must be finite, got NaN"):
        quantize_weight(torch.tensor([[1.0, torch.inf]]), "layers.0.w2")
    with pytest.raises(ValueError, match="at least one column"):
        quantize_rows(torch.ones(3, 0))
