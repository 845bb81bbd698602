"""Portable kernel of `dit8::int8_gemm` and `int8_gemm_swiglu`: pipelined `tl.dot`, sm_80 and newer.

On sm_90 it serves few rows and what TMA cannot address; the rest is kernels/int8_gemm_gluon.py.

Imported only where the op runs on CUDA, and by tests under TRITON_INTERPRET=1. The tile is an
explicit argument of `launch`, not a property of the jit kernel, so that the same arithmetic runs
under the interpreter, can be compiled for a GPU that is not there, and never retimes in a test.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Config:
    """One tiling of the product: block sizes in elements, the rest as Triton's launch options."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int  # row blocks that share one sweep over N, so that their weights stay in L2
    num_warps: int
    num_stages: int


# Where each tile comes from. The K step is a multiple of 32, the depth of one int8 mma.sync
# (m16n8k32) and of one wgmma. Operand tiles take (block_m + block_n) * block_k bytes of shared
# memory per stage, in all stages for wgmma and in one less for mma.sync. A block may use 163 KiB on
# sm_80, 99 on sm_86, sm_89 and sm_120, and 227 on sm_90 and sm_100. Registers and shared memory of
# every build: results/bench/arch.csv; which tile is offered where: kernels/shipped.py.
CONFIGS = tuple(
    Config(*row)
    for row in (
        # block_m, block_n, block_k, group_m, num_warps, num_stages
        (128, 256, 128, 8, 8, 4),  # FP8 GEMM at 0.98 of cuBLAS on H100; more than 99 KiB everywhere
        (128, 256, 128, 8, 8, 3),  # the same with one buffer less: 96 KiB on all but sm_90
        (256, 128, 128, 8, 8, 3),  # its transpose, half the weight traffic per row of x
        (128, 256, 64, 8, 8, 3),  # comfy-kitchen's largest sm_80 tile
        (128, 128, 128, 8, 8, 3),  # 0.90-0.98 of cuBLASLt FP8 on an H200 at ragged M
        (128, 128, 128, 8, 4, 3),  # the tile of vLLM and SGLang on sm_90 for M > 128
        (128, 128, 64, 8, 8, 4),  # comfy-kitchen, four stages
        (64, 128, 128, 8, 4, 3),  # fastest mma.sync build on an H200, 640-690 TOPS
        (128, 64, 128, 8, 4, 3),  # its transpose, also in comfy-kitchen
        (64, 256, 64, 8, 4, 3),  # comfy-kitchen, wide N: 4608 is 18 tiles of 256
        (64, 128, 64, 8, 4, 4),  # comfy-kitchen; K 256 (the mini) is four steps, not two
        (64, 64, 128, 8, 4, 4),  # ours: M 400, N 256 (the mini) still makes 28 blocks
        (64, 64, 256, 8, 4, 3),  # vLLM's sm_90 tile for M <= 64
        (32, 128, 128, 4, 4, 4),  # comfy-kitchen, M <= 32: it only streams the weight
        (32, 64, 128, 4, 4, 5),  # ours: the same with twice the blocks
        (16, 128, 128, 1, 4, 4),  # comfy-kitchen, M <= 16
        (16, 64, 256, 1, 4, 4),  # ours: M <= 16 with half the K steps, for K 12288
        (16, 32, 256, 1, 4, 5),  # ours: N 4608 makes 144 blocks, one for each of 132 processors
        (32, 32, 256, 1, 4, 4),  # ours: the same up to 32 rows
        (64, 32, 256, 1, 4, 3),  # ours: the same up to 64 rows
        (64, 64, 128, 4, 4, 6),  # ours: deeper, for 128 and 256 rows, which wait for memory
    )
)


