import math

import pytest
import torch

from dit8.kernels.hadamard import rotate
from dit8.kernels.quant_rows import quant_rows

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected_by_hand(row, smooth=None):
    """Quantize one row of Python floats, computed in fp64 and rounded to fp32 at each step."""

    def fp32(value):
        return torch.tensor(value, dtype=torch.float64).float().item()

    if smooth is not None:
        row = [fp32(a / b) for a, b in zip(row, smooth, strict=True)]
    scale = fp32(max(abs(a) for a in row) / 127) or 1.0
    # Python's round is half to even, on the fp32 quotient as in the definition.
    return [max(-127, min(127, round(fp32(a / scale)))) for a in row], scale


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_follow_the_definition(dtype, smoothed):
    # fp32 numbers divided in fp64 and rounded to fp32 equal fp32 division: 53 >= 2 x 24 + 2 bits.
    x = draw(5, 199, dtype=dtype)
    smooth = draw(199, seed=1).abs() + 0.1 if smoothed else None
    codes, scale = quant_rows(x, smooth)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (5, 1)
    for row, got, step in zip(x.tolist(), codes.tolist(), scale.flatten().tolist(), strict=True):
        assert (got, step) == expected_by_hand(row, smooth.tolist() if smoothed else None)


def test_halves_round_to_even():
    # absmax 127 makes the step 1, so the values are the quotients.
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 126.5, -126.5]])
    codes, scale = quant_rows(x)
    assert scale.item() == 1.0
    assert codes.tolist() == [[127, 0, 2, 2, 4, 0, -2, -2, 126, -126]]


def test_a_zero_row_has_zero_codes_and_scale_one():
    x = draw(3, 16)
    x[1] = 0
    codes, scale = quant_rows(x)
    assert codes[1].tolist() == [0] * 16 and scale[1].item() == 1.0
    assert codes[0].abs().max() == 127 and codes[2].abs().max() == 127


def test_the_smallest_rows_stay_in_range():
    # 2^-149 / 127 is no fp32 number: the row counts as zero. 170 x 2^-149 / 127 rounds down to
    # 2^-149, so the quotients are +-170 and the clamp is what keeps the codes in range.
    tiny = 2.0**-149
    codes, scale = quant_rows(torch.tensor([[tiny, 0.0], [170 * tiny, -170 * tiny]]))
    assert codes[0].tolist() == [0, 0] and scale[0].item() == 1.0
    assert codes[1].tolist() == [127, -127] and scale[1].item() == tiny


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_gets_scale_nan_and_harms_no_other(bad):
    x = draw(3, 16)
    clean_codes, clean_scale = quant_rows(x)
    x[1, 4] = bad
    codes, scale = quant_rows(x)
    assert scale[1].isnan() and codes[1].tolist() == [0] * 16
    for row in (0, 2):
        assert torch.equal(codes[row], clean_codes[row])
        assert torch.equal(scale[row], clean_scale[row])


def test_every_value_is_within_half_a_step():
    x = draw(64, 768)
    codes, scale = quant_rows(x)
    error = (codes.double() * scale.double() - x.double()).abs()
    # Half a step, and the rounding of scale and quotient: 127 steps x 2 x eps / 2.
    assert (error <= scale.double() * (0.5 + 127 * 2**-23)).all()
    assert (codes.abs().amax(1) == 127).all()


@pytest.mark.parametrize("kind, least_excess", [("gaussian", 1.05), ("uniform", 1.15)])
def test_arithmetic_is_fp32_for_bf16_input(kind, least_excess):
    # A published kernel takes scale and quotient in bf16, the dtype of its input. Its quotients
    # above 64 are multiples of 0.5 before they are rounded: 1.07 and 1.19 times our error here.
    values = draw(256, 512)
    x = (values if kind == "gaussian" else (values / 2**0.5).erf()).bfloat16()
    codes, scale = quant_rows(x)
    bf16_scale = x.abs().amax(1, keepdim=True) / 127
    bf16_codes = (x / bf16_scale).round().clamp(-127, 127)
    assert bf16_scale.dtype == bf16_codes.dtype == torch.bfloat16

    def root_mean_square_error(q, s):
        return (q.double() * s.double() - x.double()).square().mean().sqrt().item()

    ours = root_mean_square_error(codes, scale)
    # Rounding noise is uniform over a step: step / sqrt(12).
    assert ours == pytest.approx((scale.double().square().mean() / 12).sqrt().item(), rel=0.03)
    assert root_mean_square_error(bf16_codes, bf16_scale) > least_excess * ours


def test_smoothing_divides_before_the_maximum_is_taken():
    x = draw(4, 32)
    x[:, 5] *= 1000  # an outlier channel
    smooth = torch.ones(32)
    smooth[5] = 1024.0
    codes, scale = quant_rows(x, smooth)
    again = quant_rows(x / smooth)
    assert torch.equal(codes, again[0]) and torch.equal(scale, again[1])
    assert (codes != 0).float().mean() > 0.9  # without smoothing nearly all codes would be 0


