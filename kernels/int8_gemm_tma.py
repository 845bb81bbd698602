"""Host side of the Hopper GEMM: its tiles, what it cannot take, and its launch."""

import functools
from dataclasses import dataclass

import torch
import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from dit8.kernels.int8_gemm_gluon import int8_gemm_tma_kernel

SHARED_BYTES = 226 * 1024  # of the 227 KiB that a block may use, 1 for the barriers
LINE = 128  # bytes of one line of the swizzle that wgmma reads without bank conflicts


@dataclass(frozen=True)
class TmaConfig:
    """One tiling: `consumers` warpgroups of (rows, block_n) outputs each."""

    consumers: int  # 1, 2 or 3
    rows: int  # of one warpgroup, 64 or 128
    block_n: int  # columns of w a tile reads; for SwiGLU half of them w1's, half w3's
    stages: int  # tiles in the ring
    group_m: int  # row tiles that share one sweep over N, so that w stays in L2


# (consumers, rows, block_n, stages): rows * block_n <= 128 * 128 sums a warpgroup, and a ring plus
# one store buffer a warpgroup within 227 KiB.
SHAPES = (
    (3, 64, 256, 3),  # 192 x 256: the fastest from 2000 rows on, where its waves fit
    (2, 64, 256, 4),  # 128 x 256: at M 4396, N 4608 it fills 94 % of its waves, the first 78 %
    (2, 128, 128, 4),  # 256 x 128
    (3, 64, 128, 5),  # 192 x 128
    (2, 64, 128, 6),  # 128 x 128, the tile of sgl-kernel: 500 to 2000 rows
    (1, 64, 256, 5),  # 64 x 256
    (1, 64, 128, 6),  # 64 x 128: 72 programs for N 4608 and 128 rows
    (1, 64, 64, 8),  # 64 x 64: twice as many
)
CONFIGS = tuple(TmaConfig(*shape, group_m) for shape in SHAPES for group_m in (8, 16))

# Registers a thread: at launch, and a consumer's after the loading warpgroup has given up its own.
LAUNCH_REGISTERS = {1: 232, 2: 168, 3: 128}
CONSUMER_REGISTERS = {1: 232, 2: 240, 3: 160}


def store_buffers(config: TmaConfig) -> int:
    """Count a consumer's buffers for chunks on their way out: two where the ring leaves room.

    With one, a chunk waits until the one before it has been read; with two it does not.
    """
    ring = config.stages * (config.consumers * config.rows + config.block_n) * LINE
    scales = 4 * config.consumers * config.block_n
    return 2 if ring + scales + 2 * config.consumers * config.rows * LINE <= SHARED_BYTES else 1


def offered(
    config: TmaConfig,
    *,
    swiglu: bool = False,
    has_bias: bool = False,
    has_residual: bool = False,
) -> bool:
    """Tell whether a tile exists for an epilogue.

    Three consumers of 256 columns have no registers left for one more operand (with a bias, Triton
    3.6 spills 16 bytes), and half of 64 columns is less than a line of the store.
    """
    if (has_bias or has_residual) and config.consumers == 3 and config.block_n == 256:
        return False
    return not (swiglu and config.block_n == 64)


def obstacle(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> str | None:
    """Return why TMA cannot address these operands, or None.

    Args:
        x: (M, K) int8.
        w: (N, K) or (2N, K) int8, row-major.
        out: (M, N), row-major.
    """
    for name, tensor in (("x", x), ("weight", w), ("out", out)):
        step = tensor.stride(0) * tensor.element_size()
        overlaps = tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1]
        if tensor.stride(1) != 1 or overlaps or step % 16 or tensor.data_ptr() % 16:
            return (
                f"{name} must have contiguous rows that start at multiples of 16 bytes and do not "
                f"overlap, got strides {tuple(tensor.stride())} of {tensor.element_size()}-byte "
                "elements"
            )
    return None


@functools.cache
def _layout(bits: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(swizzle_byte_width=LINE, element_bitwidth=bits, rank=2)


@functools.cache
def processors_of(device: torch.device) -> int:
    """Count a CUDA device's multiprocessors; asked once, since launches are many."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(
    x: torch.Tensor,  # (M, K) int8
    x_scale: torch.Tensor,  # (M,) float32
    w: torch.Tensor,  # (N, K) int8, row-major; (2N, K) for SwiGLU
    w_scale: torch.Tensor,  # (N,) or (2N,) float32
    bias: torch.Tensor | None,  # (N,)
    out: torch.Tensor,  # (M, N) bfloat16, float16 or float32, row-major; written
    config: TmaConfig,
    *,
    gate: torch.Tensor | None = None,  # (N,)
    residual: torch.Tensor | None = None,  # (M, N)
    swiglu: bool = False,
) -> None:
    """Run the Hopper kernel once with the given tile, writing `out`.

    Takes arguments that `kernels.int8_gemm` has checked and that have no `obstacle`. Does nothing
    for an empty `out`.
    """
    if out.numel() == 0:
        return
    (m, k), n = x.shape, out.shape[1]
    columns = config.block_n // 2 if swiglu else config.block_n
    tiles = triton.cdiv(m, config.consumers * config.rows) * triton.cdiv(n, columns)
    size = out.element_size()
    int8_gemm_tma_kernel[(min(processors_of(x.device), tiles),)](
        TensorDescriptor.from_tensor(x, [config.rows, LINE], _layout(8)),
        TensorDescriptor.from_tensor(w, [columns, LINE], _layout(8)),
        TensorDescriptor.from_tensor(out, [config.rows, LINE // size], _layout(8 * size)),
        x_scale.contiguous(),
        w_scale.contiguous(),
        bias if bias is None else bias.contiguous(),
        gate if gate is None else gate.contiguous(),
        residual,
        m,
        n,
        k,
        0 if residual is None else residual.stride(0),
        CONSUMERS=config.consumers,
        ROWS=config.rows,
        BLOCK_N=config.block_n,
        STAGES=config.stages,
        STORES=store_buffers(config),
        GROUP_M=config.group_m,
        SWIGLU=swiglu,
        CONSUMER_REGS=CONSUMER_REGISTERS[config.consumers],
        num_warps=4,
        maxnreg=LAUNCH_REGISTERS[config.consumers],
    )
