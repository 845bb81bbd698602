"""RMSNorm and rotary embedding of the q and k heads, in place in the output of the qkv GEMM.

    n = x * rsqrt(mean_d x^2 + eps) * weight                    for every head of q and of k
    out[:d/2] = n[:d/2] cos - n[d/2:] sin
    out[d/2:] = n[d/2:] cos + n[:d/2] sin

Rotary embedding: RoFormer, arXiv:2104.09864, section 3.2.2, eq. 15, with the pairs half a head
apart (diffusers' `_rotate_half`). Both halves of diffusers' tables hold the same angles, so that
one half, (M, d/2), is all that is read.

Why one kernel: q and k are read and written once, 8 bytes for a pair of values instead of some 40
(norm, weight, two products, a concatenation and a sum for each), and neither q, k nor v is copied
out of the (M, 3 heads d) rows: attention takes them as strided views.
"""

import torch

from dit8.kernels.backend import backend_name
from dit8.kernels.quant_rows import X_DTYPES, describe


def qk_norm_rope_reference(
    qkv: torch.Tensor,  # (M, 3 * heads * d), overwritten
    q_weight: torch.Tensor,  # (d,)
    k_weight: torch.Tensor,  # (d,)
    cos: torch.Tensor,  # (M, d/2) float32
    sin: torch.Tensor,  # (M, d/2) float32
    heads: int,
    eps: float,
) -> None:
    """Compute the equations above in plain torch: fp32, rounded once."""
    half = cos.shape[1]
    for part, weight in ((0, q_weight), (1, k_weight)):
        width = heads * 2 * half
        x = qkv[:, part * width : (part + 1) * width].unflatten(1, (heads, 2 * half))  # a view
        n = x.to(torch.float32)
        n = n * torch.rsqrt(n.square().mean(dim=2, keepdim=True) + eps) * weight.to(torch.float32)
        first, second = n[..., :half], n[..., half:]
        c, s = cos[:, None], sin[:, None]
        x[..., :half] = first * c - second * s
        x[..., half:] = second * c + first * s


def _check(qkv, q_weight, k_weight, cos, sin, heads) -> None:
    """Raise ValueError on the first argument that breaks the signature of `qk_norm_rope_`."""
    if qkv.dtype not in X_DTYPES or qkv.ndim != 2 or heads < 1 or qkv.shape[1] % (6 * heads):
        raise ValueError(
            "qk_norm_rope_: qkv must be (M, 3 * heads * d) bfloat16, float16 or float32 with an "
            f"even d, got {describe(qkv)} for {heads} heads; pass the qkv GEMM's output"
        )
    if qkv.stride(1) != 1:
        raise ValueError(
            f"qk_norm_rope_: qkv must have contiguous rows to be changed in place, got strides "
            f"{qkv.stride()}; call .contiguous() first"
        )
    d = qkv.shape[1] // (3 * heads)
    for name, tensor in (("q_weight", q_weight), ("k_weight", k_weight)):
        if tensor.dtype not in X_DTYPES or tensor.shape != (d,):
            raise ValueError(
                f"qk_norm_rope_: {name} must be (d,) bfloat16, float16 or float32 with d={d}, got "
                f"{describe(tensor)}; pass the head norm's weight"
            )
    for name, tensor in (("cos", cos), ("sin", sin)):
        if tensor.dtype != torch.float32 or tensor.shape != (qkv.shape[0], d // 2):
            raise ValueError(
                f"qk_norm_rope_: {name} must be (M, d/2) float32 = {(qkv.shape[0], d // 2)}, got "
                f"{describe(tensor)}; pass the first half of the rotary table"
            )
    for name, tensor in dict(q_weight=q_weight, k_weight=k_weight, cos=cos, sin=sin).items():
        if tensor.device != qkv.device:
            raise ValueError(
                f"qk_norm_rope_: {name} must be on {qkv.device} like qkv, got {tensor.device}; "
                "move the tables to the model's device"
            )


@torch.library.custom_op("dit8::qk_norm_rope_", mutates_args=("qkv",), device_types="cpu")
def _qk_norm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    eps: float,
) -> None:
    qk_norm_rope_reference(qkv, q_weight, k_weight, cos, sin, heads, eps)


@_qk_norm_rope.register_kernel("cuda")
def _qk_norm_rope_cuda(qkv, q_weight, k_weight, cos, sin, heads, eps):
    backend_name(qkv.device)  # raises where the kernel cannot run: there is no other path to take
    from dit8.kernels.qk_norm_rope_triton import choose_config, launch

    with torch.cuda.device(qkv.device):
        launch(qkv, q_weight, k_weight, cos, sin, heads, eps, choose_config(cos.shape[1]))


@_qk_norm_rope.register_fake
def _qk_norm_rope_fake(qkv, q_weight, k_weight, cos, sin, heads, eps):
    return None


def qk_norm_rope_(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    heads: int,
    eps: float,
) -> None:
    """Normalize and rotate the q and k heads of qkv in place; v is left alone.

    Args:
        qkv: (M, 3 * heads * d) bfloat16, float16 or float32, [q | k | v], each heads x d; rows may
            be strided. Its first two thirds are overwritten.
        q_weight, k_weight: (d,) floating, the weights of the head norms.
        cos, sin: (M, d/2) float32, of each row's rotary angles.
        heads: number of heads in each of q, k and v.
        eps: added to the mean square of a head.

    Raises:
        ValueError: a shape, dtype, stride or device breaks the signature.
        KernelError: qkv is on CUDA and the Triton kernel cannot run there (kernels.backend).
    """
    _check(qkv, q_weight, k_weight, cos, sin, heads)
    _qk_norm_rope(qkv, q_weight, k_weight, cos, sin, heads, eps)
