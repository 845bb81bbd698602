"""The portable kernel against exact integers: interpreted here, on CUDA where there is one."""

from dataclasses import asdict

import pytest
import torch

from dit8.kernels.int8_gemm import accumulate

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from triton.runtime.errors import OutOfResources  # noqa: E402

from dit8.kernels.int8_gemm_triton import CONFIGS, Config, launch  # noqa: E402

MODULE = "dit8.kernels.int8_gemm_triton"
MINI = [(256, 256), (768, 256), (256, 768), (256, 832)]  # (N, K) of the mini's linears
FULL = [(4608, 4608), (12288, 4608), (4608, 12288)]  # and of the full model's
RAGGED = [(17, 1, 199), (33, 65, 31), (130, 257, 129), (5, 7, 1)]  # no multiple of any tile

SHAPES = [(m, n, k) for n, k in MINI for m in (0, 1, 17, 256)] + RAGGED
GPU_SHAPES = [(m, n, k) for n, k in MINI + FULL for m in (0, 1, 17, 256, 4096 + 77)] + RAGGED
SMALL = Config(32, 64, 128, 4, 4, 5)  # ragged sizes of the tests below make 2 x 2 of its blocks


def named(shape):
    return "M{}-N{}-K{}".format(*shape)


def draw_codes(*shape, device="cpu", seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=device, generator=generator)


def draw_args(m, n, k, device="cpu", bias=True, out_dtype=torch.bfloat16, skip_rows=False):
    """Return launch's tensors: full-range codes, random scales, an output full of NaN."""
    generator = torch.Generator(device).manual_seed(3)
    x = draw_codes(2 * m, k, device=device, seed=1)

    def draw(size):
        return torch.rand(size, device=device, generator=generator)

    return [
        x[::2] if skip_rows else x[:m],
        draw(m) * 0.02,
        draw_codes(n, k, device=device, seed=2),
        draw(n) * 0.02,
        draw(n) - 0.5 if bias else None,
        torch.full((m, n), float("nan"), dtype=out_dtype, device=device),
    ]


def draw_swiglu_args(m, n, k, device="cpu", out_dtype=torch.bfloat16, skip_rows=False):
    """Return launch's tensors for SwiGLU: N outputs from 2N rows of w, sums of a few units."""
    x, x_scale, w, w_scale, _, out = draw_args(m, 2 * n, k, device, False, out_dtype, skip_rows)
    return [x, x_scale / 8, w, w_scale, None, out[:, :n].contiguous()]


def draw_rest(m, n, device="cpu", dtype=torch.bfloat16):
    """Return a gate and a residual of which every second row is skipped."""
    generator = torch.Generator(device).manual_seed(5)
    gate = torch.randn(n, device=device, generator=generator)
    residual = torch.randn(2 * m, n, device=device, generator=generator)
    return {"gate": gate.to(dtype), "residual": residual.to(dtype)[::2]}


def with_unit_scales(args):
    """Make the output the integer sums themselves: fp32, no bias."""
    x, x_scale, w, w_scale, _, out = args
    ones = torch.ones_like
    return [x, ones(x_scale), w, ones(w_scale), None, torch.full_like(out, torch.nan).float()]


def assert_sums_equal(args):
    x, _, w, _, _, out = args
    # Below 2^24 (K <= 1040 at full range) fp32 holds the integer; above, both round it alike.
    assert torch.equal(out, accumulate(x, w).float())


def with_one_side(args, side):
    """Make a SwiGLU return the sums of w1 or of w3: unit scales, the other half a constant.

    silu(32) is 32 in fp32 (exp(-32) vanishes beside 1), and 32 s rounds as s does; with y3 = 1,
    what is left is silu(s), s itself where s >= 128 and 0 where s <= -128.
    """
    x, x_scale, w, w_scale, _, out = with_unit_scales(args)
    n = out.shape[1]
    x, w = x.clone(), w.clone()
    x[:, 0] = 1
    constant = w[:n] if side == "w3" else w[n:]
    constant.zero_()
    constant[:, 0] = 32 if side == "w3" else 1
    return [x, x_scale, w, w_scale, None, out]


def assert_side_equals(args, side):
    x, _, w, _, _, out = args
    w1, w3 = w.chunk(2)
    if side == "w3":
        assert torch.equal(out, 32 * accumulate(x, w3).float())
    else:
        sums = accumulate(x, w1).float()
        sure = sums.abs() >= 128
        assert torch.equal(out[sure], sums.clamp(min=0)[sure]) and out.isfinite().all()


