"""The Hopper kernel: what it takes and how it compiles here, what it computes where there is one.

Gluon has no interpreter, so only a GPU of compute capability 9.0 can run it.
"""

import re
from contextlib import nullcontext
from dataclasses import asdict
from itertools import product

import pytest
import torch

import kernels.int8_gemm
from kernels.int8_gemm import accumulate, int8_gemm, int8_gemm_swiglu

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from triton.compiler.errors import CompilationError  # noqa: E402

from kernels import int8_gemm_tma as module  # noqa: E402
from kernels import int8_gemm_triton, tiles  # noqa: E402
from kernels.int8_gemm_tma import CONFIGS, SHAPES, TmaConfig, launch, obstacle, offered  # noqa: E402
from scripts.arch_compile import read_usage  # noqa: E402

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def named(value):
    if isinstance(value, TmaConfig):
        return "x".join(map(str, asdict(value).values()))
    return str(value).removeprefix("torch.")


def draw_codes(*shape, device="cpu", seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=device, generator=generator)


def draw(m, n, k, kind, dtype, device="cpu", skip_rows=False):
    """Return launch's tensors, their output full of NaN, and its keywords for one epilogue.

    kind: "plain", "bias", "rest" (bias, gate and residual) or "swiglu".
    """
    generator = torch.Generator(device).manual_seed(3)
    swiglu = kind == "swiglu"
    rows = 2 * n if swiglu else n
    x = draw_codes(2 * m, k, device=device, seed=1)

    def uniform(size):
        return torch.rand(size, device=device, generator=generator)

    def normal(*size):
        return torch.randn(*size, device=device, generator=generator).to(dtype)

    args = [
        x[::2] if skip_rows else x[:m],
        uniform(m) * (0.0025 if swiglu else 0.02),  # silu of sums of a few units
        draw_codes(rows, k, device=device, seed=2),
        uniform(rows) * 0.02,
        normal(n) if kind in ("bias", "rest") else None,
        torch.full((m, n), torch.nan, dtype=dtype, device=device),
    ]
    keywords = {"swiglu": swiglu}
    if kind == "rest":
        keywords |= {"gate": normal(n), "residual": normal(2 * m, n)[::2]}
    return args, keywords


def is_offered(config, kind):
    return offered(config, swiglu=kind == "swiglu", has_residual=kind == "rest")


# What TMA can address.

GOOD = {
    "contiguous": lambda t: t,
    "rows-skipped": lambda t: t[::2],
    "columns-from-16": lambda t: t[:, 16:48],
}
BAD = {
    "columns-from-8": lambda t: t[:, 8:40],
    "columns-skipped": lambda t: t[:, ::2],
    "transposed": lambda t: t.t(),
    "rows-of-72-bytes": lambda t: t.reshape(-1)[: 12 * 72].view(12, 72),
    "one-row-of-stride-1": lambda t: t.as_strided((1, 64), (1, 1)),
}


@pytest.mark.parametrize("view", GOOD.values(), ids=GOOD)
def test_aligned_rows_have_no_obstacle(view):
    x = view(draw_codes(16, 64))
    assert (
        obstacle(x, draw_codes(8, x.shape[1]), torch.empty(x.shape[0], 8, dtype=DTYPES[0])) is None
    )


