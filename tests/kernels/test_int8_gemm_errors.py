"""What the int8 GEMM refuses, and in which words."""

import pytest
import torch

from dit8.kernels.int8_gemm import K_MAX, int8_gemm, int8_gemm_swiglu

X, W = (torch.arange(32 * rows).view(rows, 32).remainder(255).sub(127).char() for rows in (4, 8))
XS, WS, B = torch.rand(4), torch.rand(8), torch.rand(8)
G, R = torch.rand(8), torch.rand(4, 8)
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
    "gate-shape": (dict(gate=G[:3]), r"gate must be \(N,\) .* with N=8, got \(3,\) float32; pass"),
    "gate-dtype": (dict(gate=G.int()), r"gate must be \(N,\) bfloat16, .* got \(8,\) int32"),
    "residual-shape": (
        dict(residual=R[:3]),
        r"residual must be \(4, 8\) bfloat16, .* with contiguous rows, got \(3, 8\) float32; pass",
    ),
    "residual-dtype": (dict(residual=R.double()), r"residual must be \(4, 8\) .* \(4, 8\) float64"),
    "residual-columns-strided": (
        dict(residual=R.t().contiguous().t()),
        r"residual must be \(4, 8\) .* with contiguous rows, got \(4, 8\) float32",
    ),
    "residual-device": (dict(residual=R.to("meta")), r"residual must be on cpu like x, got meta"),
    "gate-device": (dict(gate=G.to("meta")), r"gate must be on cpu like x, got meta; move"),
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
    good |= dict(gate=G, residual=R)
    int8_gemm(**good)
    with pytest.raises(ValueError, match="^int8_gemm: " + message):
        int8_gemm(**(good | change))


WRONG_SWIGLU = {name: case for name, case in WRONG.items() if set(case[0]) <= {"x", "w", "x_scale"}}
WRONG_SWIGLU |= {name: WRONG[name] for name in ("w-scale-dtype", "out-dtype", "device")}
WRONG_SWIGLU["w-odd"] = (
    dict(w=W[:7], w_scale=WS[:7]),
    r"weight must hold w1 and w3, 2N rows, got 7; concatenate the two along rows",
)


@pytest.mark.parametrize("change, message", WRONG_SWIGLU.values(), ids=WRONG_SWIGLU)
def test_errors_of_swiglu(change, message):
    good = dict(x=X, x_scale=XS, w=W, w_scale=WS, out_dtype=torch.bfloat16)
    int8_gemm_swiglu(**good)
    with pytest.raises(ValueError, match="^int8_gemm_swiglu: " + message):
        int8_gemm_swiglu(**(good | change))
