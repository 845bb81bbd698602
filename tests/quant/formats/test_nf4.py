import json
import math
import sys

import pytest
import torch

from dit8.quant.errors import UserError
from dit8.quant.formats import nf4
from dit8.quant.formats.nf4 import CODEC
from dit8.quant.types import TensorSpec

STATE = ".weight.quant_state.bitsandbytes__nf4"
# QLoRA, arXiv:2305.14314, appendix E
LEVELS = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def pack(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def state_of(shape, **fields):
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(shape)}
    return pack(json.dumps(state | fields))


def by_hand(n=3, k=128, seed=0, **fields):
    """Codes and magnitudes put together without any encoder, and the weight they stand for."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (n, k), generator=generator)
    codes[0, :16] = torch.arange(16)
    absmax = torch.rand(n, k // 64, generator=generator) + 0.5
    flat = codes.flatten()
    stored = {
        ".weight": (flat[0::2] * 16 + flat[1::2]).to(torch.uint8)[:, None],
        ".weight.absmax": absmax.flatten(),
        ".weight.quant_map": LEVELS.clone(),
        STATE: state_of((n, k), **fields),
    }
    return stored, LEVELS[codes] * absmax.repeat_interleave(64, dim=1)


def random_weight(n=6, k=192, seed=1):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decodes_hand_built_bytes(dtype):
    stored, weight = by_hand()
    decoded = CODEC.decode(stored, dtype)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, weight.to(dtype))


def test_the_first_weight_is_the_high_half_of_the_first_byte():
    stored, _ = by_hand(1, 64)
    stored[".weight"][0, 0] = 0x0F
    stored[".weight.absmax"][:] = 2.0
    assert CODEC.decode(stored, torch.float32)[0, :2].tolist() == [-2.0, 2.0]


@pytest.mark.parametrize("size", [128, 2**19], ids=["many pieces", "one piece"])
def test_pieces_do_not_change_what_is_decoded(size, monkeypatch):
    monkeypatch.setattr(nf4, "DECODE_VALUES", size)
    stored, weight = by_hand(5, 192)  # 960 weights: the last piece is half full
    assert torch.equal(CODEC.decode(stored, torch.float32), weight)


def test_splits_rows_and_rewrites_the_shape():
    stored, weight = by_hand(6, 128, dtype="bfloat16")
    parts = CODEC.split_rows(stored, [1, 3, 2])
    for rows, part in zip(weight.split([1, 3, 2]), parts, strict=True):
        assert torch.equal(CODEC.decode(part, torch.float32), rows)
        assert part[".weight"].shape == (len(rows) * 64, 1)
        text = (
            '{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", '
            f'"shape": [{len(rows)}, 128]}}'
        )
        assert bytes(part[STATE].tolist()).decode() == text


def test_split_refuses_rows_of_another_model():
    stored, _ = by_hand(6, 128)
    with pytest.raises(UserError, match=r"must describe 5 rows, got shape \(6, 128\); the file"):
        CODEC.split_rows(stored, [2, 3])
    swapped = stored | {STATE: state_of((2, 384))}  # as many weights, other rows
    with pytest.raises(UserError, match=r"must describe 6 rows, got shape \(2, 384\)"):
        CODEC.split_rows(swapped, [6])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "quant_state must be JSON, got b'{'; the file is damaged"),
        ("[1]", r"quant_state must be a JSON object, got b'\[1\]'; the file is damaged"),
        ('{"shape": [3, 128]}', "must describe nf4 in blocks of 64 without double quantization"),
    ],
)
def test_refuses_a_damaged_state(text, message):
    stored, _ = by_hand()
    stored[STATE] = pack(text)
    with pytest.raises(UserError, match=message):
        CODEC.decode(stored, torch.float32)


def test_refuses_bytes_that_are_no_text():
    stored, _ = by_hand()
    stored[STATE][2] = 0xFF  # no UTF-8
    with pytest.raises(UserError, match="quant_state must be JSON, got b'{"):
        CODEC.decode(stored, torch.float32)


@pytest.mark.parametrize(
    "fields", [{"quant_type": "fp4"}, {"blocksize": 128}, {"nested_blocksize": 256}]
)
def test_refuses_what_bitsandbytes_stores_in_other_ways(fields):
    stored, _ = by_hand(**fields)
    message = "without double quantization, got {.*; quantize with bnb_4bit_quant_type=nf4 and bnb"
    with pytest.raises(UserError, match=message):
        CODEC.decode(stored, torch.float32)


@pytest.mark.parametrize(
    "shape", [None, 384, [384], [3, 129], [3.0, 128], [-3, -128], [True, 384], "3x128"]
)
def test_refuses_a_shape_that_does_not_fit_the_codes(shape):
    stored, _ = by_hand(3, 128)
    stored[STATE] = pack(json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": shape}))
    with pytest.raises(UserError, match="shape must fit 192 bytes of codes and 6 magnitudes, got"):
        CODEC.decode(stored, torch.float32)


def test_refuses_magnitudes_that_do_not_fit():
    stored, _ = by_hand(3, 128)
    stored[".weight.absmax"] = stored[".weight.absmax"][:5]
    with pytest.raises(UserError, match="must fit 192 bytes of codes and 5 magnitudes"):
        CODEC.decode(stored, torch.float32)


def test_refuses_blocks_that_cross_rows():
    assert CODEC.refuse(64, 128) is None
    reason = "nf4 needs K divisible by 64, got 96: a block would cross two rows"
    assert CODEC.refuse(64, 96) == reason
    with pytest.raises(ValueError, match=reason):
        CODEC.encode(random_weight(2, 96))
    stored, _ = by_hand(4, 192)
    stored[STATE] = state_of((8, 96))  # twelve blocks: every second one in two rows
    with pytest.raises(UserError, match="K divisible by 64, got 96: .*; the file cannot be read"):
        CODEC.decode(stored, torch.float32)


def test_refuses_what_is_no_fp32_matrix():
    for weight in (torch.zeros(64), torch.zeros(2, 64).bfloat16(), torch.zeros(0, 64)):
        with pytest.raises(ValueError, match=r"nf4: weight must be \(N, K\) float32, got \("):
            CODEC.encode(weight)


def test_encoding_without_bitsandbytes_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes, .*'dit8\[nf4\]'$"):
        CODEC.encode(random_weight())


# From here on against bitsandbytes itself.


@pytest.fixture
def functional():
    return pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_what_is_not_finite(value, functional, monkeypatch):
    monkeypatch.setattr(nf4, "ENCODE_VALUES", 192 * 2)
    weight = random_weight(6, 192)
    weight[5, 190] = value
    with pytest.raises(UserError, match=r"nf4: weight \(6, 192\) must be finite, got NaN or inf"):
        CODEC.encode(weight)


@pytest.mark.parametrize("values", [192, 192 * 4, 2**21], ids=["row", "uneven", "whole"])
def test_encode_stores_what_bitsandbytes_stores_for_a_bf16_weight(values, functional, monkeypatch):
    monkeypatch.setattr(nf4, "ENCODE_VALUES", values)
    weight = random_weight().bfloat16()
    weight[2, 64:128] = 0  # a block of zeros
    codes, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=False
    )
    theirs = {".weight": codes}
    theirs |= {f".weight.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}
    ours = CODEC.encode(weight.float())
    assert ours.keys() == theirs.keys()
    for suffix, tensor in theirs.items():
        assert ours[suffix].dtype == tensor.dtype, suffix
        assert torch.equal(ours[suffix], tensor), suffix


def test_specs_state_what_encode_returns(functional):
    for n, k in ((6, 192), (1, 64), (128, 64)):
        stored = CODEC.encode(random_weight(n, k))
        found = {key: TensorSpec(tuple(t.shape), t.dtype) for key, t in stored.items()}
        assert found == CODEC.specs(n, k)
    assert CODEC.name == "nf4"
    assert not CODEC.by_rows


def test_rows_encode_alone_and_split_exactly(functional):
    weight = random_weight()
    parts = CODEC.split_rows(CODEC.encode(weight), [1, 2, 3])
    for rows, part in zip(weight.split([1, 2, 3]), parts, strict=True):
        alone = CODEC.encode(rows)
        assert part.keys() == alone.keys()
        assert all(torch.equal(part[suffix], alone[suffix]) for suffix in alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decodes_as_bitsandbytes_does(dtype, functional):
    weight = random_weight(32, 256) * torch.logspace(-3, 3, 32)[:, None]
    stored = CODEC.encode(weight)
    state = functional.QuantState(
        absmax=stored[".weight.absmax"],
        shape=torch.Size([32, 256]),
        code=stored[".weight.quant_map"],
        blocksize=64,
        quant_type="nf4",
        dtype=dtype,
    )
    theirs = functional.dequantize_4bit(stored[".weight"], state)
    assert torch.equal(CODEC.decode(stored, dtype), theirs)
    # the widest gap between levels is 0.3038 (below -0.696), so the nearest is within 0.152
    error = (CODEC.decode(stored, torch.float32) - weight).abs()
    limit = stored[".weight.absmax"].view(32, 4).repeat_interleave(64, dim=1) * 0.153
    assert (error <= limit).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reads_the_state_dict_of_a_linear4bit(dtype, functional):
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(3)
    layer = Linear4bit(128, 24, bias=True, compress_statistics=False, quant_type="nf4").to(dtype)
    layer = layer.to("cpu")  # this call quantizes
    state_dict = layer.state_dict()
    stored = {f".{key}": tensor for key, tensor in state_dict.items() if key != "bias"}
    assert stored.keys() == CODEC.specs(24, 128).keys()
    theirs = functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
    assert theirs.dtype == dtype
    assert torch.equal(CODEC.decode(stored, dtype), theirs)


def test_bitsandbytes_reads_what_encode_writes(functional):
    from bitsandbytes.nn import Params4bit

    stored = CODEC.encode(random_weight())
    stats = {key.removeprefix("."): t for key, t in stored.items() if key != ".weight"}
    parameter = Params4bit.from_prequantized(stored[".weight"], stats, device="cpu")
    theirs = functional.dequantize_4bit(parameter.data, parameter.quant_state)
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(CODEC.decode(stored, torch.bfloat16), theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_kernel", [True, False])
def test_a_gpu_decodes_to_the_same_bits(has_kernel, dtype, monkeypatch):
    monkeypatch.setattr(nf4, "has_kernel", lambda device: has_kernel and device.type == "cuda")
    monkeypatch.setattr(nf4, "GPU_DECODE_VALUES", 256)  # without the kernel
    stored, weight = by_hand(5, 192)
    on_gpu = {suffix: tensor.cuda() for suffix, tensor in stored.items()}
    assert torch.equal(CODEC.decode(on_gpu, dtype).cpu(), weight.to(dtype))
    for part, rows in zip(CODEC.split_rows(on_gpu, [2, 3]), weight.split([2, 3]), strict=True):
        assert torch.equal(CODEC.decode(part, dtype).cpu(), rows.to(dtype))
