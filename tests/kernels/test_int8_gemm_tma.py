"""What the Hopper kernel takes, its tiles, and what the op makes of both."""

import re
from contextlib import nullcontext

import pytest
import torch

import dit8.kernels.int8_gemm as host
from dit8.kernels.int8_gemm import int8_gemm, int8_gemm_swiglu

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels import int8_gemm_tma as module  # noqa: E402
from dit8.kernels import int8_gemm_triton, tiles  # noqa: E402
from dit8.kernels.int8_gemm_tma import (  # noqa: E402
    CONFIGS,
    SHAPES,
    TmaConfig,
    launch,
    obstacle,
    offered,
    store_buffers,
)

# What TMA can address: views of (R, 64) codes.

GOOD = {
    "contiguous": lambda t: t,
    "rows-skipped": lambda t: t[::2],
    "columns-from-16": lambda t: t[:, 16:48],
    "one-row-of-any-stride": lambda t: t.as_strided((1, 64), (16, 1)),
}
BAD = {
    "columns-from-8": lambda t: t[:, 8:40],
    "columns-skipped": lambda t: t[:, ::2],
    "transposed": lambda t: t.t(),
    "rows-of-72-bytes": lambda t: t.reshape(-1)[: len(t) // 2 * 72].view(-1, 72),
    "one-row-of-stride-1": lambda t: t.as_strided((1, 64), (1, 1)),
    "one-row-repeated": lambda t: t[3:4].expand(len(t), -1),
    "overlapping-rows": lambda t: t.as_strided(t.shape, (48, 1)),
}


@pytest.mark.parametrize("view", GOOD.values(), ids=GOOD)
def test_aligned_rows_have_no_obstacle(view, draw_codes):
    x = view(draw_codes(16, 64))
    out = torch.empty(x.shape[0], 8, dtype=torch.bfloat16)
    assert obstacle(x, draw_codes(8, x.shape[1]), out) is None


@pytest.mark.parametrize("view", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["x", "weight"])
def test_rows_that_tma_cannot_address_are_named(name, view, draw_codes):
    operands = {"x": draw_codes(64, 64), "weight": draw_codes(64, 64)}
    operands[name] = view(operands[name])
    assert obstacle(operands["x"], operands["weight"], torch.empty(64, 64)) == (
        f"{name} must have contiguous rows that start at multiples of 16 bytes and do not overlap, "
        f"got strides {tuple(operands[name].stride())} of 1-byte elements"
    )


@pytest.mark.parametrize(
    "dtype, n, fits",
    [
        (torch.bfloat16, 8, True),
        (torch.bfloat16, 12, False),
        (torch.float32, 12, True),
        (torch.float32, 6, False),
    ],
)
def test_rows_of_the_output_must_be_multiples_of_16_bytes(dtype, n, fits, draw_codes):
    reason = obstacle(draw_codes(4, 16), draw_codes(n, 16), torch.empty(4, n, dtype=dtype))
    if fits:
        assert reason is None
    else:
        expected = rf"^out must have .* strides \({n}, 1\) of {dtype.itemsize}-byte elements$"
        assert re.fullmatch(expected, reason)


# Tiles.


def test_configs_are_distinct_tiles_within_shared_memory_and_registers():
    assert len(set(SHAPES)) == len(SHAPES) and len(set(CONFIGS)) == len(CONFIGS)
    for c in CONFIGS:
        assert c.consumers in module.CONSUMER_REGISTERS and c.rows in (64, 128)
        ring = c.stages * (c.consumers * c.rows + c.block_n) * module.LINE
        stores = store_buffers(c) * c.consumers * c.rows * module.LINE
        scales = 4 * c.consumers * c.block_n
        # two barriers of 8 bytes a stage
        assert ring + stores + scales + 16 * c.stages <= 227 * 1024
        assert c.rows * c.block_n <= 128 * 128  # 128 registers a thread for the sums
        consumers = 128 * c.consumers * module.CONSUMER_REGISTERS[c.consumers]
        # Registers are handed out by warpgroups, one of which the loading warp has for itself.
        assert consumers + 128 * 24 <= 65536
        assert 128 * (c.consumers + 1) * module.LAUNCH_REGISTERS[c.consumers] <= 65536


def test_two_store_buffers_where_the_ring_leaves_room():
    # Bytes of the ring, of two buffers and of the scales, of the 226 KiB = 231424:
    assert store_buffers(TmaConfig(3, 64, 256, 3, 8)) == 2  # 172032 + 2 x 24576 + 3072 = 224256
    assert store_buffers(TmaConfig(2, 64, 256, 4, 8)) == 2  # 196608 + 2 x 16384 + 2048 = 231424
    assert store_buffers(TmaConfig(3, 64, 128, 5, 8)) == 1  # 204800 + 2 x 24576 + 1536 = 255488
    assert store_buffers(TmaConfig(2, 128, 128, 4, 8)) == 1  # 196608 + 2 x 32768 + 1024 = 263168


@pytest.mark.parametrize(
    "shape, epilogue, expected",
    [
        ((3, 64, 256, 3), (), True),
        ((3, 64, 256, 3), ("swiglu",), True),
        ((3, 64, 256, 3), ("has_bias",), False),
        ((3, 64, 256, 3), ("has_residual",), False),
        ((3, 64, 256, 3), ("has_bias", "has_residual"), False),
        ((3, 64, 128, 5), ("has_bias", "has_residual"), True),
        ((2, 64, 256, 4), ("has_bias", "has_residual"), True),
        ((1, 64, 64, 8), ("swiglu",), False),
        ((1, 64, 64, 8), ("has_bias", "has_residual"), True),
        ((1, 64, 128, 6), ("swiglu",), True),
    ],
)
def test_offered(shape, epilogue, expected):
    assert offered(TmaConfig(*shape, 8), **dict.fromkeys(epilogue, True)) is expected


def test_nothing_is_launched_for_an_empty_output(draw_product):
    for m, n in ((0, 64), (4, 0)):
        args, _ = draw_product(m, n, 64, "plain", torch.bfloat16)
        launch(*args, CONFIGS[0])  # on a CPU tensor a launch would raise


# The op, as on CUDA, with the GPU, the choice and the launches replaced.


class Calls:
    """What was asked of `choose` and what was launched, and the choice that is given back."""

    def __init__(self):
        self.choice = tiles.Choice("tma", CONFIGS[0])
        self.asked = []
        self.launched = []


@pytest.fixture
def calls(monkeypatch):
    calls = Calls()

    def choose(*args, **keywords):
        calls.asked.append((args, keywords))
        return calls.choice

    monkeypatch.setattr(host, "backend_name", lambda device: "triton")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(tiles, "choose", choose)
    for name, target in (("tma", module), ("mma", int8_gemm_triton)):
        monkeypatch.setattr(
            target,
            "launch",
            lambda *args, name=name, **keywords: calls.launched.append((name, args, keywords)),
        )
    return calls


@pytest.mark.parametrize("aligned, kind", [(True, "tma"), (True, "mma"), (False, "mma")])
@pytest.mark.parametrize("op", tiles.OPS)
def test_the_op_launches_what_is_chosen(calls, draw_product, op, aligned, kind):
    config = {"tma": CONFIGS[0], "mma": int8_gemm_triton.CONFIGS[0]}[kind]
    calls.choice = tiles.Choice(kind, config)
    epilogue = "rest" if op == "gemm" else "swiglu"
    (*args, out), keywords = draw_product(5, 24, 64 if aligned else 65, epilogue, torch.bfloat16)
    extra = [keywords[name] for name in ("gate", "residual") if name in keywords]
    assert host._run(op, out, *args, *extra) is out
    ((positional, by_name),) = calls.asked
    assert positional == (op, 5, 24, args[0].shape[1], args[0].device)
    assert by_name["tma"] is aligned
    ((name, given, by_name),) = calls.launched
    assert name == kind and given[6] is config
    assert all(a is b for a, b in zip(given[:6], [*args, out], strict=True))
    assert by_name["swiglu"] is (op == "swiglu")
    assert by_name["gate"] is keywords.get("gate")
    assert by_name["residual"] is keywords.get("residual")


@pytest.mark.parametrize(
    "given, has_bias, has_residual",
    [
        ((), False, False),
        (("bias",), True, False),
        (("gate",), False, True),  # one operand more, as a residual is
        (("residual",), False, True),
        (("bias", "gate", "residual"), True, True),
    ],
)
def test_the_choice_knows_what_the_epilogue_adds(
    calls, draw_product, given, has_bias, has_residual
):
    (*args, bias, out), keywords = draw_product(5, 24, 64, "rest", torch.bfloat16)
    operands = {"bias": bias, "gate": keywords["gate"], "residual": keywords["residual"]}
    host._run("gemm", out, *args, **{name: operands[name] for name in given})
    ((_, by_name),) = calls.asked
    assert by_name == {"tma": True, "has_bias": has_bias, "has_residual": has_residual}


@pytest.mark.parametrize("m, n", [(0, 24), (5, 0)])
def test_nothing_is_chosen_for_an_empty_output(calls, draw_product, m, n):
    (*args, out), _ = draw_product(m, n, 64, "plain", torch.bfloat16)
    assert host._run("gemm", out, *args) is out
    assert not calls.asked and not calls.launched


# The op on a GPU, whatever kernel it takes.


def check_rows(x, device, draw_product, assert_within_two_eps):
    args, _ = draw_product(x.shape[0], 1160, x.shape[1], "bias", torch.bfloat16, device)
    _, x_scale, w, w_scale, bias, _ = args
    y = int8_gemm(x, x_scale, w, w_scale, bias)
    assert_within_two_eps(x, x_scale, w, w_scale, bias, y)


@pytest.mark.gpu
@pytest.mark.parametrize("view", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("m", [1, 17, 128, 333])
def test_cuda_rows_that_tma_can_address(
    hopper, m, view, draw_codes, draw_product, assert_within_two_eps
):
    x = view(draw_codes(2 * m, 64, device=hopper))
    check_rows(x, hopper, draw_product, assert_within_two_eps)
    check_rows(x[:0], hopper, draw_product, assert_within_two_eps)


@pytest.mark.gpu
@pytest.mark.parametrize("view", BAD.values(), ids=BAD)
def test_cuda_rows_that_tma_cannot_address(
    hopper, view, draw_codes, draw_product, assert_within_two_eps
):
    x = view(draw_codes(333, 64, device=hopper))
    check_rows(x, hopper, draw_product, assert_within_two_eps)


@pytest.mark.gpu
@pytest.mark.parametrize("n, k", [(1160, 1040), (257, 199), (1, 64), (12, 48)])
@pytest.mark.parametrize("m", [1, 333])
@pytest.mark.parametrize("epilogue", ["plain", "bias", "rest", "swiglu"])
def test_cuda_ops_at_any_n_and_k(
    cuda, epilogue, m, n, k, draw_product, assert_product_within_two_eps
):
    (x, x_scale, w, w_scale, bias, _), rest = draw_product(m, n, k, epilogue, torch.bfloat16, cuda)
    if rest["swiglu"]:
        y = int8_gemm_swiglu(x, x_scale, w, w_scale)
    else:
        added = {name: rest[name] for name in ("gate", "residual") if name in rest}
        y = int8_gemm(x, x_scale, w, w_scale, bias, **added)
    assert_product_within_two_eps([x, x_scale, w, w_scale, bias, y], **rest)


@pytest.mark.gpu
def test_cuda_opcheck_and_compile(cuda, draw_product):
    args, rest = draw_product(333, 256, 832, "rest", torch.bfloat16, cuda)
    x, x_scale, w, w_scale, bias, out = args
    gate, residual = rest["gate"], rest["residual"]
    args = (x, x_scale, w, w_scale, bias, out.dtype, gate, residual)
    torch.library.opcheck(torch.ops.dit8.int8_gemm.default, args)
    args = (x, x_scale, w, w_scale, out.dtype)
    torch.library.opcheck(torch.ops.dit8.int8_gemm_swiglu.default, args)
    for op in (int8_gemm, int8_gemm_swiglu):
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, x_scale, w, w_scale), op(x, x_scale, w, w_scale))


@pytest.mark.gpu
@pytest.mark.parametrize("m", [17, 333])
@pytest.mark.parametrize("op", [int8_gemm, int8_gemm_swiglu])
def test_cuda_graph_captures_and_replays(cuda, op, m, draw_product):
    (x, x_scale, w, w_scale, _, _), _ = draw_product(m, 256, 768, "plain", torch.bfloat16, cuda)
    expected = op(x, x_scale, w, w_scale)  # compiles, which a capture does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(x, x_scale, w, w_scale)
    y.fill_(torch.nan)
    graph.replay()
    assert torch.equal(y, expected)
