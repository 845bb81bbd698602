import pytest
import torch

from dit8.kernels.norms import (
    gated_residual,
    gated_residual_norm,
    gated_residual_norm_quant,
    modulated_norm,
    modulated_norm_quant,
)
from dit8.kernels.quant_rows import quant_rows

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EPS = 1e-5


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_block(m, k, dtype=torch.float32):
    """Return h, y, weight, gate, next_weight, next_scale."""
    rows = [draw(m, k, dtype=dtype, seed=i) for i in (1, 2)]
    return rows + [draw(k, dtype=dtype, seed=i) for i in (3, 4, 5, 6)]


def norm64(x, eps=EPS):
    x = x.double()
    return x / (x.square().mean(1, keepdim=True) + eps).sqrt()


def assert_rounded_once(got, exact, terms=None):
    """Bound got by one rounding of its dtype, and fp32's own errors (8 steps) of its terms."""
    terms = exact if terms is None else terms
    bound = torch.finfo(got.dtype).eps / 2 * exact.abs() + 8 * 2**-24 * terms.abs() + 2**-25
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_modulated_norm_follows_the_definition(dtype):
    x, _, weight, scale, *_ = draw_block(7, 48, dtype)
    x[3] = 0
    got = modulated_norm(x, weight, scale, eps=EPS)
    assert got.dtype == dtype and got.is_contiguous()
    assert_rounded_once(got, norm64(x) * weight.double() * scale.double())


def test_eps_is_added_to_the_mean_square():
    x = torch.full((1, 4), 3.0)
    ones = torch.ones(4)
    assert modulated_norm(x, ones, ones, eps=7.0).tolist() == [[0.75] * 4]  # 3 / sqrt(9 + 7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_residual_follows_the_definition(dtype):
    h, y, weight, gate, *_ = draw_block(7, 48, dtype)
    before = h.clone()
    branch = norm64(y) * weight.double() * gate.double()
    got = gated_residual(h, y, weight, gate, eps=EPS)
    assert torch.equal(h, before) and got.dtype == dtype
    assert_rounded_once(got, h.double() + branch, h.double().abs() + branch.abs())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_next_norm_reads_the_stored_stream(dtype):
    h, y, weight, gate, next_weight, next_scale = draw_block(7, 48, dtype)
    stream, normed = gated_residual_norm(h, y, weight, gate, next_weight, next_scale, eps=EPS)
    assert torch.equal(stream, gated_residual(h, y, weight, gate, eps=EPS))
    assert torch.equal(normed, modulated_norm(stream, next_weight, next_scale, eps=EPS))


def test_the_sandwich_is_the_one_of_diffusers():
    from diffusers.models.normalization import RMSNorm

    h, y, weight, gate, next_weight, next_scale = draw_block(7, 48)
    behind, before = RMSNorm(48, eps=EPS), RMSNorm(48, eps=EPS)
    behind.weight.data, before.weight.data = weight, next_weight
    stream, normed = gated_residual_norm(h, y, weight, gate, next_weight, next_scale, eps=EPS)
    expected = h + gate * behind(y)
    # fp32 in another order of the products.
    torch.testing.assert_close(stream, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normed, before(expected) * next_scale, rtol=1e-5, atol=1e-5)


BEFORE_CODES = {
    "plain": {},
    "smooth": {"smooth": torch.linspace(0.5, 3.0, 64)},
    "rotated-64": {"rotation": 64},
    "rotated-4": {"rotation": 4},
}


@pytest.mark.parametrize("options", BEFORE_CODES.values(), ids=BEFORE_CODES)
def test_quantizing_ops_give_the_codes_of_the_unrounded_row(options):
    args = draw_block(9, 64)
    h, y, weight, gate, next_weight, next_scale = args
    stream, normed = gated_residual_norm(*args, eps=EPS)
    codes, x_scale = quant_rows(normed, **options)
    got = gated_residual_norm_quant(*args, eps=EPS, **options)
    assert torch.equal(got[0], stream)
    assert torch.equal(got[1], codes) and torch.equal(got[2], x_scale[:, 0])
    again = modulated_norm_quant(stream, next_weight, next_scale, eps=EPS, **options)
    assert torch.equal(again[0], codes) and torch.equal(again[1], x_scale[:, 0])


def test_codes_are_made_before_the_row_is_rounded():
    x, _, weight, scale, *_ = draw_block(64, 256, torch.bfloat16)
    codes, _ = modulated_norm_quant(x, weight, scale, eps=EPS)
    exact, _ = quant_rows((norm64(x) * weight.double() * scale.double()).float())
    rounded, _ = quant_rows(modulated_norm(x, weight, scale, eps=EPS))
    assert (codes != exact).float().mean() < 1e-3 < (codes != rounded).float().mean()


@pytest.mark.parametrize("m", [0, 1])
def test_few_rows(m):
    args = draw_block(m, 16, torch.bfloat16)
    stream, codes, x_scale = gated_residual_norm_quant(*args, eps=EPS)
    assert stream.shape == codes.shape == (m, 16) and x_scale.shape == (m,)
    assert modulated_norm(args[0], *args[2:4], eps=EPS).shape == (m, 16)


