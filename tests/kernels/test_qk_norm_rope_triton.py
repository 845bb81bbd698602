"""The Triton kernel against the reference: interpreted here, on CUDA where there is one."""

import pytest
import torch

from dit8.kernels.qk_norm_rope import qk_norm_rope_, qk_norm_rope_reference

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels import qk_norm_rope_triton as module  # noqa: E402
from dit8.kernels.qk_norm_rope_triton import Config, choose_config, launch  # noqa: E402

MODULE = "dit8.kernels.qk_norm_rope_triton"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EPS = 1e-5
SHAPES = [(0, 2, 8), (1, 1, 2), (5, 3, 16), (4, 5, 24), (2, 18, 256)]  # M, heads, d


def draw_args(m, heads, d, dtype, device="cpu"):
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(m, 3 * heads * d + 8, device=device, generator=generator).to(dtype)
    weights = [torch.randn(d, device=device, generator=generator).to(dtype) for _ in range(2)]
    angles = 7 * torch.rand(m, d // 2, device=device, generator=generator)
    return [qkv[:, :-8], *weights, angles.cos(), angles.sin(), heads, EPS]


def assert_equals_reference(args, before):
    expected = before[0].cpu().clone()
    qk_norm_rope_reference(expected, *(t.cpu() for t in args[1:5]), *args[5:])
    got = args[0].cpu()
    # An ulp where fp32 numbers a few 2^-24 of their terms (at most 4 x 4 here) apart round
    # differently; v bit for bit.
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, expected, rtol=eps, atol=2e-5)
    v = got.shape[1] // 3
    assert torch.equal(got[:, 2 * v :], before[0].cpu()[:, 2 * v :])


INTERPRETED = {
    f"M{shape[0]}-H{shape[1]}-d{shape[2]}-{str(dtype)[6:]}": draw_args(*shape, dtype)
    for shape in SHAPES
    for dtype in DTYPES
}


@pytest.fixture(scope="module")
def interpreted(run_interpreted):
    cases = {name: (args, choose_config(args[3].shape[1])) for name, args in INTERPRETED.items()}
    # q's last and k's first heads in one block, and a block wider than both together.
    cases["straddling"] = (draw_args(3, 3, 16, torch.float32), Config(2, 1))
    cases["wide"] = (draw_args(3, 3, 16, torch.float32), Config(16, 4))
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("name", [*INTERPRETED, "straddling", "wide"])
def test_interpreted_kernel_equals_the_reference(interpreted, name):
    before = INTERPRETED.get(name) or draw_args(3, 3, 16, torch.float32)
    assert_equals_reference(interpreted[name], before)


@pytest.mark.parametrize("capability", [80, 90])
def test_builds_exchange_nothing_but_the_sums(build_ptx, capability):
    types = dict(qkv_ptr="*bf16", q_weight_ptr="*bf16", k_weight_ptr="*bf16", cos_ptr="*fp32")
    types |= dict(sin_ptr="*fp32", stride_qkvm="i32", eps="fp32")
    constants = dict(HEADS=18, HALF=128, BLOCK_HEADS=4, BLOCK_D=128)
    ptx = build_ptx(module.qk_norm_rope_kernel, types, constants, capability, num_warps=2)
    # Two halves, four parts of the weights and twice two of the tables, all 16 bytes a thread.
    assert ptx.count("ld.global.v4.b32") == 10 and ptx.count("st.global.v4.b32") == 2
    assert "ld.shared" not in ptx and "ldmatrix" not in ptx


def test_small_heads_share_a_warp():
    assert choose_config(8) == Config(4, 1) and choose_config(128) == Config(4, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4396, 18, 256)], ids=str)
def test_cuda_kernel_equals_the_reference(cuda, shape, dtype):
    args = draw_args(*shape, dtype, cuda)
    before = [args[0].clone()]
    launch(*args, choose_config(args[3].shape[1]))
    assert_equals_reference(args, before)


@pytest.mark.gpu
def test_cuda_op_checks_and_compiles(cuda):
    *args, heads, eps = draw_args(20, 3, 64, torch.bfloat16, cuda)
    args[0] = args[0].contiguous()
    torch.library.opcheck(torch.ops.dit8.qk_norm_rope_.default, (*args, heads, eps))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def turned(qkv, *rest):
        qkv = qkv + 1
        qk_norm_rope_(qkv, *rest, heads=heads, eps=eps)
        return qkv

    got = turned(*args)
    expected = args[0] + 1
    qk_norm_rope_(expected, *args[1:], heads=heads, eps=eps)
    assert torch.equal(got, expected)
