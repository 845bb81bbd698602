import math

import pytest
import torch

from dit8.quant.errors import UserError
from dit8.quant.formats import fp8
from dit8.quant.formats.fp8 import BLOCK_VALUES, CODEC
from dit8.quant.rounding import e4m3_to_float
from dit8.quant.types import TensorSpec

ALL_CODES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
NAN_CODES = (0x7F, 0xFF)
FINITE_CODES = torch.tensor([c for c in range(256) if c not in NAN_CODES], dtype=torch.uint8)


def random_weight(n=12, k=96, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def value_of(code):
    """One e4m3 code by its definition: 4 exponent bits with bias 7, 3 mantissa bits."""
    sign, exponent, mantissa = (-1.0) ** (code >> 7), (code >> 3) & 15, code & 7
    if code & 0x7F == 0x7F:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def as_bits(x):
    return x.view(torch.int32)


def test_every_finite_code_decodes_to_its_definition_bit_for_bit():
    expected = torch.tensor([value_of(code) for code in FINITE_CODES.tolist()])
    decoded = e4m3_to_float(FINITE_CODES.view(torch.float8_e4m3fn))
    assert decoded.dtype == torch.float32
    assert torch.equal(as_bits(decoded), as_bits(expected))  # as bits: -0.0 is not 0.0
    assert torch.equal(as_bits(decoded), as_bits(FINITE_CODES.view(torch.float8_e4m3fn).float()))


@pytest.mark.parametrize("code", NAN_CODES)
def test_nan_codes_stay_nan_and_spoil_nothing_else(code):
    codes = torch.cat([FINITE_CODES, torch.tensor([code], dtype=torch.uint8)])
    decoded = e4m3_to_float(codes.view(torch.float8_e4m3fn))
    assert decoded[-1].isnan()
    assert torch.equal(decoded[:-1], e4m3_to_float(FINITE_CODES.view(torch.float8_e4m3fn)))


def test_decodes_any_shape_and_slice():
    values = ALL_CODES[:0x7F].repeat(4).view(4, 127)
    for piece in (values, values[1:3], values[:, ::2], values.T, values[:0], values[0, 5]):
        assert torch.equal(e4m3_to_float(piece), piece.float())


def test_encode_scales_rows_by_448_and_rounds_half_to_even():
    # The scale is exactly 2: between 16 and 32 the e4m3 values are 2 apart.
    weight = torch.tensor([[896.0, 2 * 17.0, 2 * 19.0, -2 * 17.0, 2 * 17.1]])
    stored = CODEC.encode(weight)
    assert stored[".weight_scale"].tolist() == [2.0]
    assert stored[".weight"].float().tolist() == [[448.0, 16.0, 20.0, -16.0, 18.0]]
    assert CODEC.decode(stored, torch.float32).tolist() == [[896.0, 32.0, 40.0, -32.0, 36.0]]


def test_encode_matches_its_equation_across_row_blocks():
    k = 256
    n = BLOCK_VALUES // k * 2 + 3  # two full blocks and a rest
    weight = random_weight(n, k) * torch.logspace(-6, 6, n)[:, None]
    stored = CODEC.encode(weight)
    scale = weight.abs().amax(dim=1) / 448
    assert torch.equal(stored[".weight_scale"], scale)
    expected = (weight / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(stored[".weight"].view(torch.uint8), expected.view(torch.uint8))
    # three mantissa bits: half a step is 2^-4 of the value, or of 2^-6 among the subnormals;
    # 2^-20 covers the fp32 roundings of scale, quotient and product
    error = (CODEC.decode(stored, torch.float32) - weight).abs()
    bound = torch.maximum(weight.abs(), 2.0**-6 * scale[:, None]) * (2.0**-4 + 2.0**-20)
    assert (error <= bound).all()
    assert error.max() > 0


def test_every_stored_value_survives_decode_and_encode():
    values = FINITE_CODES.view(torch.float8_e4m3fn).view(1, -1)  # its maximum is 448
    stored = {".weight": values, ".weight_scale": torch.tensor([0.25])}
    again = CODEC.encode(CODEC.decode(stored, torch.float32))
    assert torch.equal(again[".weight"].view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(again[".weight_scale"], stored[".weight_scale"])


def test_rows_without_a_scale_of_their_own_get_one():
    tiny = torch.finfo(torch.float32).smallest_normal * 2.0**-23  # the smallest fp32 above zero
    weight = torch.tensor([[0.0, -0.0, 0.0], [tiny, 0.0, -tiny], [1.0, 3.5, -7.0]])
    stored = CODEC.encode(weight)
    assert stored[".weight_scale"].tolist() == [1.0, 1.0, 2.0**-6]
    assert torch.equal(CODEC.decode(stored, torch.float32)[:2], torch.zeros(2, 3))


def test_a_subnormal_scale_makes_no_nan():
    # 668 * 2^-149 / 448 rounds down to one step of 2^-149: the ratio is 668
    weight = torch.tensor([[668 * 2.0**-149, -668 * 2.0**-149]])
    stored = CODEC.encode(weight)
    assert stored[".weight_scale"].tolist() == [2.0**-149]
    assert stored[".weight"].float().tolist() == [[448.0, -448.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 11])
def test_refuses_what_is_not_finite(value, row):
    weight = random_weight()
    weight[row, 7] = value
    with pytest.raises(UserError, match=r"fp8: weight \(12, 96\) must be finite, got NaN or inf"):
        CODEC.encode(weight)


def test_refuses_what_is_no_fp32_matrix():
    for weight in (torch.zeros(8), torch.zeros(2, 4).bfloat16(), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match=r"fp8: weight must be \(N, K\) float32, got \("):
            CODEC.encode(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_rounds_once_from_fp32(dtype):
    stored = CODEC.encode(random_weight(5, 64))
    expected = (stored[".weight"].float() * stored[".weight_scale"][:, None]).to(dtype)
    decoded = CODEC.decode(stored, dtype)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, expected)


def test_specs_state_what_encode_returns():
    stored = CODEC.encode(random_weight())
    found = {key: TensorSpec(tuple(t.shape), t.dtype) for key, t in stored.items()}
    assert found == CODEC.specs(12, 96)
    assert CODEC.name == "fp8"
    assert CODEC.by_rows
    assert CODEC.refuse(7, 13) is None


def test_rows_encode_alone_and_split_exactly():
    weight = random_weight(12, 96)
    stored = CODEC.encode(weight)
    parts = CODEC.split_rows(stored, [3, 4, 5])
    for rows, part in zip(weight.split([3, 4, 5]), parts, strict=True):
        alone = CODEC.encode(rows)
        assert part.keys() == alone.keys()
        assert torch.equal(part[".weight"].view(torch.uint8), alone[".weight"].view(torch.uint8))
        assert torch.equal(part[".weight_scale"], alone[".weight_scale"])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_kernel", [True, False])
def test_a_gpu_decodes_to_the_same_bits(has_kernel, dtype, monkeypatch):
    monkeypatch.setattr(fp8, "has_kernel", lambda device: has_kernel and device.type == "cuda")
    stored = CODEC.encode(random_weight(64, 512))
    on_gpu = {suffix: tensor.cuda() for suffix, tensor in stored.items()}
    assert torch.equal(CODEC.decode(on_gpu, dtype).cpu(), CODEC.decode(stored, dtype))
    assert torch.equal(e4m3_to_float(ALL_CODES.cuda()).isnan().cpu(), ALL_CODES.float().isnan())