@pytest.mark.parametrize("rotation", [4, 16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotation_comes_before_the_maximum_is_taken(dtype, rotation):
    x = draw(4, 192, dtype=dtype)
    x[:, 5] *= 1000  # an outlier channel
    codes, scale = quant_rows(x, rotation=rotation)
    again = quant_rows(rotate(x.float(), rotation))
    assert torch.equal(codes, again[0]) and torch.equal(scale, again[1])
    assert scale.max() < quant_rows(x)[1].max() / (rotation**0.5 / 2)


def test_the_input_is_left_alone():
    x = draw(4, 32)
    before = x.clone()
    quant_rows(x, torch.full((32,), 2.0))
    assert torch.equal(x, before)


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (0,), (2, 0)], ids=str)
def test_leading_dimensions_are_kept(lead):
    x = draw(*lead, 32)
    codes, scale = quant_rows(x)
    assert codes.shape == x.shape and scale.shape == (*lead, 1)
    flat_codes, flat_scale = quant_rows(x.reshape(-1, 32))
    assert torch.equal(codes.reshape(-1, 32), flat_codes)
    assert torch.equal(scale.reshape(-1, 1), flat_scale)


def test_x_may_be_strided():
    x = draw(40, 64)
    for view in (x[::2], x[:, 7:39], x[:, ::2], x.t(), x[3:4].expand(9, -1)):
        codes, scale = quant_rows(view)
        expected = quant_rows(view.clone(memory_format=torch.contiguous_format))
        assert torch.equal(codes, expected[0]) and torch.equal(scale, expected[1])
        assert codes.is_contiguous()


@pytest.mark.parametrize("x", [draw(5, 32), draw(32, 5).t()], ids=["row-major", "transposed"])
@pytest.mark.parametrize("smooth", [None, torch.full((32,), 2.0)], ids=["plain", "smooth"])
def test_opcheck(x, smooth):
    torch.library.opcheck(torch.ops.dit8.quant_rows.default, (x, smooth))
    torch.library.opcheck(torch.ops.dit8.quant_rows.default, (x, None, 16))


def test_compiles_without_graph_breaks_for_any_m():
    # aot_eager runs Dynamo, the fake and functionalization, and needs no C++ toolchain.
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def dequantized(x):
        codes, scale = quant_rows(x[None])
        return codes * scale + quant_rows(x[None], rotation=4)[0]

    for m in (17, 5):
        codes, scale = quant_rows(draw(m, 32)[None])
        rotated, _ = quant_rows(draw(m, 32)[None], rotation=4)
        assert torch.equal(dequantized(draw(m, 32)), codes * scale + rotated)


WRONG = {
    "x-int": (torch.zeros(4, 8, dtype=torch.int8), None, r"x must be .* got \(4, 8\) int8; pass"),
    "x-fp64": (torch.zeros(4, 8).double(), None, r"x must be .*, got \(4, 8\) float64; pass the"),
    "x-0d": (torch.tensor(1.0), None, r"x must be \(\.\.\., K\) bfloat16.*, got \(\) float32"),
    "k-zero": (torch.zeros(4, 0), None, r"x must have K >= 1 columns, got \(4, 0\) float32"),
    "smooth-shape": (
        torch.zeros(4, 8),
        torch.ones(7),
        r"smooth must be \(K,\) float32 with K=8, got \(7,\) float32; pass the layer's",
    ),
    "smooth-dtype": (torch.zeros(4, 8), torch.ones(8).half(), r"smooth must be .* \(8,\) float16"),
    "device": (
        torch.zeros(4, 8),
        torch.ones(8, device="meta"),
        r"smooth must be on cpu like x, got meta; move the layer and its input to one device",
    ),
}


@pytest.mark.parametrize("x, smooth, message", WRONG.values(), ids=WRONG)
def test_errors_say_what_was_got_and_what_to_do(x, smooth, message):
    with pytest.raises(ValueError, match="^quant_rows: " + message):
        quant_rows(x, smooth)


@pytest.mark.parametrize("rotation, k", [(-4, 32), (8, 32), (16, 24), (1024, 2048)])
def test_a_rotation_that_does_not_fit_is_an_error(rotation, k):
    message = rf"^quant_rows: rotation must be 0 or .* 4 to 256 .* K={k}, got {rotation}; pass"
    with pytest.raises(ValueError, match=message):
        quant_rows(torch.zeros(2, k), rotation=rotation)


def test_smooth_and_rotation_are_an_error():
    message = r"^quant_rows: smooth must be None beside rotation=4, got \(8,\) float32; keep one"
    with pytest.raises(ValueError, match=message):
        quant_rows(torch.zeros(2, 8), torch.ones(8), rotation=4)
