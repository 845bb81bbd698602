"""INT8 matrix product with row and column scales and the bias in its epilogue.

    y[m, n] = x_scale[m] * w_scale[n] * sum_k x[m, k] * w[n, k]  (+ bias[n])

SmoothQuant, arXiv:2211.10438, eq. 2: scales that sit on the outer dimensions of a product, a row of
activations (token) and an output channel of the weight, factor out of the sum over k, so the sum is
pure integer arithmetic.

Why one kernel: unfused, the int32 accumulator is written (4MN bytes), read back (4MN) and written
again as bf16 (2MN). Scaling it in registers leaves only the last: 8MN bytes saved, 432 MB for the
w1 of one Ideogram 4 block (M 4396, N 12288), 0.46 ms at the 936 GB/s of an RTX 3090 beside the
1.75 ms that the product itself takes at 284 TOPS.

An epilogue may go on, all in fp32 before the one rounding: `residual + gate * y` for a block whose
output is added to its input, and silu(y1) * y3 for the two up-projections of a SwiGLU, computed as
one product: the 2 x 2MN bytes of y1 and y3 are then neither written nor read (216 MB each way at
M 4396, N 12288).

Overflow: codes lie in [-127, 127], so |sum| <= 127^2 K fits int32 while K <= 133,144. The largest
K here is 53,248 (`llm_cond_proj`).
"""

import functools
import timeit
from collections.abc import Mapping

import torch

from dit8.kernels.backend import backend_name, needs_dispatcher

K_MAX = (2**31 - 1) // 127**2  # 133,144
OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# 1024 products of two int8 codes, -128 included, sum to at most 2^24, and fp32 holds every integer
# up to 2^24: within a slice of 1024 columns any order of fp32 additions is exact.
FP32_EXACT_K = 2**24 // 128**2


@functools.cache
def int_mm_is_exact() -> bool:
    """Tell whether this CPU's `torch._int_mm` returns the true sum (measured once per process).

    oneDNN multiplies u8 by s8 there, and without VNNI the instruction it uses (vpmaddubsw) adds two
    products in *saturating int16*: on such a CPU full-range codes give wrong sums
    (pytorch/pytorch#136746; reproduce with ONEDNN_MAX_CPU_ISA=AVX2). 2 x 127 x 127 fits int16, the
    shifted 2 x 255 x 127 does not, so a product of all-127 codes tells the two kinds apart. One row
    and sixteen rows are tried because oneDNN may pick different kernels for them.
    """
    for rows in (1, 16):
        x = torch.full((rows, 64), 127, dtype=torch.int8)
        w = torch.full((16, 64), 127, dtype=torch.int8)
        if not bool((torch._int_mm(x, w.t()) == 64 * 127**2).all()):
            return False
    return True


def _with_plain_strides(t: torch.Tensor) -> torch.Tensor:
    """Return t with strides (>= columns, 1), copied if need be.

    Of other strides oneDNN refuses some, and `torch._int_mm` of torch 2.13 then returns memory that
    nothing was written to (pytorch/pytorch#195066): a repeated row, and the arbitrary stride of a
    dimension of size 1. The last view is what renews the latter.
    """
    if t.stride(1) == 1 and t.stride(0) >= t.shape[1]:
        return t
    return t.contiguous().view(-1).view(t.shape)