def test_a_row_that_is_not_finite_harms_no_other():
    h, *rest = draw_block(4, 16)
    clean = gated_residual_norm_quant(h, *rest, eps=EPS)
    h[2, 5] = float("nan")
    _, codes, x_scale = gated_residual_norm_quant(h, *rest, eps=EPS)
    assert x_scale[2].isnan() and codes[2].tolist() == [0] * 16
    assert torch.equal(codes[[0, 1, 3]], clean[1][[0, 1, 3]])


def test_rows_may_be_strided_and_results_are_row_major():
    h, y, *vectors = draw_block(12, 32)
    for pick in (lambda t: t[::2], lambda t: t[:, 8:24], lambda t: t[:, ::2]):
        k = pick(h).shape[1]
        cut = [v[:k] for v in vectors]
        got = gated_residual_norm(pick(h), pick(y), *cut, eps=EPS)
        expected = gated_residual_norm(pick(h).clone(), pick(y).contiguous(), *cut, eps=EPS)
        for a, b in zip(got, expected, strict=True):
            assert a.is_contiguous()
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # torch sums in another order


OPS = {
    "modulated_norm": lambda a: (a[0], a[4], a[5], EPS),
    "modulated_norm_quant": lambda a: (a[0], a[4], a[5], EPS, torch.ones(a[0].shape[1]), 0),
    "gated_residual": lambda a: (*a[:4], EPS),
    "gated_residual_norm": lambda a: (*a, EPS),
    "gated_residual_norm_quant": lambda a: (*a, EPS, None, 16),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, dtype):
    op = getattr(torch.ops.dit8, name).default
    torch.library.opcheck(op, OPS[name](draw_block(5, 32, dtype)))
    transposed = [draw(32, 5, dtype=dtype).t(), *draw_block(5, 32, dtype)[1:]]
    torch.library.opcheck(op, OPS[name](transposed))


def test_compiles_without_graph_breaks_for_any_m():
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def block(h, y, *vectors):
        stream, codes, x_scale = gated_residual_norm_quant(h, y, *vectors, eps=EPS)
        return stream + modulated_norm(h, *vectors[:2], eps=EPS), codes * x_scale[:, None]

    for m in (17, 5):
        args = draw_block(m, 32)
        stream, codes, x_scale = gated_residual_norm_quant(*args, eps=EPS)
        got = block(*args)
        assert torch.equal(got[0], stream + modulated_norm(args[0], *args[2:4], eps=EPS))
        assert torch.equal(got[1], codes * x_scale[:, None])


def change(position, tensor):
    args = draw_block(4, 8)
    args[position] = tensor
    return args


WRONG = {
    "h-int": (change(0, torch.zeros(4, 8).int()), {}, r"h must be \(M, K\) .* got \(4, 8\) int32"),
    "h-3d": (change(0, torch.zeros(2, 2, 8)), {}, r"h must be .* got \(2, 2, 8\).*; flatten"),
    "k-zero": (change(0, torch.zeros(4, 0)), {}, r"h must be .* with K >= 1, got \(4, 0\)"),
    "y-shape": (change(1, torch.zeros(5, 8)), {}, r"y must be \(4, 8\) float32 like h, got \(5, 8"),
    "y-dtype": (change(1, torch.zeros(4, 8).half()), {}, r"y must be .* like h, got .* float16"),
    "gate": (change(3, torch.ones(4, 8)), {}, r"gate must be \(K,\) .* K=8, got \(4, 8\) float32;"),
    "scale": (change(5, torch.ones(8).int()), {}, r"next_scale must be .* got \(8,\) int32; pass"),
    "device": (
        change(2, torch.ones(8, device="meta")),
        {},
        r"weight must be on cpu like h, got meta; move the block",
    ),
    "smooth": (
        draw_block(4, 8),
        {"smooth": torch.ones(7)},
        r"smooth must be .* got \(7,\) float32",
    ),
    "rotation": (draw_block(4, 8), {"rotation": 16}, r"rotation must be 0 or .* K=8, got 16; pass"),
    "both": (
        draw_block(4, 8),
        {"rotation": 4, "smooth": torch.ones(8)},
        r"smooth must be None beside rotation=4, got \(8,\) float32; keep one",
    ),
}


@pytest.mark.parametrize("args, options, message", WRONG.values(), ids=WRONG)
def test_errors_say_what_was_got_and_what_to_do(args, options, message):
    with pytest.raises(ValueError, match="^gated_residual_norm_quant: " + message):
        gated_residual_norm_quant(*args, eps=EPS, **options)


def test_errors_name_the_op():
    x, y, a, b, *_ = draw_block(4, 8)
    with pytest.raises(ValueError, match=r"^modulated_norm: x must be \(M, K\)"):
        modulated_norm(x[0], a, b, eps=EPS)
    with pytest.raises(ValueError, match=r"^modulated_norm_quant: scale must be \(K,\)"):
        modulated_norm_quant(x, a, b[:7], eps=EPS)
    with pytest.raises(ValueError, match=r"^gated_residual: gate must be \(K,\)"):
        gated_residual(x, y, a, b[:7], eps=EPS)
    with pytest.raises(ValueError, match=r"^gated_residual_norm: y must be \(4, 8\)"):
        gated_residual_norm(x, y[:3], a, b, a, b, eps=EPS)
