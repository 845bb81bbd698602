"""The Triton kernel against the reference: interpreted here, on CUDA where there is one."""

import pytest
import torch

from dit8.kernels.quant_rows import quant_rows_reference
from dit8.kernels.swiglu import swiglu, swiglu_quant, swiglu_reference

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels import swiglu_triton as module  # noqa: E402
from dit8.kernels.quant_rows_triton import Config  # noqa: E402
from dit8.kernels.swiglu_triton import choose_config, launch  # noqa: E402
from dit8.scripts.arch_compile import read_usage  # noqa: E402

MODULE = "dit8.kernels.swiglu_triton"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
PARTS = {
    "values": dict(),
    "codes": dict(codes=True),
    "codes-smooth": dict(codes=True, smooth=True),
    "codes-rotated": dict(codes=True, rotation=16),
}


def draw_args(m, f, dtype=torch.bfloat16, device="cpu", **parts):
    """Return launch's tensors, the outputs filled with what no row can hold."""
    generator = torch.Generator(device).manual_seed(0)
    u = 2 * torch.randn(2 * m, 2 * f, device=device, generator=generator)
    if m > 2:
        u[2] = 0
        u[4, :2] = torch.tensor([-120.0, 60.0])  # an exponential that overflows fp32, and a large
    smooth = torch.rand(f, device=device, generator=generator) + 0.5
    codes = torch.full((m, f), -128, dtype=torch.int8, device=device)
    values = torch.full((m, f), torch.nan, dtype=dtype, device=device)
    quantized = parts.get("codes", False)
    return [
        u.to(dtype)[::2],
        smooth if parts.get("smooth") else None,
        parts.get("rotation", 0),
        None if quantized else values,
        codes if quantized else None,
        torch.full((m,), torch.nan, device=device) if quantized else None,
    ]


def config_of(args):
    u, smooth, rotation, *_ = args
    return choose_config(u.shape[1] // 2, rotation, smooth is not None)


def assert_equals_reference(args):
    u, smooth, rotation, values, codes, x_scale = args
    z = swiglu_reference(u.cpu())
    if values is not None:
        eps = torch.finfo(values.dtype).eps
        # An ulp of bf16 or fp16 where fp32 numbers a few 2^-23 apart round differently.
        rtol = eps if values.dtype != torch.float32 else 16 * eps
        torch.testing.assert_close(values.cpu(), z.to(values.dtype), rtol=rtol, atol=1e-7)
        return
    expected, expected_scale = quant_rows_reference(
        z, None if smooth is None else smooth.cpu(), rotation
    )
    difference = (codes.cpu().int() - expected.int()).abs()
    # As in test_norms_triton: rows a few 2^-24 apart, rotated from 16 bits 2^-16.
    assert (difference <= 1).all()
    assert difference.sum() <= max(2, codes.numel() / (300 if rotation else 10_000))
    rtol = 2**-14 if rotation else 2**-20
    torch.testing.assert_close(x_scale.cpu(), expected_scale, rtol=rtol, atol=0)


INTERPRETED = {
    f"{name}-{str(dtype)[6:]}": draw_args(5, 272, dtype, **parts)
    for name, parts in PARTS.items()
    for dtype in DTYPES
} | {
    "no-rows": draw_args(0, 48, codes=True),
    "ragged": draw_args(3, 199, codes=True),
    "one-column": draw_args(3, 1, codes=True),
    "full-width": draw_args(1, 12288, codes=True, rotation=256),
    "full-width-smooth": draw_args(1, 12288, codes=True, smooth=True),
}


@pytest.fixture(scope="module")
def interpreted(run_interpreted):
    cases = {name: (args, config_of(args)) for name, args in INTERPRETED.items()}
    args = draw_args(4, 96)
    args[0] = torch.randn(192, 4).bfloat16().t()
    return run_interpreted(MODULE, cases | {"transposed": (args, Config(256, 1))})


@pytest.mark.parametrize("name", [*INTERPRETED, "transposed"])
def test_interpreted_kernel_equals_the_reference(interpreted, name):
    assert_equals_reference(interpreted[name])


def test_builds_load_16_bytes_at_a_time(build_ptx):
    types = dict(u_ptr="*bf16", codes_ptr="*i8", x_scale_ptr="*fp32", stride_um="i32")
    constants = dict(smooth_ptr=None, values_ptr=None, F=12288, ROTATION=256, BLOCK_K=4096)
    ptx = build_ptx(module.swiglu_kernel, types, constants, 90, num_warps=8)
    assert ptx.count("ld.global.v4.b32") == 12  # 3 chunks x 2 halves x 16 values of 2 bytes
    assert ptx.count("st.global.v4.b32") == 2 * 3  # 16 codes, after the fast and the slow division


@pytest.mark.parametrize(
    "k, rotation, smooth, config",
    [
        (768, 0, True, (512, 2)),
        (8192, 0, True, (512, 2)),
        (12288, 0, False, (4096, 8)),
        (12288, 256, False, (4096, 8)),
        (12288, 0, True, (4096, 16)),
        (53248, 0, True, (4096, 16)),
    ],
)
def test_choose_config(k, rotation, smooth, config):
    assert choose_config(k, rotation, smooth) == Config(*config)


def test_a_wide_smoothed_row_spills_nothing(compile_launch):
    args = draw_args(1, 12288, codes=True, smooth=True)
    usage = read_usage(compile_launch(100, launch, *args, config_of(args)).kernel)
    assert usage.stack_bytes == usage.spill_instructions == 0


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(17, 768), (4396, 12288)], ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_cuda_kernel_equals_the_reference(cuda, name, shape):
    for dtype in DTYPES:
        args = draw_args(*shape, dtype, cuda, **PARTS[name])
        launch(*args, config_of(args))
        assert_equals_reference(args)


@pytest.mark.gpu
def test_cuda_ops_agree_with_the_cpu_and_compile(cuda):
    u = draw_args(200, 768, device=cuda)[0]
    torch.library.opcheck(torch.ops.dit8.swiglu_quant.default, (u, None, 256))

    def both(u):
        return swiglu(u), *swiglu_quant(u, rotation=256)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(u), both(u), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(both(u)[0].cpu(), swiglu(u.cpu()), rtol=2**-7, atol=1e-7)
