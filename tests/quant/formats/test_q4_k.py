import numpy as np
import pytest
import torch

from dit8.quant.errors import UserError
from dit8.quant.formats import q4_k
from dit8.quant.formats.q4_k import CODEC, PIECE_VALUES, VALUE_MAX
from dit8.quant.types import TensorSpec


def random_weight(n=6, k=512, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def bits(x):
    return x.view(torch.int32)


def decode(stored, dtype=torch.float32):
    return CODEC.decode({".weight": stored}, dtype)


def encode(weight):
    return CODEC.encode(weight)[".weight"]


def super_block(d, dmin, scales, minima, codes):
    """144 bytes by the definition of the format: one bit field after the other."""
    packed = [0] * 12
    for j in range(8):
        scale, minimum = scales[j], minima[j]
        if j < 4:
            packed[j] |= scale
            packed[j + 4] |= minimum
        else:
            packed[j + 4] |= (scale & 15) | (minimum & 15) << 4
            packed[j - 4] |= scale >> 4 << 6
            packed[j] |= minimum >> 4 << 6
    quants = [0] * 128
    for i, code in enumerate(codes):
        pair, inside = divmod(i, 64)
        quants[32 * pair + inside % 32] |= code << (4 if inside >= 32 else 0)
    halves = np.array([d, dmin], dtype=np.float16).tobytes()
    return torch.tensor([*halves, *packed, *quants], dtype=torch.uint8)


def hand_built():
    scales = [0, 63, 17, 32, 16, 47, 1, 62]  # every field of six bits, above and below 16
    minima = [63, 0, 48, 15, 31, 5, 16, 40]
    codes = torch.randint(16, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    d, dmin = 0.0123, 0.00077
    weight = torch.tensor(
        [
            np.float32(np.float16(d)) * np.float32(scales[i // 32]) * np.float32(code)
            - np.float32(np.float16(dmin)) * np.float32(minima[i // 32])
            for i, code in enumerate(codes)
        ]
    )
    return super_block(d, dmin, scales, minima, codes), weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decodes_hand_built_blocks(dtype):
    stored, weight = hand_built()
    decoded = decode(torch.stack([stored, stored]), dtype)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, torch.stack([weight, weight]).to(dtype))


def test_decodes_random_bytes_like_gguf_py_bit_for_bit():
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e .[gguf]")
    generator = torch.Generator().manual_seed(1)
    stored = torch.randint(256, (64, 3 * 144), generator=generator).to(torch.uint8)
    blocks = stored.view(-1, 144)
    blocks[:, [1, 3]] &= 0xBF  # an exponent of 31 would be infinity or NaN
    expected = gguf.quants.dequantize(stored.numpy(), gguf.GGMLQuantizationType.Q4_K)
    assert torch.equal(bits(decode(stored)), bits(torch.from_numpy(expected)))


# Measured on this very matrix; a normal distribution's ideal rounding to [min, max] gives 0.00618,
# ggml 0.00515. The margin, 0.2 %, is less than what leaving out any step of the search costs. At
# 1e-4, d is so small that fp16 has few bits left for it.
@pytest.mark.parametrize("scale, bound", [(1.0, 0.005065), (1e-3, 0.00507), (1e-4, 0.00523)])
def test_the_error_stays_where_the_search_brought_it(scale, bound):
    weight = random_weight(16, 1024) * scale
    error = (decode(encode(weight)) - weight).square().mean() / weight.square().mean()
    assert error < bound


def test_positive_weights_use_all_codes_from_zero_to_the_largest():
    weight = 0.5 + 0.5 * torch.rand(4, 256, generator=torch.Generator().manual_seed(3))
    error = (decode(encode(weight)) - weight).square().mean()
    # A minimum cannot lift the line, so that the step is 1/15; a step's error is step^2 / 12.
    assert error < (1 / 15) ** 2 / 12


def test_weights_on_a_grid_come_back_exactly():
    # d and dmin are powers of two and the largest scale and minimum 63, so that every step of the
    # search has an exact answer
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(16, (4, 8, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15  # all of every range is used
    scales = torch.randint(8, 64, (4, 8, 1), generator=generator)
    minima = torch.randint(8, 64, (4, 8, 1), generator=generator)
    scales[:, 3], minima[:, 5] = 63, 63
    weight = (2.0**-10 * scales * codes - 2.0**-7 * minima).view(4, 256)
    assert torch.equal(decode(encode(weight)), weight)


def test_large_weights_count_more():
    """One weight of a sub-block is twenty times the rest: its relative error must be small."""
    weight = random_weight(64, 256) * 0.02
    weight[:, ::32] = 0.4
    error = (decode(encode(weight)) - weight).abs()[:, ::32]
    assert error.max() < 0.4 / 15 / 4  # a quarter of a step, where plain rounding allows a half


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.3, -0.3, 1e-36, -1e-44])
def test_constant_rows_are_kept_to_the_precision_of_fp16(value):
    decoded = decode(encode(torch.full((1, 256), value)))
    # the scale or minimum 63 * d is rounded to fp16: 2^-11, or half of the smallest number
    assert (decoded - value).abs().max() <= abs(value) * 2.0**-11 + 63 * 15 * 2.0**-25


@pytest.mark.parametrize(
    "weight",
    [
        0.3 * random_weight(16, 512).sign(),
        1.0 + 1e-6 * random_weight(16, 512),
        -1.0 + 1e-6 * random_weight(16, 512),
    ],
    ids=["two values", "almost constant", "almost constant and negative"],
)
def test_sub_blocks_that_agree_do_not_lose_to_six_bits(weight):
    """Many lines fit such weights; unless all sub-blocks take the same, six bits must round."""
    error = (decode(encode(weight)) - weight).abs().max()
    # fp16 rounds 63 * d and 63 * dmin by 2^-11, and both carry up to twice the weight
    assert error <= 4 * weight.abs().max() * 2.0**-11


def test_the_largest_weights_allowed_stay_within_half_a_step():
    uniform = torch.rand(4, 256, generator=torch.Generator().manual_seed(3))
    weight = VALUE_MAX * (2 * uniform - 1)
    error = (decode(encode(weight)) - weight).abs().max()
    # half a step, and as much again for scale and minimum in six bits
    assert error < 2 * VALUE_MAX / 15


def test_zeros_and_outliers_among_ordinary_sub_blocks():
    weight = random_weight(4, 512) * 0.02
    weight[0] = 0.0
    weight[1, :32] = 0.0
    weight[2, 100] = 50.0
    decoded = decode(encode(weight))
    assert torch.equal(decoded[0], torch.zeros(512))
    assert not encode(weight)[0].any()  # no arbitrary codes where the scale is 0
    assert torch.equal(decoded[1, :32], torch.zeros(32))
    assert (decoded[2, 100] - 50.0).abs() < 50.0 / 15 / 4
    # the outlier's super-block loses its small weights, the next one does not notice
    assert torch.equal(decoded[2, 256:], decode(encode(weight[2:3, 256:]))[0])


def test_every_super_block_is_encoded_by_itself():
    k = 4608
    weight = random_weight(PIECE_VALUES // k + 3, k)  # a full piece and a rest
    whole = encode(weight)
    pieces = [encode(rows) for rows in weight.split(17)]
    assert torch.equal(whole, torch.cat(pieces))
    assert torch.equal(whole[5, 144:288], encode(weight[5:6, 256:512])[0])
    assert torch.equal(
        decode(whole, torch.bfloat16),
        torch.cat([decode(piece, torch.bfloat16) for piece in pieces]),
    )


def test_takes_rows_that_are_not_contiguous():
    weight = random_weight(8, 768)
    for view in (weight[::2], weight[:, 256:512], weight.t().contiguous().t()):
        assert torch.equal(encode(view), encode(view.contiguous()))


def test_encoding_leaves_the_weight_alone():
    weight = random_weight()
    before = weight.clone()
    encode(weight)
    assert torch.equal(weight, before)


def test_specs_say_what_encode_returns_and_splitting_keeps_the_codes():
    weight = random_weight(6, 512)
    stored = CODEC.encode(weight)
    assert CODEC.specs(6, 512) == {".weight": TensorSpec((6, 288), torch.uint8)}
    assert stored[".weight"].shape == (6, 288) and stored[".weight"].dtype == torch.uint8
    parts = CODEC.split_rows(stored, (1, 2, 3))
    for part, rows in zip(parts, weight.split((1, 2, 3)), strict=True):
        assert torch.equal(part[".weight"], encode(rows))


def test_refuses_rows_that_a_super_block_would_cross():
    assert CODEC.refuse(3, 512) is None
    assert CODEC.refuse(3, 384) == (
        "q4_k needs K divisible by 256, got 384: a super-block would cross two rows"
    )
    with pytest.raises(ValueError, match="q4_k needs K divisible by 256, got 384"):
        encode(torch.ones(3, 384))


@pytest.mark.parametrize(
    "value, shown",
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "inf"),
        (-3e38, r"3e\+38"),
        (1.1 * VALUE_MAX, r"1.15e\+06"),
    ],
)
def test_refuses_weights_that_fp16_scales_cannot_reach(value, shown):
    weight = random_weight()
    weight[4, 300] = value
    message = rf"q4_k: weights must be finite and at most 1048576 in magnitude.* got {shown}; check"
    with pytest.raises(UserError, match=message):
        encode(weight)


@pytest.mark.parametrize(
    "weight", [torch.ones(256), torch.ones(2, 256, dtype=torch.bfloat16), torch.ones(2, 0)]
)
def test_wants_an_fp32_matrix(weight):
    with pytest.raises(ValueError, match=r"q4_k: weight must be \(N, K\) float32, got"):
        encode(weight)


@pytest.mark.gpu
@pytest.mark.parametrize("has_kernel", [True, False])
def test_a_gpu_decodes_to_the_same_bits(has_kernel, monkeypatch):
    monkeypatch.setattr(q4_k, "has_kernel", lambda device: has_kernel and device.type == "cuda")
    stored = encode(random_weight(64, 512))
    assert torch.equal(bits(decode(stored.cuda()).cpu()), bits(decode(stored)))
