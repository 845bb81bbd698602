"""The Triton kernel against the reference, bit for bit: interpreted here, on CUDA if present."""

import math

import pytest
import torch

from dit8.kernels.quant_rows import quant_rows, quant_rows_reference

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels import quant_rows_triton as module  # noqa: E402
from dit8.kernels.quant_rows_triton import Config, choose_config, launch  # noqa: E402

MODULE = "dit8.kernels.quant_rows_triton"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(0, 256), (1, 256), (17, 768), (64, 832), (5, 199), (9, 1), (3, 4608)]
ROTATED = [(17, 768, 256), (5, 832, 64), (5, 4608, 256), (9, 48, 16), (7, 20, 4), (1, 256, 256)]
GPU_SHAPES = SHAPES + [(4096 + 77, 4608), (4096 + 77, 12288), (300, 53248), (70_000, 257)]


def special_rows(k):
    """Return rows whose codes turn on the last bit, on the clamp, or on what is not a number."""
    tiny = 2.0**-149
    # With a largest value of 127 the step is 1 and these are ties; with 254, every odd number is.
    ties = [127.0] + [i + 0.5 for i in range(-126, 126)]
    doubled_ties = [254.0] + [float(i) for i in range(-253, 254, 2)]
    rows = [ties, doubled_ties, [0.0], [tiny], [170 * tiny, -170 * tiny], [1e38, 3e38, -2e38]]
    rows += [[1.0, math.nan], [1.0, math.inf], [-math.inf, 2.0], [math.nan, math.inf]]
    return torch.tensor([(row + [0.0] * k)[:k] for row in rows])


def draw_args(x, smooth=None, rotation=0):
    """Return launch's tensors, the outputs filled with what no row can hold."""
    codes = torch.full(x.shape, -128, dtype=torch.int8, device=x.device)
    return [x, smooth, rotation, codes, torch.full(x.shape[:1], -1.0, device=x.device)]