# M is a token count and changes from caption to caption: left unspecialized, one build serves all
# of them. Specialized, M = 1, M % 16 == 0 and the rest would be three builds of every tile.
@triton.jit(do_not_specialize=["M"])
def int8_gemm_kernel(
    x_ptr,  # (M, K) int8, row stride stride_xm
    x_scale_ptr,  # (M,) float32
    w_ptr,  # (N, K) int8, row stride stride_wn; for SwiGLU (2N, K) = [w1; w3]
    w_scale_ptr,  # (N,) or (2N,) float32
    bias_ptr,  # (N,) or None
    gate_ptr,  # (N,) or None
    residual_ptr,  # (M, N), row stride stride_rm, or None
    out_ptr,  # (M, N), row stride stride_om
    M,
    N,
    K,
    stride_xm,
    stride_wn,
    stride_rm,
    stride_om,
    SWIGLU: tl.constexpr,
    EVEN_K: tl.constexpr,  # K % BLOCK_K == 0: the loop needs no mask
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # columns of w a tile reads; for SwiGLU half of them w1's, half w3's
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    # Programs run down GROUP_M row blocks before moving one column block on: with 132 blocks alive
    # at a time and 8 rows to a group they read 8 + 17 distinct tiles through L2, in row order
    # (N 12288, 48 blocks of 256) 3 + 48.
    OUT_N: tl.constexpr = BLOCK_N // 2 if SWIGLU else BLOCK_N
    pid = tl.program_id(0)
    blocks_m = tl.cdiv(M, BLOCK_M)
    blocks_n = tl.cdiv(N, OUT_N)
    group = pid // (GROUP_M * blocks_n)
    first_m = group * GROUP_M
    group_rows = min(blocks_m - first_m, GROUP_M)
    within = pid % (GROUP_M * blocks_n)
    pid_m = first_m + within % group_rows
    pid_n = within // group_rows

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * OUT_N + tl.arange(0, OUT_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows past the end wrap to rows that exist, so the loads in the loop need no mask in M and N;
    # the store is masked by the indices as they were. 64 bits: M * K passes 2^31 at 175k tokens.
    wrapped_m = (offs_m % M).to(tl.int64)
    wrapped_n = (offs_n % N).to(tl.int64)
    x_ptrs = x_ptr + wrapped_m[:, None] * stride_xm + offs_k[None, :]
    w_ptrs = w_ptr + wrapped_n[None, :] * stride_wn + offs_k[:, None]
    to_w3 = tl.full((), N, tl.int64) * stride_wn  # from a row of w1 to that of w3

    acc = tl.zeros((BLOCK_M, OUT_N), dtype=tl.int32)
    if SWIGLU:
        acc3 = tl.zeros((BLOCK_M, OUT_N), dtype=tl.int32)
    for k in range(0, K, BLOCK_K):
        inside_k = offs_k < K - k
        if EVEN_K:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            x = tl.load(x_ptrs, mask=inside_k[None, :], other=0)
            w = tl.load(w_ptrs, mask=inside_k[:, None], other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        if SWIGLU:
            if EVEN_K:
                w3 = tl.load(w_ptrs + to_w3)
            else:
                w3 = tl.load(w_ptrs + to_w3, mask=inside_k[:, None], other=0)
            acc3 = tl.dot(x, w3, acc3, out_dtype=tl.int32)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    inside_m = offs_m < M
    inside_n = offs_n < N
    inside = inside_m[:, None] & inside_n[None, :]
    x_scale = tl.load(x_scale_ptr + offs_m, mask=inside_m, other=0.0)
    w_scale = tl.load(w_scale_ptr + offs_n, mask=inside_n, other=0.0)
    y = acc.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
    if SWIGLU:
        w3_scale = tl.load(w_scale_ptr + N + offs_n, mask=inside_n, other=0.0)
        y3 = acc3.to(tl.float32) * x_scale[:, None] * w3_scale[None, :]
        y = y / (1.0 + tl.exp(-y)) * y3
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs_n, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    if gate_ptr is not None:
        y *= tl.load(gate_ptr + offs_n, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + offs_m.to(tl.int64)[:, None] * stride_rm + offs_n[None, :]
        y += tl.load(residual_ptrs, mask=inside, other=0.0).to(tl.float32)
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * stride_om + offs_n[None, :]
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch(
    x: torch.Tensor,  # (M, K) int8
    x_scale: torch.Tensor,  # (M,) float32
    w: torch.Tensor,  # (N, K) int8, row-major; (2N, K) for SwiGLU
    w_scale: torch.Tensor,  # (N,) or (2N,) float32
    bias: torch.Tensor | None,  # (N,)
    out: torch.Tensor,  # (M, N) bfloat16, float16 or float32, row-major; written
    config: Config,
    *,
    gate: torch.Tensor | None = None,  # (N,)
    residual: torch.Tensor | None = None,  # (M, N)
    swiglu: bool = False,
) -> None:
    """Run the kernel once with the given tile, writing `out`.

    Any tile gives the same int32 sums; tiles differ in speed only. Takes arguments that
    `kernels.int8_gemm` has checked and raises nothing of its own; Triton raises OutOfResources
    where the tile does not fit the GPU. Does nothing for an empty `out`.
    """
    (m, k), n = x.shape, out.shape[1]
    if out.numel() == 0:
        return
    if x.stride(1) != 1:
        x = x.contiguous()  # byte-wise gathers along K would cost more than this copy
    columns = config.block_n // 2 if swiglu else config.block_n
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(n, columns),)
    int8_gemm_kernel[grid](
        x,
        x_scale.contiguous(),
        w,
        w_scale.contiguous(),
        bias if bias is None else bias.contiguous(),
        gate if gate is None else gate.contiguous(),
        residual,
        out,
        m,
        n,
        k,
        x.stride(0),
        w.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        SWIGLU=swiglu,
        EVEN_K=k % config.block_k == 0,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=config.group_m,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
