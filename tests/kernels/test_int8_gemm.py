import pytest
import torch
import torch.nn.functional as F

from kernels.int8_gemm import K_MAX, accumulate, accumulate_in_fp32, int8_gemm
from kernels.quant_rows import quant_rows

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


@pytest.mark.parametrize("sum_up", [accumulate, accumulate_in_fp32])
@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_sums_equal_int64(shape, sum_up):
    m, n, k = shape
    x, w = draw_codes(m, k, seed=1), draw_codes(n, k, seed=2)
    sums = sum_up(x, w)
    assert sums.dtype == torch.int32
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
    assert torch.equal(sum_up(x, w), sums)


ON_AN_OLD_CPU = """
import sys
import torch
from kernels.int8_gemm import accumulate, int8_gemm, int_mm_is_exact
x = torch.randint(-127, 128, (17, 832), dtype=torch.int8)
w = torch.randint(-127, 128, (64, 832), dtype=torch.int8)
truth = x.long() @ w.long().t()
assert torch.equal(accumulate(x, w).long(), truth), "accumulate"
assert int_mm_is_exact() == torch.equal(torch._int_mm(x, w.t()).long(), truth), "probe"
int8_gemm(x, torch.ones(17), w, torch.ones(64))
assert "kernels.int8_gemm_triton" not in sys.modules, "a CPU call imported the Triton kernel"
"""


@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
def test_sums_are_exact_on_a_cpu_whose_int_mm_is_not(run_child, isa):
    # oneDNN limited to AVX2 computes as a CPU without VNNI does (no effect on other processors).
    run_child("-c", ON_AN_OLD_CPU, ONEDNN_MAX_CPU_ISA=isa)


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


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias):
    args = [*draw_case(5, 8, 32), torch.bfloat16]
    args[4] = args[4] if bias else None
    torch.library.opcheck(torch.ops.dit8.int8_gemm.default, tuple(args))


def test_compiles_without_graph_breaks_for_any_m():
    # aot_eager runs Dynamo, the fake and functionalization, and needs no C++ toolchain.
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def linear(x, x_scale, w, w_scale, bias):
        return int8_gemm(x[None], x_scale[None], w, w_scale, bias) * 2

    for m in (17, 5):
        case = draw_case(m, 8, 32)
        assert torch.equal(linear(*case), int8_gemm(*case)[None] * 2)


X, XS, W, WS, B = draw_case(4, 8, 32)
WRONG = {
    "x-float": (
        dict(x=X.float()),
        r"x must be \(\.\.\., K\) int8, got \(4, 32\) float32; quantize",
    ),
    "x-0d": (dict(x=X[0, 0]), r"x must be \(\.\.\., K\) int8, got \(\) int8"),
    "k-zero": (dict(x=X[:, :0]), r"K must be in 1\.\.133144, .* got 0; split K"),
    "k-overflow": (
        dict(x=torch.zeros(1, K_MAX + 1, dtype=torch.int8)),
        r"K must be in 1\.\.133144, beyond which int32 sums can overflow, got 133145; split K",
    ),
    "w-shape": (
        dict(w=W[:, :30]),
        r"weight must be \(N, K\) int8 with K=32, got \(8, 30\) int8; quantize with quant\.int8",
    ),
    "w-dtype": (dict(w=W.half()), r"weight must be \(N, K\) int8 with K=32, got \(8, 32\) float16"),
    "w-1d": (dict(w=W[0]), r"weight must be \(N, K\) int8 with K=32, got \(32,\) int8"),
    "w-strided": (
        dict(w=W.t().contiguous().t()),
        r"weight must be row-major, got strides \(1, 8\) for shape \(8, 32\); call \.contiguous",
    ),
    "x-scale-shape": (
        dict(x_scale=XS[:3]),
        r"x_scale must be float32 .*, \(4,\) or \(4, 1\), got \(3,\) float32; use the scales",
    ),
    "x-scale-dtype": (dict(x_scale=XS.bfloat16()), r"x_scale must be float32 .* \(4,\) bfloat16"),
    "w-scale-shape": (
        dict(w_scale=WS[:, None]),
        r"w_scale must be \(N,\) float32 with N=8, got \(8, 1\) float32; use the scales",
    ),
    "w-scale-dtype": (dict(w_scale=WS.double()), r"w_scale must be \(N,\) float32 .* float64"),
    "bias-shape": (dict(bias=B[:3]), r"bias must be \(N,\) .* with N=8, got \(3,\) float32; pass"),
    "bias-dtype": (dict(bias=B.long()), r"bias must be \(N,\) bfloat16, .* got \(8,\) int64"),
    "out-dtype": (
        dict(out_dtype=torch.float64),
        r"out_dtype must be bfloat16, float16 or float32, got float64; cast the result",
    ),
    "device": (
        dict(w_scale=WS.to("meta")),
        r"w_scale must be on cpu like x, got meta; move the layer and its input to one device",
    ),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_errors_say_what_was_got_and_what_to_do(change, message):
    good = dict(x=X, x_scale=XS, w=W, w_scale=WS, bias=B, out_dtype=torch.bfloat16)
    int8_gemm(**good)
    with pytest.raises(ValueError, match="^int8_gemm: " + message):
        int8_gemm(**(good | change))