def draw_cases(shapes, device="cpu"):
    """Return {name: launch tensors}; many magnitudes per row, so that quotients are everywhere."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size):
        return torch.randn(*size, device=device, generator=generator)

    cases = {}
    for m, k in shapes:
        for dtype in DTYPES:
            x = (draw(2 * m, k) * torch.exp(4 * draw(2 * m, 1))).to(dtype)
            smooth = torch.exp(draw(k))
            name = f"M{m}-K{k}-{str(dtype)[6:]}"
            cases[name] = draw_args(x[:m])
            cases[f"{name}-smooth-skip"] = draw_args(x[::2], smooth)
    cases["special"] = draw_args(special_rows(260).to(device))
    cases["transposed"] = draw_args(draw(64, 5).t())
    cases["one-row-repeated"] = draw_args(draw(1, 64).expand(7, -1))
    return cases


def draw_rotated(shapes, device="cpu"):
    """Return {name: launch tensors} with outlier channels, which a rotation is made for."""
    generator = torch.Generator(device).manual_seed(1)
    cases = {}
    for m, k, rotation in shapes:
        for dtype in DTYPES:
            x = torch.randn(m, k, device=device, generator=generator)
            x[:, 1] *= 100
            name = f"M{m}-K{k}-R{rotation}-{str(dtype)[6:]}"
            cases[name] = draw_args(x.to(dtype), rotation=rotation)
    broken = torch.ones(4, 256, device=device)
    broken[0, 3], broken[1, 200], broken[2] = math.nan, -math.inf, 0.0
    return cases | {"broken-rotated": draw_args(broken, rotation=64)}


def assert_bits_equal(args):
    x, smooth, rotation, codes, scale = args
    smooth = None if smooth is None else smooth.cpu()
    expected, expected_scale = quant_rows_reference(x.cpu(), smooth, rotation)
    assert torch.equal(codes.cpu(), expected)
    # Scales are positive or NaN: with NaN counted as -7, equal means equal bits.
    assert torch.equal(scale.cpu().nan_to_num(-7.0), expected_scale.nan_to_num(-7.0))


def assert_close(args):
    """Compare a rotated row with the reference, which rotates in fp32.

    16 bits of each value enter, which moves a value by 2^-16 of the row's root mean square at most
    and the scale by as much of itself; a code is 2^-16 x 127 / sqrt(12) of a step away from where
    it should be, so fewer than 1 in 300 crosses a tie (0.1 % measured).
    """
    x, _, rotation, codes, scale = args
    expected, expected_scale = quant_rows_reference(x.cpu(), None, rotation)
    difference = (codes.cpu().int() - expected.int()).abs()
    assert (difference <= 1).all() and difference.sum() <= max(2, codes.numel() / 300)
    torch.testing.assert_close(scale.cpu(), expected_scale, rtol=2**-14, atol=0, equal_nan=True)


INTERPRETED = draw_cases(SHAPES)
INTERPRETED_ROTATED = draw_rotated(ROTATED)


@pytest.fixture(scope="module")
def interpreted(run_interpreted):
    cases = {name: (args, choose_config(args[0].shape[1])) for name, args in INTERPRETED.items()}
    # A row in several sweeps, the last one ragged, and a whole row in one that is too wide.
    cases["sweeps"] = (draw_args(INTERPRETED["M17-K768-float32"][0]), Config(256, 1))
    cases["wide"] = (draw_args(INTERPRETED["M5-K199-float32"][0]), Config(4096, 8))
    for name, args in INTERPRETED_ROTATED.items():
        cases[name] = (args, choose_config(args[0].shape[1], args[2]))
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("name", [*INTERPRETED, "sweeps", "wide"])
def test_interpreted_codes_and_scales_equal_the_reference(interpreted, name):
    assert_bits_equal(interpreted[name])


def test_two_instructions_divide_as_ieee_does():
    # The kernel's quotient, its fused operations done in fp64 where a product of two fp32 numbers
    # is exact: of 4 M quotients beside ties and elsewhere none differs.
    generator = torch.Generator().manual_seed(2)
    step = torch.exp(20 * torch.randn(1000, 1, generator=generator)).clamp(2.0**-100, 2.0**100)
    ties = (torch.randint(-127, 127, (1000, 2000), generator=generator) + 0.5) * step
    others = 127 * step * (2 * torch.rand(1000, 2000, generator=generator) - 1)
    v = torch.cat([ties, others], 1)
    inverse = 1 / step
    error = (1 - step.double() * inverse.double()).float() / step
    q = (v.double() * inverse.double() + (v * error).double()).float()
    assert torch.equal(q, v / step)
    assert not torch.equal(v * inverse, v / step)


@pytest.mark.parametrize("name", INTERPRETED_ROTATED)
def test_interpreted_rotation_is_near_the_reference(interpreted, name):
    assert_close(interpreted[name])


@pytest.mark.parametrize("capability", [80, 90])
def test_builds_divide_as_ieee_does_and_keep_the_rounding(build_ptx, capability):
    types = dict(x_ptr="*bf16", smooth_ptr="*fp32", codes_ptr="*i8", scale_ptr="*fp32")
    ptx = build_ptx(
        module.quant_rows_kernel,
        types | dict(stride_xm="i32"),
        dict(K=4608, ROTATION=0, BLOCK_K=512),
        capability,
        num_warps=2,
    )
    assert "div.rn.f32" in ptx
    # Approximate division, and flushing of subnormals, would each change a code somewhere.
    assert "div.full" not in ptx and "div.approx" not in ptx and ".ftz" not in ptx
    assert "0f4B400000" in ptx  # the magic number, 1.5 x 2^23
    # Nine chunks, each one 16-byte load of bf16 a thread, nothing masked and nothing reloaded.
    assert ptx.count("ld.global.v4.b32") == 9 + 2 * 9  # smooth takes two


def test_builds_rotate_on_the_tensor_cores(build_ptx):
    types = dict(x_ptr="*bf16", codes_ptr="*i8", scale_ptr="*fp32", stride_xm="i32")
    constants = dict(smooth_ptr=None, K=12288, ROTATION=256, BLOCK_K=4096)
    ptx = build_ptx(module.quant_rows_kernel, types, constants, 90, num_warps=8)
    # 16 groups a chunk, 2 a warp, 2 tiles of 8 columns each; x is bf16 and enters whole, the
    # product in two parts: 3 x 2 x 2 instructions for each of 3 chunks.
    assert ptx.count("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") == 36


@pytest.mark.parametrize(
    "k, rotation, config",
    [
        (1, 0, (256, 1)),
        (768, 0, (512, 2)),
        (768, 256, (1024, 2)),
        (4608, 0, (512, 2)),
        (4608, 256, (1024, 2)),
        (12288, 0, (4096, 8)),
        (53248, 0, (4096, 16)),
        (53248, 256, (4096, 16)),
    ],
)
def test_choose_config(k, rotation, config):
    assert choose_config(k, rotation) == Config(*config)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=lambda s: "M{}-K{}".format(*s))
def test_cuda_codes_and_scales_equal_the_reference(cuda, shape):
    for args in draw_cases([shape], cuda).values():
        launch(*args, choose_config(args[0].shape[1]))
        assert_bits_equal(args)


@pytest.mark.gpu
def test_cuda_rotation_is_near_the_reference(cuda):
    for args in draw_rotated([*ROTATED, (4396, 12288, 256), (77, 53248, 256)], cuda).values():
        launch(*args, choose_config(args[0].shape[1], args[2]))
        assert_close(args)


@pytest.mark.gpu
def test_cuda_op_agrees_with_the_cpu_and_compiles(cuda):
    x = torch.randn(2, 200, 768, device=cuda).bfloat16()
    smooth = torch.rand(768, device=cuda) + 0.5
    torch.library.opcheck(torch.ops.dit8.quant_rows.default, (x[0], smooth))
    compiled = torch.compile(quant_rows, fullgraph=True, backend="aot_eager")
    for run in (quant_rows, compiled):
        codes, scale = run(x, smooth)
        on_cpu = quant_rows(x.cpu(), smooth.cpu())
        assert torch.equal(codes.cpu(), on_cpu[0]) and torch.equal(scale.cpu(), on_cpu[1])
