"""The Triton kernel against the reference, bit for bit: interpreted here, on CUDA if present."""

import math

import pytest
import torch

from kernels.quant_rows import quant_rows, quant_rows_reference

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from kernels import quant_rows_triton as module  # noqa: E402
from kernels.quant_rows_triton import Config, choose_config, launch  # noqa: E402

MODULE = "kernels.quant_rows_triton"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(0, 256), (1, 256), (17, 768), (64, 832), (5, 199), (9, 1), (3, 4608)]
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


def draw_args(x, smooth=None):
    """Return launch's tensors, the outputs filled with what no row can hold."""
    codes = torch.full(x.shape, -128, dtype=torch.int8, device=x.device)
    return [x, smooth, codes, torch.full(x.shape[:1], -1.0, device=x.device)]


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


def assert_bits_equal(args):
    x, smooth, codes, scale = args
    on_cpu = quant_rows_reference(x.cpu(), None if smooth is None else smooth.cpu())
    assert torch.equal(codes.cpu(), on_cpu[0])
    # Scales are positive or NaN: with NaN counted as -7, equal means equal bits.
    assert torch.equal(scale.cpu().nan_to_num(-7.0), on_cpu[1].nan_to_num(-7.0))


INTERPRETED = draw_cases(SHAPES)


@pytest.fixture(scope="module")
def interpreted(run_interpreted):
    cases = {name: (args, choose_config(args[0].shape[1])) for name, args in INTERPRETED.items()}
    # A row in several sweeps, the last one ragged, and a whole row in one that is too wide.
    cases["sweeps"] = (draw_args(INTERPRETED["M17-K768-float32"][0]), Config(256, 1))
    cases["wide"] = (draw_args(INTERPRETED["M5-K199-float32"][0]), Config(4096, 8))
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("name", [*INTERPRETED, "sweeps", "wide"])
def test_interpreted_codes_and_scales_equal_the_reference(interpreted, name):
    assert_bits_equal(interpreted[name])


@pytest.mark.parametrize("capability", [80, 90])
def test_builds_divide_as_ieee_does_and_keep_the_rounding(build_ptx, capability):
    types = dict(x_ptr="*bf16", smooth_ptr="*fp32", codes_ptr="*i8", scale_ptr="*fp32")
    ptx = build_ptx(
        module.quant_rows_kernel,
        types | dict(K="i32", stride_xm="i32"),
        dict(HAS_SMOOTH=True, BLOCK_K=1024),
        capability,
        num_warps=4,
    )
    assert "div.rn.f32" in ptx
    # Approximate division, and flushing of subnormals, would each change a code somewhere.
    assert "div.full" not in ptx and "div.approx" not in ptx and ".ftz" not in ptx
    # The magic number, 1.5 x 2^23, is added and taken away again: not folded into nothing.
    assert "0f4B400000" in ptx and "0fCB400000" in ptx


@pytest.mark.parametrize("k, config", [(1, (256, 1)), (768, (1024, 2)), (12288, (4096, 8))])
def test_choose_config(k, config):
    assert choose_config(k) == Config(*config)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=lambda s: "M{}-K{}".format(*s))
def test_cuda_codes_and_scales_equal_the_reference(cuda, shape):
    for args in draw_cases([shape], cuda).values():
        launch(*args, choose_config(args[0].shape[1]))
        assert_bits_equal(args)


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
