"""Triton kernel of `dit8::int8_gemm` for sm_80 to sm_90; runs on Triton 3.6 and 3.7.

Imported only where the op runs on CUDA, and by tests under TRITON_INTERPRET=1. The tile is an
explicit argument of `launch`, not a property of the jit kernel, so that the same arithmetic runs
under the interpreter, can be compiled for a GPU that is not there, and never retimes in a test.
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from quant.errors import UserError


@dataclass(frozen=True)
class Config:
    """One tiling of the product: block sizes in elements, the rest as Triton's launch options."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int  # row blocks that share one sweep over N, so that their weights stay in L2
    num_warps: int
    num_stages: int


# Where each tile comes from, and its registers per thread when built for sm_80 / sm_90 (Triton
# 3.7.1, bf16 out, bias; at most 8 bytes of stack, so none spills in its loop). The K step is a
# multiple of 32, the depth of one int8 mma.sync (m16n8k32) and of one wgmma. Operand tiles take
# (block_m + block_n) * block_k bytes of shared memory per stage, all stages on sm_90 and one less
# before it. A block may use 163 KiB on sm_80, 99 KiB on sm_86 and sm_89 and 227 KiB on sm_90;
# choose_config passes over what does not fit.
CONFIGS = tuple(
    Config(*row)
    for row in (
        # block_m, block_n, block_k, group_m, num_warps, num_stages
        (128, 256, 128, 8, 8, 4),  # FP8 GEMM at 0.98 of cuBLAS on H100; 255/222; not sm_86, sm_89
        (128, 256, 128, 8, 8, 3),  # the same with one buffer less: 96 KiB before sm_90; 255/222
        (256, 128, 128, 8, 8, 3),  # its transpose, half the weight traffic per row of x; 255/244
        (128, 256, 64, 8, 8, 3),  # comfy-kitchen's largest sm_80 tile; 213/222
        (128, 128, 128, 8, 8, 3),  # 0.90-0.98 of cuBLASLt FP8 on an H200 at ragged M; 154/128
        (128, 128, 128, 8, 4, 3),  # the tile of vLLM and SGLang on sm_90 for M > 128; 255/226
        (128, 128, 64, 8, 8, 4),  # comfy-kitchen, four stages; 130/128
        (64, 128, 128, 8, 4, 3),  # fastest mma.sync build on an H200, 640-690 TOPS; 164/124
        (128, 64, 128, 8, 4, 3),  # its transpose, also in comfy-kitchen; 168/128
        (64, 256, 64, 8, 4, 3),  # comfy-kitchen, wide N: 4608 is 18 tiles of 256; 222/243
        (64, 128, 64, 8, 4, 4),  # comfy-kitchen; K 256 (the mini) is four steps, not two; 128/126
        (64, 64, 128, 8, 4, 4),  # ours: M 400, N 256 (the mini) still makes 28 blocks; 96/72
        (64, 64, 256, 8, 4, 3),  # vLLM's sm_90 tile for M <= 64; 127/80
        (32, 128, 128, 4, 4, 4),  # comfy-kitchen, M <= 32: it only streams the weight; 96/98
        (32, 64, 128, 4, 4, 5),  # ours: the same with twice the blocks; 64/70
        (16, 128, 128, 1, 4, 4),  # comfy-kitchen, M <= 16; 72/72
        (16, 64, 256, 1, 4, 4),  # ours: M <= 16 with half the K steps, for K 12288; 72/64
    )
)


# M is a token count and changes from caption to caption: left unspecialized, one build serves all
# of them. Specialized, M = 1, M % 16 == 0 and the rest would be three builds of every tile.
@triton.jit(do_not_specialize=["M"])
def int8_gemm_kernel(
    x_ptr,  # (M, K) int8, row stride stride_xm
    x_scale_ptr,  # (M,) float32
    w_ptr,  # (N, K) int8, row stride stride_wn
    w_scale_ptr,  # (N,) float32
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N), row stride stride_om
    M,
    N,
    K,
    stride_xm,
    stride_wn,
    stride_om,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,  # K % BLOCK_K == 0: the loop needs no mask
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    # Programs run down GROUP_M row blocks before moving one column block on: with 132 blocks alive
    # at a time and 8 rows to a group they read 8 + 17 distinct tiles through L2, in row order
    # (N 12288, 48 blocks of 256) 3 + 48.
    pid = tl.program_id(0)
    blocks_m = tl.cdiv(M, BLOCK_M)
    blocks_n = tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * blocks_n)
    first_m = group * GROUP_M
    group_rows = min(blocks_m - first_m, GROUP_M)
    within = pid % (GROUP_M * blocks_n)
    pid_m = first_m + within % group_rows
    pid_n = within // group_rows

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows past the end wrap to rows that exist, so the loads in the loop need no mask in M and N;
    # the store is masked by the indices as they were. 64 bits: M * K passes 2^31 at 175k tokens.
    wrapped_m = (offs_m % M).to(tl.int64)
    wrapped_n = (offs_n % N).to(tl.int64)
    x_ptrs = x_ptr + wrapped_m[:, None] * stride_xm + offs_k[None, :]
    w_ptrs = w_ptr + wrapped_n[None, :] * stride_wn + offs_k[:, None]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            x = tl.load(x_ptrs, mask=offs_k[None, :] < K - k, other=0)
            w = tl.load(w_ptrs, mask=offs_k[:, None] < K - k, other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    inside_m = offs_m < M
    inside_n = offs_n < N
    x_scale = tl.load(x_scale_ptr + offs_m, mask=inside_m, other=0.0)
    w_scale = tl.load(w_scale_ptr + offs_n, mask=inside_n, other=0.0)
    y = acc.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + offs_n, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * stride_om + offs_n[None, :]
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=inside_m[:, None] & inside_n[None, :])


