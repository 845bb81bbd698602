import pytest
import torch

from dit8.kernels.qk_norm_rope import qk_norm_rope_

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EPS = 1e-5


def draw_args(m, heads, d, dtype=torch.float32):
    """Return qkv, both weights, cos and sin."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(m, 3 * heads * d, generator=generator).to(dtype)
    weights = [torch.randn(d, generator=generator).to(dtype) for _ in range(2)]
    angles = 7 * torch.rand(m, d // 2, generator=generator)
    return [qkv, *weights, angles.cos(), angles.sin()]


def rotated64(x, weight, cos, sin, heads):
    """Norm and rotate (M, heads * d) in fp64, by complex numbers."""
    x = x.double().unflatten(1, (heads, -1))
    n = x / (x.square().mean(2, keepdim=True) + EPS).sqrt() * weight.double()
    first, second = n.chunk(2, 2)
    turned = torch.complex(first, second) * torch.complex(cos.double(), sin.double())[:, None]
    return torch.cat([turned.real, turned.imag], 2).flatten(1)


@pytest.mark.parametrize("heads, d", [(1, 2), (3, 16), (2, 64)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_q_and_k_are_normed_and_turned_and_v_is_left_alone(dtype, heads, d):
    qkv, q_weight, k_weight, cos, sin = draw_args(6, heads, d, dtype)
    q, k, v = qkv.clone().chunk(3, 1)
    assert qk_norm_rope_(qkv, q_weight, k_weight, cos, sin, heads=heads, eps=EPS) is None
    got_q, got_k, got_v = qkv.chunk(3, 1)
    assert torch.equal(got_v, v)
    for x, weight, got in ((q, q_weight, got_q), (k, k_weight, got_k)):
        exact = rotated64(x, weight, cos, sin, heads)
        # One rounding of the dtype; fp32's errors in some ten steps on terms of at most 4 x 2.
        bound = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5
        assert ((got.double() - exact).abs() <= bound).all()


def test_it_is_what_diffusers_does():
    from diffusers.models.normalization import RMSNorm
    from diffusers.models.transformers.transformer_ideogram4 import Ideogram4MRoPE, _rotate_half

    heads, d = 2, 32
    qkv, q_weight, k_weight, _, _ = draw_args(5, heads, d)
    positions = torch.arange(15).reshape(1, 5, 3)
    cos, sin = Ideogram4MRoPE(d, 10_000, (6, 5, 5))(positions)  # (1, M, d), halves equal
    norm = RMSNorm(d, eps=EPS)
    norm.weight.data = k_weight
    k = norm(qkv.chunk(3, 1)[1].unflatten(1, (heads, d)))
    expected = k * cos[0][:, None] + _rotate_half(k) * sin[0][:, None]
    half = (cos[0, :, : d // 2].contiguous(), sin[0, :, : d // 2].contiguous())
    qk_norm_rope_(qkv, q_weight, k_weight, *half, heads=heads, eps=EPS)
    got = qkv.chunk(3, 1)[1].unflatten(1, (heads, d))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # fp32, another order


def test_rows_may_be_strided():
    qkv, *rest = draw_args(6, 2, 8)
    wide = torch.cat([qkv, torch.full((6, 5), 9.0)], 1)
    qk_norm_rope_(wide[:, :48], *rest, heads=2, eps=EPS)
    qk_norm_rope_(qkv, *rest, heads=2, eps=EPS)
    assert torch.equal(wide[:, :48], qkv) and (wide[:, 48:] == 9.0).all()


def test_no_rows():
    qk_norm_rope_(*draw_args(0, 2, 8), heads=2, eps=EPS)


def test_opcheck():
    for dtype in (torch.bfloat16, torch.float32):
        args = (*draw_args(5, 2, 8, dtype), 2, EPS)
        torch.library.opcheck(torch.ops.dit8.qk_norm_rope_.default, args)


def test_compiles_without_graph_breaks():
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def attention_input(qkv, *rest):
        qkv = qkv * 2
        qk_norm_rope_(qkv, *rest, heads=2, eps=EPS)
        return qkv + 1

    for m in (17, 5):
        qkv, *rest = draw_args(m, 2, 8)
        expected = qkv * 2
        qk_norm_rope_(expected, *rest, heads=2, eps=EPS)
        assert torch.equal(attention_input(qkv, *rest), expected + 1)


def change(position, tensor):
    args = draw_args(4, 2, 8)
    args[position] = tensor
    return args


WRONG = {
    "dtype": (
        change(0, torch.zeros(4, 48).int()),
        r"qkv must be .* got \(4, 48\) int32 for 2 heads",
    ),
    "columns": (change(0, torch.zeros(4, 50)), r"qkv must be \(M, 3 \* heads \* d\).*\(4, 50\)"),
    "3d": (change(0, torch.zeros(2, 2, 48)), r"qkv must be .* got \(2, 2, 48\) float32"),
    "stride": (
        change(0, torch.zeros(48, 4).t()),
        r"qkv must have contiguous rows .* \(1, 4\); call",
    ),
    "weight": (change(1, torch.ones(16)), r"q_weight must be \(d,\) .* d=8, got \(16,\) float32"),
    "weight-dtype": (change(2, torch.ones(8).int()), r"k_weight must be .* got \(8,\) int32"),
    "table": (
        change(3, torch.ones(4, 8)),
        r"cos must be .* = \(4, 4\), got \(4, 8\) float32; pass",
    ),
    "table-dtype": (change(4, torch.ones(4, 4).half()), r"sin must be .* got \(4, 4\) float16"),
    "device": (
        change(4, torch.ones(4, 4, device="meta")),
        r"sin must be on cpu .*, got meta; move",
    ),
}


@pytest.mark.parametrize("args, message", WRONG.values(), ids=WRONG)
def test_errors_say_what_was_got_and_what_to_do(args, message):
    with pytest.raises(ValueError, match="^qk_norm_rope_: " + message):
        qk_norm_rope_(*args, heads=2, eps=EPS)


def test_heads_must_be_positive():
    with pytest.raises(ValueError, match=r"^qk_norm_rope_: qkv must be .* for 0 heads"):
        qk_norm_rope_(*draw_args(4, 2, 8), heads=0, eps=EPS)
