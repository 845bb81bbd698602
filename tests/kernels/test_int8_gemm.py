import time

import pytest
import torch
import torch.nn.functional as F

from dit8.kernels.int8_gemm import (
    CPU_SUMS,
    accumulate,
    accumulate_in_fp32,
    cpu_sums_ms,
    int8_gemm,
    int8_gemm_swiglu,
)
from dit8.kernels.quant_rows import quant_rows

MINI = [(256, 256), (768, 256), (256, 768), (256, 832)]  # (N, K) of the mini's linears
SHAPES = [(m, n, k) for n, k in MINI for m in (0, 1, 17, 256)] + [
    (17, 1, 199),  # one output, K a multiple of nothing
    (5, 7, 1),
    (1, 1, 1),
    (33, 65, 1025),  # one column past an exact fp32 slice
    (4, 20, 3000),  # three slices
]


def named(shape):
    return "M{}-N{}-K{}".format(*shape)


def draw_codes(*shape, seed=0, limit=127):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, shape, dtype=torch.int8, generator=generator)


def draw_scales(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 0.02 + 1e-4


def int64_sums(x, w):
    return x.long() @ w.long().t()


def draw_case(m, n, k):
    """Return x, x_scale, w, w_scale, bias with full-range codes."""
    bias = torch.randn(n, generator=torch.Generator().manual_seed(4))
    x, w = draw_codes(m, k, seed=1), draw_codes(n, k, seed=2)
    return x, draw_scales(m, 3), w, draw_scales(n, 4), bias


def draw_rest(m, n, dtype=torch.float32):
    """Return a gate and a residual."""
    generator = torch.Generator().manual_seed(5)
    gate, residual = (torch.randn(size, generator=generator) for size in ((n,), (m, n)))
    return {"gate": gate.to(dtype), "residual": residual.to(dtype)}


def draw_swiglu_case(m, n, k):
    """Return x, x_scale, w = [w1; w3], w_scale; the products are a few units."""
    x, x_scale, w, w_scale, _ = draw_case(m, 2 * n, k)
    return x, x_scale / 8, w, w_scale


@pytest.mark.parametrize("sum_up", [accumulate, accumulate_in_fp32])
@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_sums_equal_int64(shape, sum_up):
    m, n, k = shape
    x, w = draw_codes(m, k, seed=1), draw_codes(n, k, seed=2)
    sums = sum_up(x, w)
    assert sum_up is accumulate_in_fp32 or sums.dtype == torch.int32
    assert torch.equal(sums.long(), int64_sums(x, w))


@pytest.mark.parametrize("sum_up", [accumulate, accumulate_in_fp32])
@pytest.mark.parametrize("a, b", [(127, 127), (127, -127), (-128, -128)])
@pytest.mark.parametrize("k", [832, 1024, 5000])
def test_the_largest_sums_are_exact(sum_up, a, b, k):
    # 127 x 127 saturates int16 pairs on a CPU without VNNI; (-128)^2 x 1024 is 2^24, the edge of
    # what fp32 counts exactly. The first column makes sums of 127s odd: past 2^24 fp32 must lose.
    x = torch.full((3, k), a, dtype=torch.int8)
    w = torch.full((5, k), b, dtype=torch.int8)
    w[:, 0] = 1
    sums = torch.full((3, 5), a * b * (k - 1) + a, dtype=torch.int32)
    assert torch.equal(sum_up(x, w).to(torch.int32), sums)


ON_AN_OLD_CPU = """
import sys
import torch
from dit8.kernels.int8_gemm import accumulate, int8_gemm, int8_gemm_swiglu, int_mm_is_exact
x = torch.randint(-127, 128, (17, 832), dtype=torch.int8)
w = torch.randint(-127, 128, (64, 832), dtype=torch.int8)
truth = x.long() @ w.long().t()
assert torch.equal(accumulate(x, w).long(), truth), "accumulate"
assert int_mm_is_exact() == torch.equal(torch._int_mm(x, w.t()).long(), truth), "probe"
int8_gemm(x, torch.ones(17), w, torch.ones(64))
int8_gemm_swiglu(x, torch.ones(17), w, torch.ones(64))
for name in ("int8_gemm_triton", "int8_gemm_tma", "int8_gemm_gluon", "tiles"):
    assert f"kernels.{name}" not in sys.modules, f"a CPU call imported {name}"
"""


@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
def test_sums_are_exact_on_a_cpu_whose_int_mm_is_not(run_child, isa):
    # oneDNN limited to AVX2 computes as a CPU without VNNI does (no effect on other processors).
    run_child("-c", ON_AN_OLD_CPU, ONEDNN_MAX_CPU_ISA=isa)


@pytest.mark.parametrize("slow", CPU_SUMS)
def test_a_slow_way_to_sum_is_not_taken(slow, monkeypatch):
    calls = []

    def sum_slowly(x, w):
        calls.append(x.shape)
        time.sleep(0.01)  # the others take 0.2 ms
        return accumulate_in_fp32(x, w)

    monkeypatch.setattr("dit8.kernels.int8_gemm.int_mm_is_exact", lambda: True)
    monkeypatch.setitem(CPU_SUMS, slow, sum_slowly)
    cpu_sums_ms.cache_clear()
    try:
        assert set(cpu_sums_ms()) == set(CPU_SUMS)
        timed = len(calls)
        accumulate(draw_codes(3, 64), draw_codes(5, 64))
        assert timed and len(calls) == timed
    finally:
        cpu_sums_ms.cache_clear()


def test_autocast_does_not_round_the_sums():
    x, w = draw_codes(17, 832, seed=1), draw_codes(64, 832, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(accumulate_in_fp32(x, w).long(), int64_sums(x, w))


@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_unit_scales_return_the_integers(shape):
    m, n, k = shape
    x, w = draw_codes(m, k, seed=1, limit=15), draw_codes(n, k, seed=2, limit=15)
    y = int8_gemm(x, torch.ones(m), w, torch.ones(n), out_dtype=torch.float32)
    assert torch.equal(y, int64_sums(x, w).float())  # |sum| <= 15^2 x 3000 < 2^24: exact in fp32


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("bias_dtype", [None, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(17, 768, 256), (33, 5, 199), (1, 256, 832)], ids=named)
def test_random_scales_are_within_two_eps(shape, bias_dtype, out_dtype, assert_within_two_eps):
    x, x_scale, w, w_scale, bias = draw_case(*shape)
    bias = None if bias_dtype is None else bias.to(bias_dtype)
    y = int8_gemm(x, x_scale, w, w_scale, bias, out_dtype=out_dtype)
    assert y.dtype == out_dtype
    assert_within_two_eps(x, x_scale, w, w_scale, bias, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("given", [("gate", "residual"), ("gate",), ("residual",)], ids="-".join)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_gate_and_residual_are_within_two_eps(with_bias, given, dtype, assert_within_two_eps):
    x, x_scale, w, w_scale, bias = draw_case(33, 40, 199)
    bias = bias if with_bias else None
    rest = {name: value for name, value in draw_rest(33, 40, dtype).items() if name in given}
    before = {name: value.clone() for name, value in rest.items()}
    y = int8_gemm(x, x_scale, w, w_scale, bias, out_dtype=dtype, **rest)
    assert y.dtype == dtype
    assert_within_two_eps(x, x_scale, w, w_scale, bias, y, **rest)
    assert all(torch.equal(rest[name], before[name]) for name in rest)


def test_the_gate_multiplies_the_bias_too_and_the_residual_comes_last():
    x, w = torch.tensor([[1, 2, 3]], dtype=torch.int8), torch.ones(1, 3, dtype=torch.int8)
    ones, seven = torch.ones(1), torch.tensor([7.0])
    rest = {"gate": torch.tensor([10.0]), "residual": torch.tensor([[100.0]])}
    assert int8_gemm(x, ones, w, ones, seven, **rest).item() == 230.0  # 100 + 10 (6 + 7)


def test_gate_and_residual_are_cast_once():
    # 257 x 0.5 = 128.5, twice that plus 1 is 258, which bf16 has. With the product (128) or twice
    # it (256) cast before the residual it would be 256.
    x, w = torch.tensor([[127, 127, 3]], dtype=torch.int8), torch.ones(1, 3, dtype=torch.int8)
    rest = {"gate": torch.tensor([2.0]), "residual": torch.tensor([[1.0]])}
    assert int8_gemm(x, torch.tensor([0.5]), w, torch.ones(1), **rest).item() == 258.0


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(0, 8, 16), (1, 256, 832), (33, 5, 199), (7, 1, 1)], ids=named)
def test_swiglu_is_within_two_eps(shape, out_dtype, assert_swiglu_within_two_eps):
    case = draw_swiglu_case(*shape)
    y = int8_gemm_swiglu(*case, out_dtype=out_dtype)
    assert y.dtype == out_dtype and y.shape == shape[:2]
    if y.numel():
        assert_swiglu_within_two_eps(*case, y)


def test_swiglu_gates_w3_by_w1():
    # silu(40) is 40 in fp32 and silu(-200) is 0: y1 = (40, -200), y3 = (-5, 3).
    x = torch.tensor([[1]], dtype=torch.int8)
    w = torch.tensor([[40], [-100], [-5], [3]], dtype=torch.int8)
    y = int8_gemm_swiglu(x, torch.ones(1), w, torch.tensor([1.0, 2.0, 1.0, 1.0]))
    assert y.tolist() == [[-200.0, 0.0]]


def test_swiglu_is_cast_once():
    # y1 = 257 x 0.5 = 128.5, y3 = 3 x 0.5 x 2 = 3: 385.5 is 386 in bf16, but 3 x 128 = 384 if y1
    # were cast before.
    x = torch.tensor([[127, 127, 3]], dtype=torch.int8)
    w = torch.tensor([[1, 1, 1], [0, 0, 1]], dtype=torch.int8)
    y = int8_gemm_swiglu(x, torch.tensor([0.5]), w, torch.tensor([1.0, 2.0]))
    assert y.item() == 386.0


def test_the_sum_is_cast_once():
    # bf16 keeps 8 bits: 257 x 0.5 + 0.25 = 128.75 becomes 129. With the sum (257 -> 256) or the
    # product (128.5 -> 128) cast before the bias it would be 128.
    x, w = torch.tensor([[127, 127, 3]], dtype=torch.int8), torch.ones(1, 3, dtype=torch.int8)
    y = int8_gemm(x, torch.tensor([0.5]), w, torch.ones(1), torch.tensor([0.25]))
    assert y.item() == 129.0


def test_the_linear_is_no_worse_than_twice_the_unfused_path():
    # quack's rule: twice plain torch's own error, both against exact arithmetic on the same codes.
    generator = torch.Generator().manual_seed(0)
    x, x_scale = quant_rows(torch.randn(64, 768, generator=generator))
    w, w_scale = quant_rows(torch.randn(256, 768, generator=generator))
    bias = torch.randn(256, generator=generator)
    truth = F.linear(x.double() * x_scale, w.double() * w_scale, bias.double())
    unfused = F.linear((x * x_scale).bfloat16(), (w * w_scale).bfloat16(), bias.bfloat16())
    fused = int8_gemm(x, x_scale, w, w_scale.flatten(), bias)
    limit = 2 * (unfused.double() - truth).abs().max() + 1e-6
    assert (fused.double() - truth).abs().max() <= limit


def test_leading_dimensions_are_kept():
    x, x_scale, w, w_scale, bias = draw_case(6, 8, 32)
    flat = int8_gemm(x, x_scale, w, w_scale, bias)
    for lead in [(2, 3), (1, 6, 1)]:
        for scale in (x_scale.view(*lead), x_scale.view(*lead, 1)):
            y = int8_gemm(x.view(*lead, 32), scale, w, w_scale, bias)
            assert torch.equal(y, flat.view(*lead, 8))
    assert torch.equal(int8_gemm(x[0], x_scale[0], w, w_scale, bias), flat[0])
    empty = int8_gemm(x.view(2, 3, 32)[:0], x_scale.view(2, 3)[:0], w, w_scale, bias)
    assert empty.shape == (0, 3, 8)


def test_leading_dimensions_of_the_residual_and_of_swiglu_are_kept():
    x, x_scale, w, w_scale, _ = draw_case(6, 8, 32)
    rest = draw_rest(12, 8)
    flat = int8_gemm(x, x_scale, w, w_scale, gate=rest["gate"], residual=rest["residual"][::2])
    swiglu = int8_gemm_swiglu(x, x_scale, w, w_scale)
    for lead in [(2, 3), (1, 6, 1)]:
        # every second row: contiguous rows are all that is asked for
        residual = rest["residual"].view(*lead, 2, 8)[..., 0, :]
        x_lead, scale = x.view(*lead, 32), x_scale.view(*lead, 1)
        y = int8_gemm(x_lead, scale, w, w_scale, gate=rest["gate"], residual=residual)
        assert torch.equal(y, flat.view(*lead, 8))
        y = int8_gemm_swiglu(x_lead, scale.squeeze(-1), w, w_scale)
        assert torch.equal(y, swiglu.view(*lead, 4))
    y = int8_gemm(x[0], x_scale[0], w, w_scale, gate=rest["gate"], residual=rest["residual"][0])
    assert torch.equal(y, flat[0])
    assert torch.equal(int8_gemm_swiglu(x[0], x_scale[0], w, w_scale), swiglu[0])


@pytest.mark.parametrize("m, n", [(0, 8), (6, 0), (0, 0)])
def test_no_rows_or_no_outputs_leave_an_empty_result(m, n):
    x, x_scale, w, w_scale, bias = draw_case(m, n, 32)
    for lead in [(m,), (m // 2, 2), (m, 1)]:
        x, x_scale, rest = x.view(*lead, 32), x_scale.view(lead), {"residual": torch.ones(*lead, n)}
        assert int8_gemm(x, x_scale, w, w_scale, bias, **rest).shape == (*lead, n)
        assert int8_gemm_swiglu(x, x_scale, w, w_scale).shape == (*lead, n // 2)
    row = int8_gemm(torch.ones(32).char(), torch.ones(()), w, w_scale, residual=torch.ones(n))
    assert row.shape == (n,)


VIEWS = {
    "rows-skipped": lambda x: x[::2],
    "columns-sliced": lambda x: x[:, 7:39],
    "columns-skipped": lambda x: x[:, ::2],
    "transposed": lambda x: x[:32, :32].t(),
    "one-row-repeated": lambda x: x[3:4].expand(9, -1),
    "one-row-of-stride-0": lambda x: x.as_strided((1, 64), (0, 1)),
    "one-row-of-stride-1": lambda x: x.as_strided((1, 64), (1, 1)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_x_may_be_strided(view):
    x = view(draw_codes(40, 64, seed=1))
    w = draw_codes(8, x.shape[1], seed=2)
    y = int8_gemm(x, torch.ones(x.shape[0]), w, torch.ones(8), out_dtype=torch.float32)
    assert torch.equal(y, int64_sums(x, w).float())


@pytest.mark.parametrize("stride", [0, 1, 64])
def test_one_output_channel_may_have_any_stride(stride):
    # The stride of a dimension of size 1 is arbitrary, and such a weight counts as contiguous.
    x, w = draw_codes(5, 64, seed=1), draw_codes(2, 64, seed=2).as_strided((1, 64), (stride, 1))
    y = int8_gemm(x, torch.ones(5), w, torch.ones(1), out_dtype=torch.float32)
    assert torch.equal(y, int64_sums(x, w).float())


def test_a_broken_row_stays_broken():
    x, x_scale, w, w_scale, _ = draw_case(3, 8, 32)
    x_scale[1] = float("nan")
    y = int8_gemm(x, x_scale, w, w_scale)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("rest", [True, False], ids=["rest", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("m", [0, 5])
def test_opcheck(m, bias, rest):
    args = [*draw_case(m, 8, 32), torch.bfloat16]
    args[4] = args[4] if bias else None
    args += draw_rest(m, 8).values() if rest else (None, None)
    torch.library.opcheck(torch.ops.dit8.int8_gemm.default, tuple(args))


@pytest.mark.parametrize("m", [0, 5])
def test_opcheck_of_swiglu(m):
    args = (*draw_swiglu_case(m, 8, 32), torch.bfloat16)
    torch.library.opcheck(torch.ops.dit8.int8_gemm_swiglu.default, args)


def test_compiles_without_graph_breaks_for_any_m():
    # aot_eager runs Dynamo, the fake and functionalization, and needs no C++ toolchain.
    def linear(x, x_scale, w, w_scale, bias, gate, residual):
        y = int8_gemm(x[None], x_scale[None], w, w_scale, bias, gate=gate, residual=residual[None])
        return y * 2

    def feed_forward(x, x_scale, w, w_scale):
        return int8_gemm_swiglu(x[None], x_scale[None], w, w_scale) * 2

    options = {"fullgraph": True, "backend": "aot_eager", "dynamic": True}
    compiled = torch.compile(linear, **options), torch.compile(feed_forward, **options)
    for m in (17, 5):
        case = (*draw_case(m, 8, 32), *draw_rest(m, 8).values())
        assert torch.equal(compiled[0](*case), linear(*case))
        case = draw_swiglu_case(m, 8, 32)
        assert torch.equal(compiled[1](*case), feed_forward(*case))
