"""How the Hopper kernel compiles here, and what it computes where there is a GPU for it.

Gluon has no interpreter, so only a GPU of compute capability 9.0 can run it.
"""

from dataclasses import asdict
from itertools import product

import pytest
import torch

from dit8.kernels.int8_gemm import accumulate

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from triton.compiler.errors import CompilationError  # noqa: E402

from dit8.kernels import int8_gemm_tma  # noqa: E402
from dit8.kernels.int8_gemm_tma import (  # noqa: E402
    CONFIGS,
    LINE,
    SHAPES,
    TmaConfig,
    launch,
    offered,
    store_buffers,
)
from dit8.scripts.arch_compile import read_usage  # noqa: E402

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EPILOGUES = {  # as `draw_product` names them, and as `offered` does
    "plain": {},
    "bias": {"has_bias": True},
    "rest": {"has_bias": True, "has_residual": True},
    "swiglu": {"swiglu": True},
}


def named(value):
    if isinstance(value, TmaConfig):
        return "x".join(map(str, asdict(value).values()))
    return str(value).removeprefix("torch.")


def is_offered(config, epilogue):
    return offered(config, **EPILOGUES[epilogue])


# Builds.

QUICK = [
    ((3, 64, 256, 3), "plain", torch.bfloat16),
    ((2, 64, 256, 4), "swiglu", torch.bfloat16),
    ((1, 64, 64, 8), "plain", torch.bfloat16),
]


@pytest.fixture
def compile_tile(monkeypatch, compile_launch, draw_product):
    """Return a function: shape, epilogue, output dtype -> build for sm_90 at a full model's N."""

    def compile_one(shape, epilogue, dtype, m=192, n=4608):
        args, keywords = draw_product(m, n, 256, epilogue, dtype)
        return compile_launch(90, launch, *args, TmaConfig(*shape, 8), **keywords)

    monkeypatch.setattr(int8_gemm_tma, "processors_of", lambda device: 132)
    return compile_one


def what_is_wrong(build):
    """Return the build's resources if it does not multiply by wgmma, spills or is too large."""
    usage = read_usage(build.kernel)
    good = usage.integer_mma == "wgmma" and usage.shared_bytes <= 227 * 1024
    return None if good and usage.stack_bytes == usage.spill_instructions == 0 else usage


@pytest.mark.parametrize("shape, epilogue, dtype", QUICK, ids=named)
def test_builds_use_wgmma_and_spill_nothing(compile_tile, shape, epilogue, dtype):
    build = compile_tile(shape, epilogue, dtype)
    assert what_is_wrong(build) is None
    consumers, rows, block_n, stages = shape
    columns = block_n // 2 if epilogue == "swiglu" else block_n
    assert build.grid[0] == min(132, -(-192 // (consumers * rows)) * (4608 // columns))
    ring = stages * (consumers * rows + block_n) * LINE
    stores = store_buffers(TmaConfig(*shape, 8)) * consumers * rows * LINE
    scales = 4 * consumers * block_n
    # barriers and what the warps exchange
    rest = build.kernel.metadata.shared - ring - stores - scales
    assert 0 < rest < 1024


def test_a_residual_with_three_wide_consumers_does_spill(compile_tile):
    # why offered() leaves it out: more than 100 bytes of stack, some 200 instructions
    assert what_is_wrong(compile_tile((3, 64, 256, 3), "rest", torch.bfloat16)) is not None


# bf16 of every tile is in results/bench/arch.csv, for two versions of Triton; fp16 differs by the
# instruction that rounds. fp32 goes out in twice as many chunks; tiles whose consumers hold most
# stand for the others, with the largest epilogue that they are offered with.
@pytest.mark.slow
def test_fp32_builds_of_large_tiles_use_wgmma_and_spill_nothing(compile_tile):
    builds, wrong = [], {}
    for shape in (shape for shape in SHAPES if shape[1] * shape[2] == 64 * 256):
        config = TmaConfig(*shape, 8)
        largest = next(name for name in ("rest", "bias", "plain") if is_offered(config, name))
        builds.append((shape, largest))
    for shape, epilogue in builds:
        try:
            fault = what_is_wrong(compile_tile(shape, epilogue, torch.float32))
        except CompilationError as error:
            fault = str(error)[-200:]
        if fault is not None:
            wrong[shape, epilogue] = fault
    assert len(builds) == 4 and wrong == {}


def test_m_is_no_compile_time_constant(compile_tile):
    shape, dtype = (1, 64, 64, 8), torch.bfloat16
    builds = [compile_tile(shape, "plain", dtype, m=m, n=64) for m in (1, 16, 333)]
    assert len({build.kernel.hash for build in builds}) == 1


# On the GPU. A tile is one build per epilogue and dtype; group_m 16 differs from 8 by one constant,
# so only bf16 and the sums of one size take it.
EIGHT = [config for config in CONFIGS if config.group_m == 8]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "epilogue, config, dtype",
    [
        (epilogue, config, dtype)
        for dtype, epilogue in product(DTYPES, EPILOGUES)
        for config in (CONFIGS if dtype == torch.bfloat16 else EIGHT)
        if is_offered(config, epilogue)
    ],
    ids=named,
)
def test_cuda_every_tile_is_within_two_eps(
    hopper, draw_product, assert_product_within_two_eps, epilogue, config, dtype
):
    # No size is a multiple of a tile: 1160 = 4 x 256 + 136, 1040 = 8 x 128 + 16.
    args, keywords = draw_product(333, 1160, 1040, epilogue, dtype, hopper, skip_rows=True)
    launch(*args, config, **keywords)
    assert_product_within_two_eps(args, **keywords)


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
def test_cuda_sums_equal_the_integers(hopper, draw_product, shape, config):
    args, _ = draw_product(*shape, "plain", torch.float32, hopper, skip_rows=True)
    x, _, w, _, _, out = args
    ones = [torch.ones(t.shape[0], device=hopper) for t in (x, w)]
    launch(x, ones[0], w, ones[1], None, out, config)
    # Above 2^24 (K > 1040 at full range) the kernel and the cast here round the integer alike.
    assert torch.equal(out, accumulate(x, w).float())


@pytest.mark.gpu
@pytest.mark.parametrize("shape, config", SWIGLU_SUMS, ids=named)
def test_cuda_swiglu_has_the_sums_of_both_halves(hopper, draw_product, shape, config):
    # silu(32) = 32 in fp32, so constant products of w1 leave 32 times the sums of w3; and with
    # those of w3 at 1 what is left is silu(s), s itself where s >= 128 and 0 where s <= -128.
    (x, _, w, _, _, out), _ = draw_product(*shape, "swiglu", torch.float32, hopper)
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
def test_cuda_repeats_give_the_same_bits(hopper, draw_product):
    args, keywords = draw_product(3333, 4608, 1040, "rest", torch.bfloat16, hopper)
    config = TmaConfig(2, 64, 256, 4, 8)
    launch(*args, config, **keywords)
    first = args[-1].clone()
    for _ in range(50):  # a race between the ring's warps would show
        args[-1].fill_(torch.nan)
        launch(*args, config, **keywords)
        assert torch.equal(args[-1], first)


@pytest.mark.gpu
def test_cuda_rows_past_the_output_are_left_alone(hopper, draw_product):
    whole = torch.full((400, 1160), torch.nan, dtype=torch.bfloat16, device=hopper)
    args, keywords = draw_product(333, 1160, 1040, "plain", torch.bfloat16, hopper)
    launch(*args[:5], whole[:333], CONFIGS[0], **keywords)
    assert whole[:333].isfinite().all() and whole[333:].isnan().all()