# Every tile runs once on whole and once on ragged sizes, the mini's shapes take them in turn.
INTERPRETED = {
    named(shape): (shape, CONFIGS[i % len(CONFIGS)]) for i, shape in enumerate(SHAPES)
} | {f"ragged-tile{i}": ((19, 70, 150 + 106 * (i % 2)), config) for i, config in enumerate(CONFIGS)}


@pytest.fixture(scope="module")
def interpreted(run_interpreted):
    cases = {
        name: (with_unit_scales(draw_args(*shape)), config)
        for name, (shape, config) in INTERPRETED.items()
    }
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted_sums_equal_the_integers(interpreted, name):
    assert_sums_equal(interpreted[name])


# Whole and ragged sizes, blocks that straddle N (where w1 ends and w3 begins), and every tile.
SIDES = {
    f"{named(shape)}-{side}": (shape, side, SMALL)
    for shape in [(1, 64, 256), (33, 65, 199), (17, 40, 256), (5, 1, 129)]
    for side in ("w1", "w3")
} | {
    f"tile{i}": ((19, 70, 150 + 106 * (i % 2)), ("w1", "w3")[i % 2], config)
    for i, config in enumerate(CONFIGS)
}


@pytest.fixture(scope="module")
def interpreted_sides(run_interpreted):
    cases = {
        name: (with_one_side(draw_swiglu_args(*shape), side), config, {"swiglu": True})
        for name, (shape, side, config) in SIDES.items()
    }
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("name", SIDES)
def test_interpreted_swiglu_has_the_sums_of_both_halves(interpreted_sides, name):
    assert_side_equals(interpreted_sides[name], SIDES[name][1])


DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EPILOGUES = {
    f"{str(dtype)[6:]}-bias{int(bias)}-skip{int(skip)}": dict(
        out_dtype=dtype, bias=bias, skip_rows=skip
    )
    for dtype in DTYPES
    for bias in (True, False)
    for skip in (True, False)
}


@pytest.fixture(scope="module")
def interpreted_epilogues(run_interpreted):
    cases = {name: (draw_args(33, 65, 199, **kw), SMALL) for name, kw in EPILOGUES.items()}
    # An x whose columns are strided is copied by launch; bias in bf16 is widened.
    args = draw_args(33, 65, 199)
    args[0], args[4] = draw_codes(199, 33, seed=9).t(), args[4].bfloat16()
    return run_interpreted(MODULE, cases | {"transposed-bf16-bias": (args, SMALL)})


@pytest.mark.parametrize("name", [*EPILOGUES, "transposed-bf16-bias"])
def test_interpreted_epilogue_is_within_two_eps(interpreted_epilogues, name, assert_within_two_eps):
    assert_within_two_eps(*interpreted_epilogues[name])


# bias, what of gate and residual is given, dtype of the output and of both
RESTS = {
    f"{'-'.join(given)}-bias{int(bias)}-{str(dtype)[6:]}": (bias, given, dtype)
    for given in [("gate", "residual"), ("gate",), ("residual",)]
    for bias in (True, False)
    for dtype in DTYPES
}


def draw_with_rest(name, shape, device="cpu"):
    """Return launch's tensors and keywords for one of RESTS."""
    bias, given, dtype = RESTS[name]
    rest = draw_rest(shape[0], shape[1], device, dtype)
    args = draw_args(*shape, device=device, bias=bias, out_dtype=dtype)
    return args, {key: rest[key] for key in given}


@pytest.fixture(scope="module")
def interpreted_rests(run_interpreted):
    cases = {}
    for name in RESTS:
        args, rest = draw_with_rest(name, (33, 65, 199))
        cases[name] = (args, SMALL, rest)
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("name", RESTS)
def test_interpreted_gate_and_residual(interpreted_rests, name, assert_within_two_eps):
    _, rest = draw_with_rest(name, (33, 65, 199))
    assert_within_two_eps(*interpreted_rests[name], **rest)


@pytest.fixture(scope="module")
def interpreted_swiglu(run_interpreted):
    cases = {}
    for dtype in DTYPES:
        args = draw_swiglu_args(33, 65, 199, out_dtype=dtype, skip_rows=True)
        cases[str(dtype)] = (args, SMALL, {"swiglu": True})
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interpreted_swiglu(interpreted_swiglu, dtype, assert_swiglu_within_two_eps):
    x, x_scale, w, w_scale, _, out = interpreted_swiglu[str(dtype)]
    assert_swiglu_within_two_eps(x, x_scale, w, w_scale, out)