def accumulate_in_fp32(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Sum over k exactly by fp32 products of at most 1024 columns each.

    Returns:
        (M, N) fp32 of one slice; several are added in int32.
    """
    sums = None
    # Autocast would run the product in bf16 and round its result.
    with torch.autocast(x.device.type, enabled=False):
        for x_k, w_k in zip(x.split(FP32_EXACT_K, 1), w.split(FP32_EXACT_K, 1), strict=True):
            one = torch.mm(x_k.float(), w_k.float().t())
            sums = one if sums is None else sums.to(torch.int32).add_(one.to(torch.int32))
    return sums


def accumulate_in_int8(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Sum over k by `torch._int_mm`; right where `int_mm_is_exact`."""
    if x.shape[1] == 1:  # the strides of w.t() are those of a row-major matrix: taken for one
        return accumulate_in_fp32(x, w)
    return torch._int_mm(_with_plain_strides(x), _with_plain_strides(w).t())


CPU_SUMS = {"_int_mm": accumulate_in_int8, "fp32 slices": accumulate_in_fp32}


@functools.cache
def cpu_sums_ms() -> Mapping[str, float]:
    """Time the exact ways to sum here, once a process: name in CPU_SUMS -> ms, (64, 256, 256).

    The shortest of five calls each; 0.1 s where `torch._int_mm` is a scalar loop.
    """
    x = torch.full((64, 256), 127, dtype=torch.int8)
    w = torch.full((256, 256), 127, dtype=torch.int8)
    ms = {}
    for name, sums in CPU_SUMS.items():
        if name != "_int_mm" or int_mm_is_exact():
            ms[name] = 1e3 * min(timeit.repeat(lambda sums=sums: sums(x, w), number=1))
    return ms


def accumulate(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Compute sum_k x[m, k] w[n, k] exactly, on a CPU by the fastest exact way (`cpu_sums_ms`).

    One core, ms (median of 15), x (400, K), w (N, K); oneDNN limited to each instruction set:

        (N, K)         Xeon with AMX           AVX-512 without VNNI    no int8 kernel at all
                       _int_mm  fp32 slices    _int_mm  fp32 slices    _int_mm  fp32 slices
        (768, 256)     0.40     2.0            wrong    2.3            161      5.3
        (4608, 4608)   47       229            wrong    261

    CUDA has no general integer product in torch, so a CUDA tensor (tests only) goes through fp64,
    exact for |sum| < 2^53. x (M, K) and w (N, K) int8 of any strides -> (M, N) int32.
    """
    return _exact_sums(x, w).to(torch.int32)


def _exact_sums(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return `accumulate`'s integers in the dtype they were summed in."""
    if x.device.type == "cuda":
        return torch.mm(x.double(), w.double().t())
    ms = cpu_sums_ms()
    return CPU_SUMS[min(ms, key=ms.get)](x, w)


def int8_gemm_reference(
    x: torch.Tensor,  # (M, K) int8
    x_scale: torch.Tensor,  # (M,) float32
    w: torch.Tensor,  # (N, K) int8
    w_scale: torch.Tensor,  # (N,) float32
    bias: torch.Tensor | None,  # (N,)
    out_dtype: torch.dtype,
    gate: torch.Tensor | None = None,  # (N,)
    residual: torch.Tensor | None = None,  # (M, N)
) -> torch.Tensor:  # (M, N) out_dtype
    """Compute the equation above in plain torch: exact int32 sum, fp32 epilogue, one cast.

    Scales are applied row first, then column, then bias, gate and residual, in the order of the
    kernels. In place: 0.08 ms against 0.49 ms for (400, 768) when every step allocates.
    """
    y = _exact_sums(x, w).to(torch.float32)
    y.mul_(x_scale[:, None]).mul_(w_scale)
    if bias is not None:
        y.add_(bias)
    if gate is not None:
        y.mul_(gate)
    if residual is not None:
        y.add_(residual)
    return y.to(out_dtype)


def int8_gemm_swiglu_reference(
    x: torch.Tensor,  # (M, K) int8
    x_scale: torch.Tensor,  # (M,) float32
    w: torch.Tensor,  # (2N, K) int8, [w1; w3]
    w_scale: torch.Tensor,  # (2N,) float32
    out_dtype: torch.dtype,
) -> torch.Tensor:  # (M, N) out_dtype
    """Compute silu(y1) * y3 in plain torch: exact int32 sums, all else fp32, one cast."""
    y1, y3 = int8_gemm_reference(x, x_scale, w, w_scale, None, torch.float32).chunk(2, dim=1)
    return (torch.nn.functional.silu(y1) * y3).to(out_dtype)


def _describe(tensor: torch.Tensor) -> str:
    """Render a tensor for an error message: `(12288, 4600) float16`."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _check(op, x, x_scale, w, w_scale, bias, out_dtype, gate=None, residual=None) -> None:
    """Raise ValueError on the first argument that breaks the signature of an op."""
    if x.dtype != torch.int8 or x.ndim == 0:
        raise ValueError(
            f"{op}: x must be (..., K) int8, got {_describe(x)}; "
            "quantize with kernels.quant_rows.quant_rows"
        )
    k = x.shape[-1]
    if not 1 <= k <= K_MAX:
        raise ValueError(
            f"{op}: K must be in 1..{K_MAX}, beyond which int32 sums can overflow, got {k}; "
            "split K and add the parts"
        )
    if w.dtype != torch.int8 or w.ndim != 2 or w.shape[1] != k:
        raise ValueError(
            f"{op}: weight must be (N, K) int8 with K={k}, got {_describe(w)}; "
            "quantize with quant.int8.quantize_weight"
        )
    if not w.is_contiguous():
        # A copy per call would move the whole weight each time; once at load is free.
        raise ValueError(
            f"{op}: weight must be row-major, got strides {tuple(w.stride())} for shape "
            f"{tuple(w.shape)}; call .contiguous() once where it is loaded"
        )
    rows, n = x.shape[:-1], w.shape[0]
    if x_scale.dtype != torch.float32 or x_scale.shape not in (rows, (*rows, 1)):
        raise ValueError(
            f"{op}: x_scale must be float32 with one value per row, {tuple(rows)} or "
            f"{(*rows, 1)}, got {_describe(x_scale)}; use the scales that quant_rows returned"
        )
    if w_scale.dtype != torch.float32 or w_scale.shape != (n,):
        raise ValueError(
            f"{op}: w_scale must be (N,) float32 with N={n}, got {_describe(w_scale)}; "
            "use the scales that quant.int8.quantize_weight returned"
        )
    for name, vector in (("bias", bias), ("gate", gate)):
        if vector is not None and (vector.dtype not in OUT_DTYPES or vector.shape != (n,)):
            raise ValueError(
                f"{op}: {name} must be (N,) bfloat16, float16 or float32 with N={n}, "
                f"got {_describe(vector)}; pass the vector of the layer that the weight came from"
            )
    if residual is not None and (
        residual.dtype not in OUT_DTYPES or residual.shape != (*rows, n) or residual.stride(-1) != 1
    ):
        raise ValueError(
            f"{op}: residual must be {(*rows, n)} bfloat16, float16 or float32 with contiguous "
            f"rows, got {_describe(residual)}; pass what the block's output is added to"
        )
    if out_dtype not in OUT_DTYPES:
        raise ValueError(
            f"{op}: out_dtype must be bfloat16, float16 or float32, got "
            f"{str(out_dtype).removeprefix('torch.')}; cast the result instead"
        )
    operands = {"weight": w, "x_scale": x_scale, "w_scale": w_scale}
    operands |= {"bias": bias, "gate": gate, "residual": residual}
    for name, tensor in operands.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{op}: {name} must be on {x.device} like x, got {tensor.device}; "
                "move the layer and its input to one device"
            )


def _run(op: str, out: torch.Tensor, x, x_scale, w, w_scale, bias=None, gate=None, residual=None):
    """Launch the kernel that fits operands and GPU, writing `out`."""
    backend_name(x.device)  # raises where no kernel can run: there is no other path to take
    from dit8.kernels import int8_gemm_tma, int8_gemm_triton
    from dit8.kernels.tiles import choose

    if out.numel() == 0:
        return out
    swiglu = op == "swiglu"
    tma = int8_gemm_tma.obstacle(x, w, out) is None
    (m, k), n = x.shape, out.shape[1]
    choice = choose(
        op, m, n, k, x.device, tma=tma,
        has_bias=bias is not None, has_residual=residual is not None or gate is not None,
    )  # fmt: skip
    kernel = {"tma": int8_gemm_tma, "mma": int8_gemm_triton}[choice.kind]
    with torch.cuda.device(x.device):
        kernel.launch(
            x, x_scale, w, w_scale, bias, out, choice.config,
            gate=gate, residual=residual, swiglu=swiglu,
        )  # fmt: skip
    return out


# custom_op, not triton_op: opaque to torch.compile, so the CPU implementation can stay plain torch
# and the choice of a tile can stay plain Python.
@torch.library.custom_op("dit8::int8_gemm", mutates_args=(), device_types="cpu")
def _int8_gemm(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    return int8_gemm_reference(x, x_scale, w, w_scale, bias, out_dtype, gate, residual)


@_int8_gemm.register_kernel("cuda")
def _int8_gemm_cuda(x, x_scale, w, w_scale, bias, out_dtype, gate, residual):
    out = x.new_empty((x.shape[0], w.shape[0]), dtype=out_dtype)
    return _run("gemm", out, x, x_scale, w, w_scale, bias, gate, residual)


@_int8_gemm.register_fake
def _int8_gemm_fake(x, x_scale, w, w_scale, bias, out_dtype, gate, residual):
    return x.new_empty((x.shape[0], w.shape[0]), dtype=out_dtype)


@torch.library.custom_op("dit8::int8_gemm_swiglu", mutates_args=(), device_types="cpu")
def _int8_gemm_swiglu(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    return int8_gemm_swiglu_reference(x, x_scale, w, w_scale, out_dtype)


@_int8_gemm_swiglu.register_kernel("cuda")
def _int8_gemm_swiglu_cuda(x, x_scale, w, w_scale, out_dtype):
    out = x.new_empty((x.shape[0], w.shape[0] // 2), dtype=out_dtype)
    return _run("swiglu", out, x, x_scale, w, w_scale)


@_int8_gemm_swiglu.register_fake
def _int8_gemm_swiglu_fake(x, x_scale, w, w_scale, out_dtype):
    return x.new_empty((x.shape[0], w.shape[0] // 2), dtype=out_dtype)


def int8_gemm(
    x: torch.Tensor,  # (..., K) int8
    x_scale: torch.Tensor,  # (...) or (..., 1) float32
    w: torch.Tensor,  # (N, K) int8
    w_scale: torch.Tensor,  # (N,) float32
    bias: torch.Tensor | None = None,  # (N,)
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    gate: torch.Tensor | None = None,  # (N,)
    residual: torch.Tensor | None = None,  # (..., N)
) -> torch.Tensor:  # (..., N) out_dtype
    """Multiply int8 activations by int8 weights and scale the exact sums.

    y[m, n] = x_scale[m] * w_scale[n] * sum_k x[m, k] * w[n, k] (+ bias[n]), SmoothQuant,
    arXiv:2211.10438, eq. 2; then residual[m, n] + gate[n] * y[m, n] where these are given.
    Accumulates in int32, does all else in fp32, casts once.

    Args:
        x: (..., K) int8, codes in [-127, 127], K <= 133,144. Rows may be strided (`x[::2]`): the
            kernel takes a row stride, so no copy is made. Only an x whose last dimension is not
            contiguous, or whose leading dimensions do not flatten to one stride, is copied.
        x_scale: (...) or (..., 1) float32, the value of one code step in each row.
        w: (N, K) int8, row-major, codes in [-127, 127].
        w_scale: (N,) float32, the value of one code step in each output channel.
        bias: (N,) bfloat16, float16 or float32, or None.
        out_dtype: bfloat16, float16 or float32.
        gate: (N,) like bias: what each output channel is multiplied by, or None.
        residual: (..., N) like bias, added last, or None.

    Returns:
        (..., N) of out_dtype, row-major, in the unit of the unquantized product.

    Raises:
        ValueError: a shape, dtype, stride or device breaks the signature.
        KernelError: x is on CUDA and no kernel can run there (kernels.backend).

    Does not quantize, does not look at the codes (-128 is multiplied as it stands), and has no
    backward. The tile is looked up, never timed: see kernels/tiles.py.
    """
    _check("int8_gemm", x, x_scale, w, w_scale, bias, out_dtype, gate, residual)
    rows, k, n = x.shape[:-1], x.shape[-1], w.shape[0]
    flat = (
        None
        if residual is None
        else residual.flatten(0, -2)
        if residual.ndim > 1
        else residual[None]
    )
    run = _int8_gemm if needs_dispatcher(x) else int8_gemm_reference
    out = run(x.reshape(-1, k), x_scale.reshape(-1), w, w_scale, bias, out_dtype, gate, flat)
    return out.reshape(*rows, n)


def int8_gemm_swiglu(
    x: torch.Tensor,  # (..., K) int8
    x_scale: torch.Tensor,  # (...) or (..., 1) float32
    w: torch.Tensor,  # (2N, K) int8
    w_scale: torch.Tensor,  # (2N,) float32
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:  # (..., N) out_dtype
    """Multiply by both up-projections of a SwiGLU at once and gate one with the other.

    y = silu(x w1^T) * (x w3^T), GLU Variants Improve Transformer, arXiv:2002.05202, eq. 6, each
    product scaled as in `int8_gemm`. The sums are exact, all else is fp32, y is rounded once.

    Args:
        x: (..., K) int8.
        x_scale: (...) or (..., 1) float32.
        w: (2N, K) int8, row-major: the rows of w1, then those of w3.
        w_scale: (2N,) float32, in the same order.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        (..., N) of out_dtype, row-major.

    Raises:
        ValueError: a shape, dtype, stride or device breaks the signature, or w has an odd number
            of rows.
        KernelError: x is on CUDA and no kernel can run there (kernels.backend).
    """
    _check("int8_gemm_swiglu", x, x_scale, w, w_scale, None, out_dtype)
    if w.shape[0] % 2:
        raise ValueError(
            f"int8_gemm_swiglu: weight must hold w1 and w3, 2N rows, got {w.shape[0]}; "
            "concatenate the two along rows"
        )
    out = _int8_gemm_swiglu(x.reshape(-1, x.shape[-1]), x_scale.reshape(-1), w, w_scale, out_dtype)
    return out.reshape(*x.shape[:-1], w.shape[0] // 2)
