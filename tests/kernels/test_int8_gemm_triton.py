"""The Triton kernel against exact integers: interpreted here, on CUDA where there is one."""

from dataclasses import asdict

import pytest
import torch

from kernels.int8_gemm import accumulate, int8_gemm
from quant.errors import UserError

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from triton.runtime.errors import OutOfResources  # noqa: E402

from kernels import int8_gemm_triton as module  # noqa: E402
from kernels.int8_gemm_triton import CONFIGS, Config, candidates, choose_config, launch  # noqa: E402

MODULE = "kernels.int8_gemm_triton"
MINI = [(256, 256), (768, 256), (256, 768), (256, 832)]  # (N, K) of the mini's linears
FULL = [(4608, 4608), (12288, 4608), (4608, 12288)]  # and of the full model's
RAGGED = [(17, 1, 199), (33, 65, 31), (130, 257, 129)]  # no size a multiple of any tile

SHAPES = [(m, n, k) for n, k in MINI for m in (0, 1, 17, 256)] + RAGGED
GPU_SHAPES = [(m, n, k) for n, k in MINI + FULL for m in (0, 1, 17, 256, 4096 + 77)] + RAGGED
# Every tile runs once on whole and once on ragged sizes, the mini's shapes take them in turn.
INTERPRETED = {
    "M{}-N{}-K{}".format(*shape): (shape, CONFIGS[i % len(CONFIGS)])
    for i, shape in enumerate(SHAPES)
} | {f"ragged-tile{i}": ((19, 70, 150 + 128 * (i % 2)), config) for i, config in enumerate(CONFIGS)}


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


def with_unit_scales(args):
    """Make the output the integer sums themselves: fp32, no bias."""
    x, x_scale, w, w_scale, _, out = args
    ones = torch.ones_like
    return [x, ones(x_scale), w, ones(w_scale), None, torch.full_like(out, torch.nan).float()]


def assert_sums_equal(args):
    x, _, w, _, _, out = args
    # Below 2^24 (K <= 1040 at full range) fp32 holds the integer; above, both round it alike.
    assert torch.equal(out, accumulate(x, w).float())


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