# Every tile is in results/bench/arch.csv; mma.sync up to sm_89, wgmma on sm_90.
@pytest.mark.parametrize("swiglu", [False, True], ids=["plain", "swiglu"])
@pytest.mark.parametrize(
    "capability, instruction",
    [
        (80, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"),
        (86, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"),
        (89, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"),
        (90, "wgmma.mma_async.sync.aligned.m64n"),
    ],
)
def test_builds_use_the_integer_matrix_instruction(compile_launch, swiglu, capability, instruction):
    args = draw_swiglu_args(16, 256, 256) if swiglu else draw_args(16, 256, 256)
    ptx = compile_launch(capability, launch, *args, CONFIGS[7], swiglu=swiglu).kernel.asm["ptx"]
    assert instruction in ptx and "s32.s8.s8" in ptx


def test_m_is_no_compile_time_constant(compile_launch):
    builds = [compile_launch(80, launch, *draw_args(m, 64, 256), SMALL) for m in (1, 16, 333)]
    assert len({build.kernel.hash for build in builds}) == 1


def test_configs_are_distinct_tiles_that_the_instructions_can_take():
    assert len(CONFIGS) >= 12 and len(set(CONFIGS)) == len(CONFIGS)
    for config in CONFIGS:
        for size in (config.block_m, config.block_n, config.block_k):
            assert size >= 16 and size & (size - 1) == 0
        assert config.block_n >= 32  # SwiGLU halves it, and no instruction takes less than 16
        assert config.block_k >= 32  # depth of one int8 matrix instruction
        # sm_90 keeps every stage in shared memory and has 227 KiB for one block.
        tiles = config.num_stages * (config.block_m + config.block_n) * config.block_k
        assert tiles <= 227 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=named)
def test_cuda_sums_equal_the_integers(cuda, shape):
    for config in (Config(128, 128, 64, 8, 8, 4), Config(64, 128, 128, 8, 4, 3)):
        args = with_unit_scales(draw_args(*shape, device=cuda, skip_rows=True))
        launch(*args, config)
        assert_sums_equal(args)


def launch_or_skip(*args, **keywords):
    try:
        launch(*args, **keywords)
    except OutOfResources as error:
        pytest.skip(f"does not fit this GPU: {error}")


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "x".join(map(str, asdict(c).values())))
@pytest.mark.parametrize("shape", [(4173, 4608, 4608), (333, 257, 1999)], ids=str)
def test_cuda_tiles_all_give_the_same_sums(cuda, shape, config):
    args = with_unit_scales(draw_args(*shape, device=cuda))
    launch_or_skip(*args, config)
    assert_sums_equal(args)


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "x".join(map(str, asdict(c).values())))
@pytest.mark.parametrize("side", ["w1", "w3"])
def test_cuda_swiglu_has_the_sums_of_both_halves(cuda, side, config):
    args = with_one_side(draw_swiglu_args(333, 1160, 1040, device=cuda), side)
    launch_or_skip(*args, config, swiglu=True)
    assert_side_equals(args, side)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EPILOGUES)
def test_cuda_epilogue_is_within_two_eps(cuda, name, assert_within_two_eps):
    args = draw_args(1111, 833, 777, device=cuda, **EPILOGUES[name])
    launch(*args, Config(64, 128, 128, 8, 4, 3))
    assert_within_two_eps(*args)


@pytest.mark.gpu
@pytest.mark.parametrize("name", RESTS)
def test_cuda_gate_and_residual(cuda, name, assert_within_two_eps):
    args, rest = draw_with_rest(name, (1111, 833, 777), cuda)
    launch(*args, Config(64, 128, 128, 8, 4, 3), **rest)
    assert_within_two_eps(*args, **rest)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_swiglu(cuda, dtype, assert_swiglu_within_two_eps):
    args = draw_swiglu_args(1111, 833, 777, cuda, dtype, skip_rows=True)
    launch(*args, Config(64, 128, 128, 8, 4, 3), swiglu=True)
    x, x_scale, w, w_scale, _, out = args
    assert_swiglu_within_two_eps(x, x_scale, w, w_scale, out)
