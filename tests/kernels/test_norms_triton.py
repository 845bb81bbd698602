"""The Triton kernel against the reference: interpreted here, on CUDA where there is one."""

import pytest
import torch

from dit8.kernels.norms import (
    gated_residual_norm_quant,
    gated_residual_reference,
    modulated_norm_quant,
    modulated_norm_reference,
)
from dit8.kernels.quant_rows import quant_rows_reference

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels import norms_triton as module  # noqa: E402
from dit8.kernels.norms_triton import choose_config, launch  # noqa: E402
from dit8.kernels.quant_rows_triton import Config  # noqa: E402

MODULE = "dit8.kernels.norms_triton"
EPS = 1e-5
PARTS = {
    "norm": dict(),
    "norm-codes": dict(codes=True),
    "norm-codes-smooth": dict(codes=True, smooth=True),
    "norm-codes-rotated": dict(codes=True, rotation=16),
    "residual": dict(residual=True, norm=False),
    "residual-norm": dict(residual=True),
    "residual-norm-codes": dict(residual=True, codes=True),
    "residual-norm-codes-rotated": dict(residual=True, codes=True, rotation=16),
}


def draw_args(m, k, dtype=torch.bfloat16, device="cpu", vectors=None, skip=False, **parts):
    """Return launch's tensors, the outputs filled with what no row can hold."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size, dtype=dtype):
        return torch.randn(*size, device=device, generator=generator).to(dtype)

    def vector(wanted):
        return draw(k, dtype=vectors or dtype) if wanted else None

    def empty(wanted, *size, dtype=dtype, fill=torch.nan):
        return torch.full(size, fill, dtype=dtype, device=device) if wanted else None

    residual, norm = parts.get("residual", False), parts.get("norm", True)
    codes = parts.get("codes", False)
    rows = [draw(2 * m, k)[::2] if skip else draw(m, k) for _ in range(2)]
    if m > 2:
        rows[0][1] = 0
        rows[0][2, 5] = torch.nan
    smooth = torch.exp(draw(k, dtype=torch.float32)) if parts.get("smooth") else None
    return [
        rows[0],
        rows[1] if residual else None,
        *(vector(residual), vector(residual), vector(norm), vector(norm)),
        smooth,
        parts.get("rotation", 0),
        EPS,
        empty(residual, m, k),
        empty(norm and not codes, m, k),
        empty(codes, m, k, dtype=torch.int8, fill=-128),
        empty(codes, m, dtype=torch.float32),
    ]


def assert_within_an_ulp(got, expected):
    """Compare values rounded once from fp32 numbers that differ in their last bits."""
    got, expected = got.cpu(), expected.to(got.dtype)
    eps = torch.finfo(got.dtype).eps
    # fp32 outputs: sums of K squares in another order, and the factors in another.
    rtol = eps if got.dtype != torch.float32 else 16 * eps
    torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-6, equal_nan=True)


def assert_equals_reference(args):
    rows, vectors, outputs = args[:2], args[2:7], args[9:]
    h, y = (None if t is None else t.cpu() for t in rows)
    weight, gate, next_weight, next_scale, smooth = (
        None if t is None else t.cpu() for t in vectors
    )
    h_out, values, codes, x_scale = outputs
    if y is not None:
        expected = gated_residual_reference(h, y, weight, gate, EPS)
        assert_within_an_ulp(h_out, expected)
        h = h_out.cpu()  # the norm reads what was stored
    if next_weight is None:
        return
    normed = modulated_norm_reference(h, next_weight, next_scale, EPS)
    if values is not None:
        assert_within_an_ulp(values, normed)
        return
    expected, expected_scale = quant_rows_reference(normed, smooth, args[7])
    difference = (codes.cpu().int() - expected.int()).abs()
    # The row differs from the reference's by a few 2^-24 of itself, rotated from 16 bits by 2^-16:
    # of 127 codes fewer than 1 in 10,000 and 1 in 300 cross a tie.
    assert (difference <= 1).all()
    assert difference.sum() <= max(2, codes.numel() / (300 if args[7] else 10_000))
    rtol = 2**-14 if args[7] else 2**-20
    torch.testing.assert_close(x_scale.cpu(), expected_scale, rtol=rtol, atol=0, equal_nan=True)


INTERPRETED = {
    f"{name}-{str(dtype)[6:]}": draw_args(5, 272, dtype, **parts)
    for name, parts in PARTS.items()
    for dtype in (torch.bfloat16, torch.float32)
} | {
    "no-rows": draw_args(0, 48, codes=True, residual=True),
    "one-row": draw_args(1, 199, codes=True, residual=True),
    "half-skip": draw_args(7, 832, torch.float16, skip=True, residual=True, codes=True),
    "fp32-vectors": draw_args(3, 768, vectors=torch.float32, residual=True, codes=True),
    "full-width": draw_args(2, 4608, residual=True, codes=True, rotation=256),
    "full-width-norm": draw_args(2, 4608, codes=True, rotation=256),
}


@pytest.fixture(scope="module")
def interpreted(run_interpreted):
    cases = {
        name: (args, choose_config(args[0].shape[1], args[7], args[1] is not None))
        for name, args in INTERPRETED.items()
    }
    args = draw_args(3, 199, residual=True)
    args[0] = torch.randn(199, 3).bfloat16().t()
    cases["transposed"] = (args, Config(256, 1))
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("name", [*INTERPRETED, "transposed"])
def test_interpreted_kernel_equals_the_reference(interpreted, name):
    assert_equals_reference(interpreted[name])


@pytest.mark.parametrize("residual", [False, True], ids=["norm", "residual"])
@pytest.mark.parametrize("rotation", [0, 256])
def test_builds_load_16_bytes_at_a_time(build_ptx, residual, rotation):
    types = dict(h_ptr="*bf16", next_weight_ptr="*bf16", next_scale_ptr="*bf16")
    types |= dict(codes_ptr="*i8", x_scale_ptr="*fp32", stride_hm="i32", stride_ym="i32")
    types |= dict(eps="fp32")
    if residual:
        types |= dict.fromkeys(("y_ptr", "weight_ptr", "gate_ptr", "h_out_ptr"), "*bf16")
    config = choose_config(4608, rotation, residual)
    constants = dict(K=4608, ROTATION=rotation, BLOCK_K=config.block_k)
    constants |= {n: None for n in module.norm_kernel.arg_names if n not in types | constants}
    ptx = build_ptx(module.norm_kernel, types, constants, 90, num_warps=config.num_warps)
    loads = ptx.count("ld.global.v4.b32")
    chunks = -(-4608 // config.block_k) * config.block_k // (256 * config.num_warps)
    assert loads == chunks * (6 if residual else 3)
    assert ("mma.sync" in ptx) == bool(rotation)


def test_a_residual_spreads_its_row_over_more_warps():
    assert choose_config(4608) == Config(512, 2)
    assert choose_config(4608, 256) == Config(1024, 2)
    assert choose_config(4608, 256, residual=True) == Config(1024, 4)
    assert choose_config(256, 0, residual=True) == Config(256, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(17, 768), (4396, 4608), (300, 12288)], ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_cuda_kernel_equals_the_reference(cuda, name, shape):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        args = draw_args(*shape, dtype, cuda, vectors=torch.float32, skip=True, **PARTS[name])
        launch(*args, choose_config(shape[1], args[7], args[1] is not None))
        assert_equals_reference(args)


@pytest.mark.gpu
def test_cuda_ops_agree_with_the_cpu_and_compile(cuda):
    generator = torch.Generator(cuda).manual_seed(3)
    h, y = torch.randn(2, 200, 768, device=cuda, generator=generator).bfloat16()
    vectors = [torch.rand(768, device=cuda, generator=generator) for _ in range(4)]
    op = torch.ops.dit8.gated_residual_norm_quant.default
    torch.library.opcheck(op, (h, y, *vectors, EPS, None, 256))

    def block(h, y, *vectors):
        stream, *_ = gated_residual_norm_quant(h, y, *vectors, eps=EPS, rotation=256)
        return stream, *modulated_norm_quant(stream, *vectors[2:], eps=EPS)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(h, y, *vectors), block(h, y, *vectors), strict=True):
        assert torch.equal(a, b)
    on_cpu = block(h.cpu(), y.cpu(), *(v.cpu() for v in vectors))
    assert_within_an_ulp(block(h, y, *vectors)[0], on_cpu[0])
