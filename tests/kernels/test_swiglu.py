import pytest
import torch

from dit8.kernels.quant_rows import quant_rows
from dit8.kernels.swiglu import swiglu, swiglu_quant

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def draw(*shape, dtype=torch.float32, seed=0):
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def swiglu64(u):
    gate, up = u.double().chunk(2, 1)
    return gate / (1 + torch.exp(-gate)) * up


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_half_gates_the_second(dtype):
    u = draw(9, 62, dtype=dtype)
    got = swiglu(u)
    exact = swiglu64(u)
    assert got.dtype == dtype and got.shape == (9, 31) and got.is_contiguous()
    # One rounding of the dtype and fp32's own errors in four steps.
    bound = (torch.finfo(dtype).eps / 2 + 8 * 2**-24) * exact.abs() + torch.finfo(dtype).tiny
    assert ((got.double() - exact).abs() <= bound).all()


def test_extreme_gates():
    u = torch.tensor([[-200.0, 200.0, 0.0, 3.0, 3.0, 3.0]])
    assert swiglu(u).tolist() == [[0.0, 600.0, 0.0]]


BEFORE_CODES = {
    "plain": {},
    "smooth": {"smooth": torch.linspace(0.5, 3.0, 64)},
    "rotated": {"rotation": 64},
}


@pytest.mark.parametrize("options", BEFORE_CODES.values(), ids=BEFORE_CODES)
def test_codes_are_those_of_the_unrounded_row(options):
    u = draw(9, 128)
    codes, x_scale = swiglu_quant(u, **options)
    expected, scale = quant_rows(swiglu(u), **options)
    assert torch.equal(codes, expected) and torch.equal(x_scale, scale[:, 0])
    u = draw(64, 512, dtype=torch.bfloat16)
    from_rounded, _ = quant_rows(swiglu(u))
    from_exact, _ = quant_rows(swiglu64(u).float())
    codes, _ = swiglu_quant(u)
    assert (codes != from_exact).float().mean() < 1e-3 < (codes != from_rounded).float().mean()


def test_a_row_that_is_not_finite_harms_no_other():
    u = draw(4, 32)
    clean, _ = swiglu_quant(u)
    u[1, 3] = float("inf")
    codes, x_scale = swiglu_quant(u)
    assert x_scale[1].isnan() and codes[1].tolist() == [0] * 16
    assert torch.equal(codes[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("m", [0, 1])
def test_few_rows(m):
    codes, x_scale = swiglu_quant(draw(m, 12))
    assert codes.shape == (m, 6) and x_scale.shape == (m,) and swiglu(draw(m, 12)).shape == (m, 6)


def test_rows_may_be_strided():
    u = draw(12, 64)
    for view in (u[::2], u[:, 8:40], u[:, ::2], u.t()):
        expected = swiglu(view.clone(memory_format=torch.contiguous_format))
        assert swiglu(view).is_contiguous()
        # torch's exponential has a vector and a scalar form, an ulp apart.
        torch.testing.assert_close(swiglu(view), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("u", [draw(5, 32), draw(32, 5).t()], ids=["row-major", "transposed"])
def test_opcheck(u):
    torch.library.opcheck(torch.ops.dit8.swiglu.default, (u,))
    torch.library.opcheck(torch.ops.dit8.swiglu_quant.default, (u, None, 16))
    torch.library.opcheck(torch.ops.dit8.swiglu_quant.default, (u, torch.full((16,), 2.0), 0))


def test_compiles_without_graph_breaks_for_any_m():
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def both(u):
        codes, x_scale = swiglu_quant(u)
        return codes * x_scale[:, None] + swiglu(u)

    for m in (17, 5):
        u = draw(m, 32)
        codes, x_scale = swiglu_quant(u)
        assert torch.equal(both(u), codes * x_scale[:, None] + swiglu(u))


WRONG = {
    "int": (torch.zeros(4, 8).int(), {}, r"u must be \(M, 2F\) .* got \(4, 8\) int32; pass \[w1"),
    "odd": (torch.zeros(4, 7), {}, r"u must be .* got \(4, 7\) float32"),
    "1d": (torch.zeros(8), {}, r"u must be .* got \(8,\) float32"),
    "empty": (torch.zeros(4, 0), {}, r"u must be .* with F >= 1, got \(4, 0\) float32"),
    "smooth": (torch.zeros(4, 8), {"smooth": torch.ones(8)}, r"smooth must be .* K=4, got \(8,\)"),
    "rotation": (torch.zeros(4, 8), {"rotation": 8}, r"rotation must be 0 or .* K=4, got 8; pass"),
}


@pytest.mark.parametrize("u, options, message", WRONG.values(), ids=WRONG)
def test_errors_say_what_was_got_and_what_to_do(u, options, message):
    with pytest.raises(ValueError, match="^swiglu_quant: " + message):
        swiglu_quant(u, **options)
    if not options:
        with pytest.raises(ValueError, match="^swiglu: " + message):
            swiglu(u)