@pytest.mark.parametrize("view", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["x", "weight"])
def test_rows_that_tma_cannot_address_are_named(name, view):
    operands = {"x": draw_codes(64, 64), "weight": draw_codes(64, 64)}
    operands[name] = view(operands[name])
    assert obstacle(operands["x"], operands["weight"], torch.empty(64, 64)) == (
        f"{name} must have contiguous rows that start at multiples of 16 bytes, got strides "
        f"{tuple(operands[name].stride())} of 1-byte elements"
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
def test_rows_of_the_output_must_be_multiples_of_16_bytes(dtype, n, fits):
    reason = obstacle(draw_codes(4, 16), draw_codes(n, 16), torch.empty(4, n, dtype=dtype))
    if fits:
        assert reason is None
    else:
        expected = rf"^out must have .* strides \({n}, 1\) of {dtype.itemsize}-byte elements$"
        assert re.fullmatch(expected, reason)


@pytest.mark.parametrize("aligned, kind", [(True, "tma"), (True, "mma"), (False, "mma")])
def test_the_op_launches_what_is_chosen(monkeypatch, aligned, kind):
    # As on CUDA, with the GPU, the choice and the launches replaced.
    seen, launched = [], []
    config = {"tma": CONFIGS[0], "mma": int8_gemm_triton.CONFIGS[0]}[kind]

    def choose(*args, **keywords):
        seen.append((args, keywords))
        return tiles.Choice(kind, config)

    monkeypatch.setattr(kernels.int8_gemm, "backend_name", lambda device: "triton")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(tiles, "choose", choose)
    for name, target in (("tma", module), ("mma", int8_gemm_triton)):
        monkeypatch.setattr(
            target,
            "launch",
            lambda *args, name=name, **keywords: launched.append((name, args, keywords)),
        )
    k = 64 if aligned else 65
    for op in ("gemm", "swiglu"):
        kind_drawn = "rest" if op == "gemm" else "swiglu"
        (*args, out), keywords = draw(5, 24, k, kind_drawn, torch.bfloat16)
        extra = [keywords[name] for name in ("gate", "residual") if name in keywords]
        assert kernels.int8_gemm._run(op, out, *args, *extra) is out
        expected = {"tma": aligned, "has_residual": op == "gemm"}
        assert seen.pop() == ((op, 5, 24, k, args[0].device), expected)
        ((name, given, by_name),) = launched
        launched.clear()
        assert name == kind and given[6] is config
        assert all(a is b for a, b in zip(given[:6], [*args, out], strict=True))
        assert by_name["swiglu"] is (op == "swiglu")
        assert by_name["gate"] is keywords.get("gate")
        assert by_name["residual"] is keywords.get("residual")
    empty = torch.empty(0, 24)
    assert kernels.int8_gemm._run("gemm", empty, args[0][:0], *args[1:]) is empty
    assert not seen and not launched


# Tiles.


def test_configs_are_distinct_tiles_within_shared_memory_and_registers():
    assert len(set(SHAPES)) == len(SHAPES) and len(set(CONFIGS)) == len(CONFIGS)
    assert len(CONFIGS) + len(int8_gemm_triton.CONFIGS) >= 36  # tiles that are searched on sm_90
    for c in CONFIGS:
        assert c.consumers in module.CONSUMER_REGISTERS and c.rows in (64, 128)
        ring = c.stages * (c.consumers * c.rows + c.block_n) * module.LINE
        stores = c.consumers * c.rows * module.LINE
        assert ring + stores + 16 * c.stages <= 227 * 1024  # two barriers of 8 bytes a stage
        assert c.rows * c.block_n <= 128 * 128  # 128 registers a thread for the sums
        consumers = 128 * c.consumers * module.CONSUMER_REGISTERS[c.consumers]
        # Registers are handed out by warpgroups, one of which the loading warp has for itself.
        assert consumers + 128 * 24 <= 65536
        assert 128 * (c.consumers + 1) * module.LAUNCH_REGISTERS[c.consumers] <= 65536


@pytest.mark.parametrize(
    "shape, swiglu, has_residual, expected",
    [
        ((3, 64, 256, 3), False, True, False),
        ((3, 64, 256, 3), False, False, True),
        ((3, 64, 256, 3), True, False, True),
        ((3, 64, 128, 5), False, True, True),
        ((2, 64, 256, 4), False, True, True),
        ((1, 64, 64, 8), True, False, False),
        ((1, 64, 64, 8), False, True, True),
        ((1, 64, 128, 6), True, False, True),
    ],
)
def test_offered(shape, swiglu, has_residual, expected):
    config = TmaConfig(*shape, 8)
    assert offered(config, swiglu=swiglu, has_residual=has_residual) is expected


QUICK = [
    ((3, 64, 256, 3), "plain", torch.bfloat16),
    ((2, 64, 256, 4), "swiglu", torch.bfloat16),
    ((2, 64, 128, 6), "rest", torch.bfloat16),
    ((1, 64, 64, 8), "plain", torch.bfloat16),
]


@pytest.fixture
def compile_tile(monkeypatch, compile_launch):
    """Return a function: shape, epilogue, output dtype -> build for sm_90 at a full model's N."""

    def compile_one(shape, kind, dtype, m=192, n=4608):
        args, keywords = draw(m, n, 256, kind, dtype)
        return compile_launch(90, launch, *args, TmaConfig(*shape, 8), **keywords)

    monkeypatch.setattr(module, "processors_of", lambda device: 132)
    return compile_one


def what_is_wrong(build):
    """Return the build's resources if it does not multiply by wgmma, spills or is too large."""
    usage = read_usage(build.kernel)
    good = usage.integer_mma == "wgmma" and usage.shared_bytes <= 227 * 1024
    return None if good and usage.stack_bytes == usage.spill_instructions == 0 else usage


@pytest.mark.parametrize("shape, kind, dtype", QUICK, ids=named)
def test_builds_use_wgmma_and_spill_nothing(compile_tile, shape, kind, dtype):
    build = compile_tile(shape, kind, dtype)
    assert what_is_wrong(build) is None
    columns = shape[2] // 2 if kind == "swiglu" else shape[2]
    assert build.grid[0] == min(132, -(-192 // (shape[0] * shape[1])) * (4608 // columns))


def test_a_residual_with_three_wide_consumers_does_spill(compile_tile):
    # why offered() leaves it out: 160 bytes of stack, some 200 instructions
    assert what_is_wrong(compile_tile((3, 64, 256, 3), "rest", torch.bfloat16)) is not None


@pytest.mark.slow
def test_every_build_uses_wgmma_and_spills_nothing(compile_tile):
    wrong = {}
    for shape, kind, dtype in product(SHAPES, ("plain", "swiglu", "rest"), DTYPES):
        if not is_offered(TmaConfig(*shape, 8), kind):
            continue
        try:
            fault = what_is_wrong(compile_tile(shape, kind, dtype))
        except CompilationError as error:
            fault = str(error)[-200:]
        if fault is not None:
            wrong[shape, kind, dtype] = fault
    assert wrong == {}


def test_m_is_no_compile_time_constant(compile_tile):
    shape, dtype = (1, 64, 64, 8), torch.bfloat16
    builds = [compile_tile(shape, "plain", dtype, m=m, n=64) for m in (1, 16, 333)]
    assert len({build.kernel.hash for build in builds}) == 1


def test_nothing_is_launched_for_an_empty_output():
    for m, n in ((0, 64), (4, 0)):
        args, _ = draw(m, n, 64, "plain", torch.bfloat16)
        launch(*args, CONFIGS[0])  # on a CPU tensor a launch would raise


# On the GPU. A tile is one build per epilogue and dtype; group_m 16 differs from 8 by one constant,
# so only bf16 and the sums of one size take it.
EIGHT = [config for config in CONFIGS if config.group_m == 8]


@pytest.fixture
def hopper(cuda):
    if torch.cuda.get_device_capability(cuda) != (9, 0):
        pytest.skip("wgmma needs compute capability 9.0")
    return cuda


@pytest.fixture
def assert_right(assert_within_two_eps, assert_swiglu_within_two_eps):
    def check(args, swiglu, **rest):
        x, x_scale, w, w_scale, bias, out = args
        if swiglu:
            assert_swiglu_within_two_eps(x, x_scale, w, w_scale, out)
        else:
            assert_within_two_eps(x, x_scale, w, w_scale, bias, out, **rest)

    return check


@pytest.mark.gpu
@pytest.mark.parametrize(
    "kind, config, dtype",
    [
        (kind, config, dtype)
        for dtype, kind in product(DTYPES, ("plain", "bias", "rest", "swiglu"))
        for config in (CONFIGS if dtype == torch.bfloat16 else EIGHT)
        if is_offered(config, kind)
    ],
    ids=named,
)
def test_cuda_every_tile_is_within_two_eps(hopper, assert_right, kind, config, dtype):
    # No size is a multiple of a tile: 1160 = 4 x 256 + 136, 1040 = 8 x 128 + 16.
    args, keywords = draw(333, 1160, 1040, kind, dtype, hopper, skip_rows=True)
    launch(*args, config, **keywords)
    assert_right(args, **keywords)


# One row; one K step (ring barely used), fewer columns and rows than a tile; more tiles than 132
# processors, so that the ring wraps and every program takes several tiles; the full model's.
SIZES = [
    (1, 1160, 1040), (1, 8, 16), (64, 64, 128), (130, 24, 144),
    (1700, 4616, 400), (3333, 4608, 1040), (4396, 4608, 4608), (257, 4608, 12288),
]  # fmt: skip
SUMS = [(shape, config) for shape in SIZES for config in EIGHT]
SUMS += [((3333, 4608, 1040), config) for config in CONFIGS if config not in EIGHT]
SWIGLU_SUMS = [(shape, config) for shape, config in SUMS if is_offered(config, "swiglu")]


@pytest.mark.gpu
@pytest.mark.parametrize("shape, config", SUMS, ids=named)
def test_cuda_sums_equal_the_integers(hopper, shape, config):
    (x, _, w, _, _, out), _ = draw(*shape, "plain", torch.float32, hopper, skip_rows=True)
    ones = [torch.ones(t.shape[0], device=hopper) for t in (x, w)]
    launch(x, ones[0], w, ones[1], None, out, config)
    # Above 2^24 (K > 1040 at full range) the kernel and the cast here round the integer alike.
    assert torch.equal(out, accumulate(x, w).float())


@pytest.mark.gpu
@pytest.mark.parametrize("shape, config", SWIGLU_SUMS, ids=named)
def test_cuda_swiglu_has_the_sums_of_both_halves(hopper, shape, config):
    # silu(32) = 32 in fp32, so constant products of w1 leave 32 times the sums of w3; and with
    # those of w3 at 1 what is left is silu(s), s itself where s >= 128 and 0 where s <= -128.
    (x, _, w, _, _, out), _ = draw(*shape, "swiglu", torch.float32, hopper)
    ones = [torch.ones(t.shape[0], device=hopper) for t in (x, w)]
    x[:, 0] = 1
    for constant, other, value in ((0, 1, 32), (1, 0, 1)):
        both = list(w.clone().chunk(2))
        both[constant].zero_()[:, 0] = value
        out.fill_(torch.nan)
        launch(x, ones[0], torch.cat(both), ones[1], None, out, config, swiglu=True)
        sums = accumulate(x, both[other]).float()
        if other == 1:
            assert torch.equal(out, 32 * sums)
        else:
            sure = sums.abs() >= 128
            assert torch.equal(out[sure], sums.clamp(min=0)[sure]) and out.isfinite().all()


@pytest.mark.gpu
def test_cuda_repeats_give_the_same_bits(hopper):
    args, keywords = draw(3333, 4608, 1040, "rest", torch.bfloat16, hopper)
    config = TmaConfig(2, 64, 256, 4, 8)
    launch(*args, config, **keywords)
    first = args[-1].clone()
    for _ in range(50):  # a race between the ring's warps would show
        args[-1].fill_(torch.nan)
        launch(*args, config, **keywords)
        assert torch.equal(args[-1], first)


@pytest.mark.gpu
def test_cuda_rows_past_the_output_are_left_alone(hopper):
    whole = torch.full((400, 1160), torch.nan, dtype=torch.bfloat16, device=hopper)
    args, keywords = draw(333, 1160, 1040, "plain", torch.bfloat16, hopper)
    launch(*args[:5], whole[:333], CONFIGS[0], **keywords)
    assert whole[:333].isfinite().all() and whole[333:].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("view", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("m", [0, 1, 17, 128, 333])
def test_cuda_op_takes_what_tma_can_address(hopper, m, view, assert_within_two_eps):
    x = view(draw_codes(2 * m, 64, device=hopper))
    (_, x_scale, w, w_scale, bias, _), _ = draw(
        x.shape[0], 1160, x.shape[1], "bias", torch.bfloat16, hopper
    )
    y = int8_gemm(x, x_scale, w, w_scale, bias)
    assert_within_two_eps(x, x_scale, w, w_scale, bias, y)


ODD = BAD | {
    "one-row-repeated": lambda t: t[3:4].expand(333, -1),
    "overlapping-rows": lambda t: t.as_strided((333, 64), (16, 1)),
}


@pytest.mark.gpu
@pytest.mark.parametrize("view", ODD.values(), ids=ODD)
def test_cuda_op_takes_what_tma_cannot_address(hopper, view, assert_within_two_eps):
    x = view(draw_codes(333, 64, device=hopper))
    (_, x_scale, w, w_scale, bias, _), _ = draw(
        x.shape[0], 1160, x.shape[1], "bias", torch.bfloat16, hopper
    )
    y = int8_gemm(x, x_scale, w, w_scale, bias)
    assert_within_two_eps(x, x_scale, w, w_scale, bias, y)


@pytest.mark.gpu
@pytest.mark.parametrize("n, k", [(1160, 1040), (257, 199), (1, 64), (12, 48)])
@pytest.mark.parametrize("m", [1, 333])
def test_cuda_ops_at_any_n_and_k(cuda, m, n, k, assert_right):
    for kind in ("rest", "swiglu"):
        (x, x_scale, w, w_scale, bias, _), keywords = draw(m, n, k, kind, torch.bfloat16, cuda)
        swiglu = keywords.pop("swiglu")
        if swiglu:
            y = int8_gemm_swiglu(x, x_scale, w, w_scale)
        else:
            y = int8_gemm(x, x_scale, w, w_scale, bias, **keywords)
        assert_right([x, x_scale, w, w_scale, bias, y], swiglu, **keywords)


@pytest.mark.gpu
def test_cuda_opcheck_and_compile(cuda):
    (x, x_scale, w, w_scale, bias, out), rest = draw(333, 256, 832, "rest", torch.bfloat16, cuda)
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
def test_cuda_graph_captures_and_replays(cuda, op, m):
    (x, x_scale, w, w_scale, _, _), _ = draw(m, 256, 768, "plain", torch.bfloat16, cuda)
    expected = op(x, x_scale, w, w_scale)  # compiles, which a capture does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(x, x_scale, w, w_scale)
    y.fill_(torch.nan)
    graph.replay()
    assert torch.equal(y, expected)