EPILOGUES = {
    f"{str(dtype)[6:]}-bias{int(bias)}-skip{int(skip)}": dict(
        out_dtype=dtype, bias=bias, skip_rows=skip
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for bias in (True, False)
    for skip in (True, False)
}


@pytest.fixture(scope="module")
def interpreted_epilogues(run_interpreted):
    config = Config(32, 64, 128, 4, 4, 5)
    cases = {name: (draw_args(33, 65, 199, **kw), config) for name, kw in EPILOGUES.items()}
    # An x whose columns are strided is copied by launch; bias in bf16 is widened.
    args = draw_args(33, 65, 199)
    args[0], args[4] = draw_codes(199, 33, seed=9).t(), args[4].bfloat16()
    return run_interpreted(MODULE, cases | {"transposed-bf16-bias": (args, config)})


@pytest.mark.parametrize("name", [*EPILOGUES, "transposed-bf16-bias"])
def test_interpreted_epilogue_is_within_two_eps(interpreted_epilogues, name, assert_within_two_eps):
    assert_within_two_eps(*interpreted_epilogues[name])


# The tile with the most shared memory and a small one; mma.sync up to sm_89, wgmma on sm_90.
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[7]], ids=["128x256x128", "64x128x128"])
@pytest.mark.parametrize(
    "capability, instruction",
    [
        (80, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"),
        (86, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"),
        (89, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"),
        (90, "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8"),
    ],
)
def test_builds_use_the_integer_matrix_instruction(build_ptx, config, capability, instruction):
    types = dict(x_ptr="*i8", x_scale_ptr="*fp32", w_ptr="*i8", w_scale_ptr="*fp32")
    types |= dict(bias_ptr="*bf16", out_ptr="*bf16", M="i32", N="i32", K="i32")
    types |= dict(stride_xm="i32", stride_wn="i32", stride_om="i32")
    constants = {
        name.upper(): size
        for name, size in asdict(config).items()
        if name.startswith(("block", "group"))
    }
    ptx = build_ptx(
        module.int8_gemm_kernel,
        types,
        constants | {"HAS_BIAS": True, "EVEN_K": True},
        capability,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    assert instruction in ptx


def test_configs_are_distinct_tiles_that_the_instructions_can_take():
    assert len(CONFIGS) >= 12 and len(set(CONFIGS)) == len(CONFIGS)
    for config in CONFIGS:
        for size in (config.block_m, config.block_n, config.block_k):
            assert size >= 16 and size & (size - 1) == 0
        assert config.block_k >= 32  # depth of one int8 matrix instruction
        # sm_90 keeps every stage in shared memory and has 227 KiB for one block.
        tiles = config.num_stages * (config.block_m + config.block_n) * config.block_k
        assert tiles <= 227 * 1024


@pytest.mark.parametrize(
    "m, bucket", [(1, 16), (16, 16), (17, 32), (256, 256), (257, 512), (4173, 8192), (10**6, 8192)]
)
def test_m_bucket(m, bucket):
    assert module.m_bucket(m) == bucket


def test_short_products_are_not_timed_with_tall_tiles():
    assert {config.block_m for config in candidates(1)} == {16, 32, 64}
    assert candidates(4173) == CONFIGS


@pytest.fixture
def timed(monkeypatch):
    """Replace the GPU by a table of times; return the calls that were timed."""
    calls = []

    def time_config(m, config):
        calls.append((m, config))
        if config.num_stages > 3:
            raise OutOfResources(200_000, 101_376, "shared memory")
        return 1.0 + abs(config.block_n - 128) + config.num_warps / 100

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(module, "_operands", lambda m, n, k, device: (m,))
    monkeypatch.setattr(module, "time_config", time_config)
    monkeypatch.setattr(module, "_chosen", {})
    return calls


def test_choose_config_times_once_per_bucket_and_passes_over_what_does_not_fit(timed):
    device = torch.device("cuda", 0)
    chosen = choose_config(4173, 4608, 4608, device)
    assert (chosen.block_n, chosen.num_warps, chosen.num_stages) == (128, 4, 3)
    assert [config for _, config in timed] == list(CONFIGS)
    assert choose_config(5000, 4608, 4608, device) is chosen
    assert len(timed) == len(CONFIGS)  # the same bucket: not timed again
    choose_config(4000, 4608, 4608, device)
    choose_config(4000, 4608, 12288, device)
    assert len(timed) == 3 * len(CONFIGS)


def test_a_gpu_on_which_no_tile_fits_is_an_error(timed):
    tall = tuple(config for config in CONFIGS if config.num_stages > 3)
    with pytest.raises(UserError, match=rf"none of {len(tall)} tiles fits this GPU.*add a smaller"):
        module.fastest(tall, lambda config: module.time_config(1, config))


def test_timing_inside_a_graph_capture_is_an_error(timed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(UserError, match=r"M=7, N=8, K=9 and a CUDA graph .* run the model once"):
        choose_config(7, 8, 9, torch.device("cuda", 0))
    assert timed == []


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=lambda s: "M{}-N{}-K{}".format(*s))
def test_cuda_sums_equal_the_integers(cuda, shape):
    for config in (Config(128, 128, 64, 8, 8, 4), Config(64, 128, 128, 8, 4, 3)):
        args = with_unit_scales(draw_args(*shape, device=cuda, skip_rows=True))
        launch(*args, config)
        assert_sums_equal(args)


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "x".join(map(str, asdict(c).values())))
@pytest.mark.parametrize("shape", [(4173, 4608, 4608), (333, 257, 1999)], ids=str)
def test_cuda_tiles_all_give_the_same_sums(cuda, shape, config):
    args = with_unit_scales(draw_args(*shape, device=cuda))
    try:
        launch(*args, config)
    except OutOfResources as error:
        pytest.skip(f"does not fit this GPU: {error}")
    assert_sums_equal(args)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EPILOGUES)
def test_cuda_epilogue_is_within_two_eps(cuda, name, assert_within_two_eps):
    args = draw_args(1111, 833, 777, device=cuda, **EPILOGUES[name])
    launch(*args, Config(64, 128, 128, 8, 4, 3))
    assert_within_two_eps(*args)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [0, 1, 17, 400])
def test_cuda_op_chooses_a_tile_and_is_within_two_eps(cuda, m, assert_within_two_eps):
    *args, _ = draw_args(m, 768, 256, device=cuda)
    assert_within_two_eps(*args, int8_gemm(*args))
    assert m == 0 or (module.m_bucket(m), 768, 256, cuda) in module._chosen


@pytest.mark.gpu
def test_cuda_opcheck_and_compile(cuda):
    *args, _ = draw_args(17, 256, 832, device=cuda)
    torch.library.opcheck(torch.ops.dit8.int8_gemm.default, (*args, torch.bfloat16))
    compiled = torch.compile(int8_gemm, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), int8_gemm(*args))


@pytest.mark.gpu
def test_cuda_graph_replays_a_product_that_ran_before(cuda):
    *args, _ = draw_args(256, 256, 768, device=cuda)
    expected = int8_gemm(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = int8_gemm(*args)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)