def launch(
    x: torch.Tensor,  # (M, K) int8
    x_scale: torch.Tensor,  # (M,) float32
    w: torch.Tensor,  # (N, K) int8, row-major
    w_scale: torch.Tensor,  # (N,) float32
    bias: torch.Tensor | None,  # (N,)
    out: torch.Tensor,  # (M, N) bfloat16, float16 or float32, row-major; written
    config: Config,
) -> None:
    """Run the kernel once with the given tile, writing `out`.

    Any tile gives the same int32 sums; tiles differ in speed only. Takes arguments that
    `kernels.int8_gemm` has checked and raises nothing of its own; Triton raises OutOfResources
    where the tile does not fit the GPU. Does nothing for an empty `out`.
    """
    (m, k), n = x.shape, w.shape[0]
    if out.numel() == 0:
        return
    if x.stride(1) != 1:
        x = x.contiguous()  # byte-wise gathers along K would cost more than this copy
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)
    int8_gemm_kernel[grid](
        x,
        x_scale.contiguous(),
        w,
        w_scale.contiguous(),
        bias if bias is None else bias.contiguous(),
        out,
        m,
        n,
        k,
        x.stride(0),
        w.stride(0),
        out.stride(0),
        HAS_BIAS=bias is not None,
        EVEN_K=k % config.block_k == 0,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=config.group_m,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def m_bucket(m: int) -> int:
    """Round a row count up to a power of two from 16 to 8192: the counts that share a timing."""
    return min(max(16, 1 << (m - 1).bit_length()), 8192)


def candidates(m: int) -> tuple[Config, ...]:
    """Return the CONFIGS worth timing for M rows.

    A block much taller than the bucket computes mostly rows that are thrown away; 64 stays for
    every M, since it is the shortest block that wgmma can take.
    """
    tallest = max(64, m_bucket(m))
    return tuple(config for config in CONFIGS if config.block_m <= tallest)


def choose_config(m: int, n: int, k: int, device: torch.device) -> Config:
    """Return the fastest of CONFIGS for a product on a CUDA device, timing them at first use.

    The winner is kept for the life of the process per (M bucket, N, K, device); the first M seen
    stands for its bucket. Takes about half a second per new key, and 0.2-0.5 s more per tile the
    first time that Triton compiles it on a machine.

    Args:
        m, n, k: sizes of the product, M >= 1.
        device: the CUDA device that it runs on.

    Returns:
        One entry of CONFIGS.

    Raises:
        UserError: the key is new and a CUDA graph is being captured, where nothing can be timed.

    Does not change the result of the product: every tile computes the same sums.
    """
    key = (m_bucket(m), n, k, device)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            raise UserError(
                f"choose_config: no tile is known yet for M={m}, N={n}, K={k} and a CUDA graph is "
                "being captured, got a first call inside the capture; run the model once before it"
            )
        timer = functools.partial(time_config, *_operands(m, n, k, device))
        _chosen[key] = fastest(candidates(m), timer)
    return _chosen[key]


_chosen: dict[tuple, Config] = {}  # (M bucket, N, K, device) -> winner; choose_config's memory


def fastest(configs: tuple[Config, ...], time_ms) -> Config:
    """Return the config with the smallest `time_ms(config)`; ties go to the earlier one.

    A config whose build asks for more shared memory than the GPU has counts as infinitely slow:
    Triton raises at its first launch, with the exact need, which no formula here has to repeat.
    """
    times = {}
    for config in configs:
        try:
            times[config] = time_ms(config)
        except OutOfResources:
            times[config] = float("inf")
    best = min(times, key=times.get)
    if times[best] == float("inf"):
        raise UserError(
            f"choose_config: none of {len(configs)} tiles fits this GPU, expected at least one; "
            "add a smaller one to CONFIGS in kernels/int8_gemm_triton.py"
        )
    return best


def _operands(m: int, n: int, k: int, device: torch.device) -> tuple:
    """Make random operands: zeros draw less power and were timed 13 % faster than real data."""
    generator = torch.Generator(device).manual_seed(0)
    draw = functools.partial(
        torch.randint, -127, 128, generator=generator, dtype=torch.int8, device=device
    )
    scales = torch.ones(max(m, n), device=device)
    out = torch.empty(m, n, dtype=torch.bfloat16, device=device)
    return draw((m, k)), scales[:m], draw((n, k)), scales[:n], None, out


def time_config(x, x_scale, w, w_scale, bias, out, config: Config) -> float:
    """Return the median time of one launch in ms, with a cold L2 between launches."""
    return triton.testing.do_bench(
        lambda: launch(x, x_scale, w, w_scale, bias, out, config),
        warmup=5,
        rep=20,
        return_mode="median",
    )
