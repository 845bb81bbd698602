import numpy as np
import pytest
import torch

from dit8.quant.errors import UserError
from dit8.quant.formats import q8_0
from dit8.quant.formats.q8_0 import CODEC, PIECE_VALUES
from dit8.quant.types import TensorSpec


def random_weight(n=6, k=96, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def block(scale, codes):
    """One block by its definition: fp16 little-endian, then 32 int8."""
    raw = np.float16(scale).tobytes() + np.array(codes, dtype=np.int8).tobytes()
    return torch.tensor(list(raw), dtype=torch.uint8)


def bits(x):
    return x.view(torch.int32)


def adversarial():
    """Rows of 64 that a careless quantizer gets wrong."""
    row = torch.zeros(64)
    outlier = row.clone()
    outlier[5] = 8e6  # the largest scale that fp16 holds is that of 8.3e6
    ties = torch.arange(-32, 32) + 0.5
    ties[::32] = 127.0  # scale exactly 1
    near = row + 0.49999997  # the fp32 below 1/2: with 1/2 added it rounds up to 1
    near[::32] = 127.0
    rows = [
        row,
        row - 0.0,
        row + 1.0,
        outlier,
        -outlier,
        ties,
        -ties,
        near,
        -near,
        random_weight(1, 64)[0] * 1e-6,  # a subnormal scale in fp16
        random_weight(1, 64)[0] * 1e-9,  # scale 0 in fp16, codes all the same
        random_weight(1, 64)[0] * 4e-37,  # a subnormal scale in fp32
    ]
    return torch.stack(rows)


def test_encodes_by_its_equation_with_ties_away_from_zero():
    weight = torch.zeros(1, 32)
    weight[0, :8] = torch.tensor([127.0, 0.5, -0.5, 1.5, -2.5, 0.49999997, -0.49999997, -127.0])
    stored = CODEC.encode(weight)
    assert list(stored) == [".weight"]
    expected = block(1.0, [127, 1, -1, 2, -3, 0, 0, -127] + [0] * 24)
    assert torch.equal(stored[".weight"], expected[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decodes_hand_built_blocks(dtype):
    codes = [torch.arange(-128, -96).tolist(), torch.arange(96, 128).tolist()]
    stored = torch.cat([block(0.1, codes[0]), block(-3.0, codes[1])])[None]
    decoded = CODEC.decode({".weight": stored}, dtype)
    values = torch.tensor(codes, dtype=torch.float32)
    scales = torch.tensor([[0.1], [-3.0]]).half().float()
    assert decoded.dtype == dtype
    assert torch.equal(decoded, (values * scales).reshape(1, 64).to(dtype))


@pytest.mark.parametrize(
    "weight",
    [random_weight(), random_weight(5, 4608) * 0.02, adversarial()],
    ids=["small", "wide", "adversarial"],
)
def test_equals_gguf_py_bit_for_bit(weight):
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e .[gguf]")
    stored = CODEC.encode(weight)[".weight"]
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert torch.equal(stored, torch.from_numpy(theirs))
    decoded = CODEC.decode({".weight": stored}, torch.float32)
    expected = gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType.Q8_0)
    assert torch.equal(bits(decoded), bits(torch.from_numpy(expected)))


def test_the_error_is_at_most_half_a_step():
    weight = random_weight(16, 256, seed=1)
    step = weight.view(16, 8, 32).abs().amax(dim=2, keepdim=True) / 127
    error = (CODEC.decode(CODEC.encode(weight), torch.float32) - weight).view(16, 8, 32).abs()
    # half a step, and the fp16 rounding of the scale (2^-11) at code 127
    assert (error <= step * (0.5 + 127 * 2**-11)).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40])
def test_weights_too_small_for_a_scale_decode_to_zeros(value):
    weight = torch.full((1, 32), value)
    assert torch.equal(CODEC.decode(CODEC.encode(weight), torch.float32), torch.zeros(1, 32))


def test_rows_may_come_in_pieces():
    k = 4608
    weight = random_weight(2 * (PIECE_VALUES // k) + 3, k)  # two full pieces and a rest
    whole = CODEC.encode(weight)[".weight"]
    pieces = [CODEC.encode(rows)[".weight"] for rows in weight.split(50)]
    assert torch.equal(whole, torch.cat(pieces))
    decoded = CODEC.decode({".weight": whole}, torch.bfloat16)
    parts = [CODEC.decode({".weight": piece}, torch.bfloat16) for piece in pieces]
    assert torch.equal(decoded, torch.cat(parts))


def test_takes_rows_that_are_not_contiguous():
    weight = random_weight(8, 128)
    for view in (weight[::2], weight[:, 32:96], weight.t().contiguous().t()):
        stored = CODEC.encode(view)[".weight"]
        assert torch.equal(stored, CODEC.encode(view.contiguous())[".weight"])


def test_specs_say_what_encode_returns_and_splitting_keeps_the_codes():
    weight = random_weight(6, 96)
    stored = CODEC.encode(weight)
    assert CODEC.specs(6, 96) == {".weight": TensorSpec((6, 102), torch.uint8)}
    assert stored[".weight"].shape == (6, 102) and stored[".weight"].dtype == torch.uint8
    parts = CODEC.split_rows(stored, (1, 2, 3))
    for part, rows in zip(parts, weight.split((1, 2, 3)), strict=True):
        assert torch.equal(part[".weight"], CODEC.encode(rows)[".weight"])


def test_refuses_rows_that_a_block_would_cross():
    assert CODEC.refuse(3, 64) is None
    assert CODEC.refuse(3, 48) == (
        "q8_0 needs K divisible by 32, got 48: a block would cross two rows"
    )
    with pytest.raises(ValueError, match="q8_0 needs K divisible by 32, got 48"):
        CODEC.encode(torch.ones(3, 48))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_weights_that_are_not_finite(value):
    weight = random_weight()
    weight[4, 33] = value
    with pytest.raises(UserError, match="q8_0: weights must be finite, got NaN or inf"):
        CODEC.encode(weight)


@pytest.mark.parametrize("value", [8.4e6, -3e38])
def test_refuses_weights_whose_scale_overflows(value):
    weight = random_weight()
    weight[4, 33] = value
    with pytest.raises(UserError, match=r"q8_0: magnitudes must stay below 8.32e\+06, .* got [38]"):
        CODEC.encode(weight)


@pytest.mark.parametrize(
    "weight", [torch.ones(32), torch.ones(2, 32, dtype=torch.float16), torch.ones(2, 0)]
)
def test_wants_an_fp32_matrix(weight):
    with pytest.raises(ValueError, match=r"q8_0: weight must be \(N, K\) float32, got"):
        CODEC.encode(weight)


@pytest.mark.gpu
@pytest.mark.parametrize("has_kernel", [True, False])
def test_a_gpu_decodes_to_the_same_bits(has_kernel, monkeypatch):
    monkeypatch.setattr(q8_0, "has_kernel", lambda device: has_kernel and device.type == "cuda")
    stored = CODEC.encode(random_weight(64, 512))
    decoded = CODEC.decode({".weight": stored[".weight"].cuda()}, torch.float32)
    assert torch.equal(bits(decoded.cpu()), bits(CODEC.decode(stored, torch.float32)))
