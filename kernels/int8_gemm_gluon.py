"""Hopper kernel of `dit8::int8_gemm` and `dit8::int8_gemm_swiglu`: TMA, wgmma, specialized warps.

One program per multiprocessor walks over the output tiles. One warp loads operand tiles into a
ring of shared memory (TMA, completion counted by an mbarrier); two or three warpgroups multiply.
All of them read the same tile of w, each has 64 or 128 rows of x and of the output for itself, and
they meet at no barrier but the ring's: a warpgroup that has finished its sums scales and stores
them while the others keep the tensor cores busy, as far ahead as the ring lets them run.

Why three warpgroups of 64 x 256: per product that tile moves 22 % fewer bytes from L2 than two
(128 x 256) and 42 % fewer than 128 x 128. Under sustained load the card is bound by power, not by
the tensor cores, and moving less buys clock (results/LOG.md).

Measured on an H200 (results/bench/gemm.csv), 10^12 operations/s at M 4096 / 4396 in one run beside
sgl-kernel (CUTLASS) and cuBLASLt FP8:

                    this        sgl-kernel      cuBLASLt FP8
    qkv         1347 / 1313    1406 / 1255      1300 / 1274
    attn_out    1405 / 1360    1390 / 1314      1277 / 1225
    ffn_up2     1318 / 1340    1429 / 1264      1325 / 1301
    ffn_down    1431 / 1370    1356 / 1251      1307 / 1260

Written in Gluon because `tl.dot`'s own pipelining cannot give warps different roles; it reached
1090-1150 (results/LOG.md). Loads past the edges return zeros and stores past them are dropped
by the TMA unit, so no M, N or K needs a mask here.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.core import _aggregate as aggregate


@gluon.constexpr_function
def _value(x):
    """Wrap what is no tensor: None for an absent operand, and a size that is 1."""
    return x if isinstance(x, gl.tensor) else gl.constexpr(x)


@aggregate
class Product:
    """Everything that the warps of one program share."""

    x_desc: tma.tensor_descriptor
    w_desc: tma.tensor_descriptor
    out_desc: tma.tensor_descriptor
    x_bufs: gl.shared_memory_descriptor
    w_bufs: gl.shared_memory_descriptor
    out_bufs: gl.shared_memory_descriptor
    scale_bufs: gl.shared_memory_descriptor  # w_scale of the tile, one copy a warpgroup
    ready: gl.shared_memory_descriptor  # a stage holds its tiles
    empty: gl.shared_memory_descriptor  # every warpgroup is done with them
    x_scale: gl.tensor
    w_scale: gl.tensor
    bias: gl.tensor | gl.constexpr
    gate: gl.tensor | gl.constexpr
    residual: gl.tensor | gl.constexpr
    stride_rm: gl.tensor | gl.constexpr
    M: gl.tensor
    N: gl.tensor | gl.constexpr
    K: gl.tensor | gl.constexpr
    CONSUMERS: gl.constexpr
    ROWS: gl.constexpr
    BLOCK_N: gl.constexpr
    STAGES: gl.constexpr
    STORES: gl.constexpr
    GROUP_M: gl.constexpr
    SWIGLU: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self, x_desc, w_desc, out_desc, x_bufs, w_bufs, out_bufs, scale_bufs, ready, empty, x_scale,
        w_scale, bias, gate, residual, stride_rm, M, N, K, CONSUMERS, ROWS, BLOCK_N, STAGES, STORES,
        GROUP_M, SWIGLU,
    ):  # fmt: skip
        self.x_desc, self.w_desc, self.out_desc = x_desc, w_desc, out_desc
        self.x_bufs, self.w_bufs, self.out_bufs = x_bufs, w_bufs, out_bufs
        self.scale_bufs = scale_bufs
        self.ready, self.empty = ready, empty
        self.x_scale, self.w_scale = x_scale, w_scale
        self.bias, self.gate, self.residual = _value(bias), _value(gate), _value(residual)
        self.stride_rm, self.M, self.N, self.K = _value(stride_rm), M, _value(N), _value(K)
        self.CONSUMERS, self.ROWS = gl.constexpr(CONSUMERS), gl.constexpr(ROWS)
        self.BLOCK_N, self.STAGES = gl.constexpr(BLOCK_N), gl.constexpr(STAGES)
        self.STORES = gl.constexpr(STORES)
        self.GROUP_M, self.SWIGLU = gl.constexpr(GROUP_M), gl.constexpr(SWIGLU)


@gluon.jit
def tile_of(tile, blocks_m, blocks_n, GROUP_M: gl.constexpr):
    """Name the row and column block of a tile: down GROUP_M row blocks, then one column on."""
    group = tile // (GROUP_M * blocks_n)
    first_m = group * GROUP_M
    rows = gl.minimum(blocks_m - first_m, GROUP_M)
    within = tile % (GROUP_M * blocks_n)
    return first_m + within % rows, within // rows


@gluon.jit
def load_tiles(p):
    """Keep the ring full: the loading warp's part."""
    K_STEP: gl.constexpr = p.x_desc.block_type.shape[1]
    OUT_N: gl.constexpr = p.w_desc.block_type.shape[0]
    blocks_m = gl.cdiv(p.M, p.CONSUMERS * p.ROWS)
    blocks_n = gl.cdiv(p.N, OUT_N)
    stage = 0
    phase = 1  # a new barrier counts as past its phase 1: the first round does not wait
    for tile in range(gl.program_id(0), blocks_m * blocks_n, gl.num_programs(0)):
        pid_m, pid_n = tile_of(tile, blocks_m, blocks_n, p.GROUP_M)
        off_m = pid_m * (p.CONSUMERS * p.ROWS)
        off_n = pid_n * OUT_N
        for step in range(gl.cdiv(p.K, K_STEP)):
            mbarrier.wait(p.empty.index(stage), phase)
            bar = p.ready.index(stage)
            off_k = step * K_STEP
            mbarrier.expect(bar, (p.CONSUMERS * p.ROWS + p.BLOCK_N) * K_STEP)
            for consumer in gl.static_range(p.CONSUMERS):
                x = p.x_bufs.index(p.CONSUMERS * stage + consumer)
                row = off_m + consumer * p.ROWS
                tma.async_copy_global_to_shared(p.x_desc, [row, off_k], bar, x)
            if p.SWIGLU:
                w1, w3 = p.w_bufs.index(2 * stage), p.w_bufs.index(2 * stage + 1)
                tma.async_copy_global_to_shared(p.w_desc, [off_n, off_k], bar, w1)
                tma.async_copy_global_to_shared(p.w_desc, [off_n + p.N, off_k], bar, w3)
            else:
                w = p.w_bufs.index(stage)
                tma.async_copy_global_to_shared(p.w_desc, [off_n, off_k], bar, w)
            stage += 1
            if stage == p.STAGES:
                stage = 0
                phase ^= 1


@gluon.jit
def halves(x):  # (R, C) -> two of (R, C / 2)
    return x.reshape([x.shape[0], 2, x.shape[1] // 2]).permute(0, 2, 1).split()


@gluon.jit
def load_w_scale(p, pid_n):
    """Load the scales of the tile's columns, spread over the warpgroup's threads."""
    spread: gl.constexpr = gl.BlockedLayout([max(p.BLOCK_N // 128, 1)], [32], [4], [0])
    OUT_N: gl.constexpr = p.w_desc.block_type.shape[0]
    column = gl.arange(0, p.BLOCK_N, spread)
    channel = pid_n * OUT_N + column % OUT_N
    inside = channel < p.N
    channel += column // OUT_N * p.N  # SwiGLU: the other half are w3's
    return gl.load(p.w_scale + channel, mask=inside, other=0.0)


@gluon.jit
def read_w_scale(w_scale, FIRST: gl.constexpr, like):
    """Read the scales of a chunk's columns from shared memory, laid out for it."""
    return w_scale.slice(FIRST, like.shape[1]).load(gl.SliceLayout(0, like.type.layout))


@gluon.jit
def scaled(acc, x_scale, w_scale):
    """Turn sums into fp32: times the row's scale, times the column's."""
    rows = gl.convert_layout(x_scale, gl.SliceLayout(1, acc.type.layout))
    return acc.to(gl.float32) * rows[:, None] * w_scale[None, :]


@gluon.jit
def add_rest(p, y, off_m, off_n):
    """Add what an epilogue may have: residual + gate * (y + bias)."""
    offs_m = off_m + gl.arange(0, y.shape[0], gl.SliceLayout(1, y.type.layout))
    offs_n = off_n + gl.arange(0, y.shape[1], gl.SliceLayout(0, y.type.layout))
    inside = offs_n < p.N
    if p.bias is not None:
        y += gl.load(p.bias + offs_n, mask=inside, other=0.0).to(gl.float32)[None, :]
    if p.gate is not None:
        y *= gl.load(p.gate + offs_n, mask=inside, other=0.0).to(gl.float32)[None, :]
    if p.residual is not None:
        offsets = offs_m.to(gl.int64)[:, None] * p.stride_rm + offs_n[None, :]
        mask = (offs_m < p.M)[:, None] & inside[None, :]
        y += gl.load(p.residual + offsets, mask=mask, other=0.0).to(gl.float32)
    return y


@gluon.jit
def store(p, y, off_m, off_n, CONSUMER: gl.constexpr, CHUNK: gl.constexpr):
    """Send one chunk of columns out, through the warpgroup's one or two buffers in turn."""
    buffer = p.out_bufs.index(p.STORES * CONSUMER + CHUNK % p.STORES)
    tma.store_wait(p.STORES - 1)  # what this buffer held has left
    buffer.store(y.to(p.out_desc.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(p.out_desc, [off_m, off_n], buffer)


# A chunk at a time: scaled as a whole, a tile needs twice its accumulators in registers.
@gluon.jit
def finish(p, acc, x_scale, w_scale, off_m, off_n, CONSUMER: gl.constexpr, CHUNK: gl.constexpr):
    if acc.shape[1] > p.out_desc.block_type.shape[1]:
        left, right = halves(acc)
        finish(p, left, x_scale, w_scale, off_m, off_n, CONSUMER, 2 * CHUNK)
        off_n += left.shape[1]
        finish(p, right, x_scale, w_scale, off_m, off_n, CONSUMER, 2 * CHUNK + 1)
    else:
        y = scaled(acc, x_scale, read_w_scale(w_scale, CHUNK * acc.shape[1], acc))
        store(p, add_rest(p, y, off_m, off_n), off_m, off_n, CONSUMER, CHUNK)


@gluon.jit
def finish_swiglu(
    p, acc1, acc3, x_scale, w_scale, off_m, off_n, CONSUMER: gl.constexpr, CHUNK: gl.constexpr
):
    if acc1.shape[1] > p.out_desc.block_type.shape[1]:
        left1, right1 = halves(acc1)
        left3, right3 = halves(acc3)
        finish_swiglu(p, left1, left3, x_scale, w_scale, off_m, off_n, CONSUMER, 2 * CHUNK)
        off_n += left1.shape[1]
        finish_swiglu(p, right1, right3, x_scale, w_scale, off_m, off_n, CONSUMER, 2 * CHUNK + 1)
    else:
        FIRST: gl.constexpr = CHUNK * acc1.shape[1]
        y1 = scaled(acc1, x_scale, read_w_scale(w_scale, FIRST, acc1))
        y3 = scaled(acc3, x_scale, read_w_scale(w_scale, p.BLOCK_N // 2 + FIRST, acc3))
        store(p, y1 / (1.0 + gl.exp(-y1)) * y3, off_m, off_n, CONSUMER, CHUNK)


@gluon.jit
def multiply_tiles(p, CONSUMER: gl.constexpr):
    """Multiply, scale and store one warpgroup's rows of every tile."""
    K_STEP: gl.constexpr = p.x_desc.block_type.shape[1]
    OUT_N: gl.constexpr = p.w_desc.block_type.shape[0]
    # Integer wgmma stops at N = 224; 128 divides every tile.
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, min(OUT_N, 128), 32])
    blocks_m = gl.cdiv(p.M, p.CONSUMERS * p.ROWS)
    blocks_n = gl.cdiv(p.N, OUT_N)
    stage = 0
    phase = 0
    for tile in range(gl.program_id(0), blocks_m * blocks_n, gl.num_programs(0)):
        pid_m, pid_n = tile_of(tile, blocks_m, blocks_n, p.GROUP_M)
        acc = gl.zeros([p.ROWS, OUT_N], gl.int32, layout)
        acc3 = acc
        off_m = (pid_m * p.CONSUMERS + CONSUMER) * p.ROWS
        offs_m = off_m + gl.arange(0, p.ROWS, gl.SliceLayout(1, layout))
        # Long before their use: loaded where they are used, w's made every chunk wait.
        x_scale = gl.load(p.x_scale + offs_m, mask=offs_m < p.M, other=0.0)
        w_scale = load_w_scale(p, pid_n)
        for step in range(gl.cdiv(p.K, K_STEP)):
            mbarrier.wait(p.ready.index(stage), phase)
            x = p.x_bufs.index(p.CONSUMERS * stage + CONSUMER)
            if p.SWIGLU:
                w1, w3 = p.w_bufs.index(2 * stage), p.w_bufs.index(2 * stage + 1)
                acc = warpgroup_mma(x, w1.permute((1, 0)), acc, is_async=True)
                acc3 = warpgroup_mma(x, w3.permute((1, 0)), acc3, is_async=True)
                acc, acc3 = warpgroup_mma_wait(2, deps=[acc, acc3])
            else:
                acc = warpgroup_mma(x, p.w_bufs.index(stage).permute((1, 0)), acc, is_async=True)
                acc = warpgroup_mma_wait(1, deps=[acc])
            # The product before this one is done, and with it the stage that it read.
            done = p.empty.index((stage + p.STAGES - 1) % p.STAGES)
            mbarrier.arrive(done, count=1, pred=step > 0)
            stage += 1
            if stage == p.STAGES:
                stage = 0
                phase ^= 1
        if p.SWIGLU:
            acc, acc3 = warpgroup_mma_wait(0, deps=[acc, acc3])
        else:
            acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(p.empty.index((stage + p.STAGES - 1) % p.STAGES), count=1)
        shared = p.scale_bufs.index(CONSUMER)
        shared.store(w_scale)
        if p.SWIGLU:
            finish_swiglu(p, acc, acc3, x_scale, shared, off_m, pid_n * OUT_N, CONSUMER, 0)
        else:
            finish(p, acc, x_scale, shared, off_m, pid_n * OUT_N, CONSUMER, 0)
    tma.store_wait(0)


# One function a warpgroup: partitions share their arguments, so its number cannot be one.
@gluon.jit
def consumer_0(p):
    multiply_tiles(p, 0)


@gluon.jit
def consumer_1(p):
    multiply_tiles(p, 1)


@gluon.jit
def consumer_2(p):
    multiply_tiles(p, 2)


@gluon.jit(do_not_specialize=["M"])
def int8_gemm_tma_kernel(
    x_desc,  # (M, K) int8, boxes of (ROWS, K_STEP)
    w_desc,  # (N, K) int8, or (2N, K) = [w1; w3] for SwiGLU
    out_desc,  # (M, N)
    x_scale_ptr,  # (M,) float32
    w_scale_ptr,  # (N,) or (2N,) float32
    bias_ptr,  # (N,) or None
    gate_ptr,  # (N,) or None
    residual_ptr,  # (M, N), row stride stride_rm, or None
    M,
    N,
    K,
    stride_rm,
    CONSUMERS: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    STORES: gl.constexpr,  # buffers of a consumer for chunks on their way out: 1 or 2
    GROUP_M: gl.constexpr,
    SWIGLU: gl.constexpr,
    CONSUMER_REGS: gl.constexpr,
):
    W_TILES: gl.constexpr = 2 * STAGES if SWIGLU else STAGES
    x_block: gl.constexpr = x_desc.block_type.shape
    w_block: gl.constexpr = w_desc.block_type.shape
    out_block: gl.constexpr = out_desc.block_type.shape
    x_bufs = gl.allocate_shared_memory(gl.int8, [CONSUMERS * STAGES] + x_block, x_desc.layout)
    w_bufs = gl.allocate_shared_memory(gl.int8, [W_TILES] + w_block, w_desc.layout)
    out_bufs = gl.allocate_shared_memory(
        out_desc.dtype, [STORES * CONSUMERS] + out_block, out_desc.layout
    )
    scale_bufs = gl.allocate_shared_memory(
        gl.float32, [CONSUMERS, BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    p = Product(
        x_desc, w_desc, out_desc, x_bufs, w_bufs, out_bufs, scale_bufs, ready, empty,
        x_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr, residual_ptr, stride_rm,
        M, N, K, CONSUMERS, ROWS, BLOCK_N, STAGES, STORES, GROUP_M, SWIGLU,
    )  # fmt: skip
    if CONSUMERS == 1:
        gl.warp_specialize([(consumer_0, (p,)), (load_tiles, (p,))], [1], [24])
    elif CONSUMERS == 2:
        gl.warp_specialize(
            [(consumer_0, (p,)), (consumer_1, (p,)), (load_tiles, (p,))],
            [4, 1],
            [CONSUMER_REGS, 24],
        )
    else:
        gl.warp_specialize(
            [(consumer_0, (p,)), (consumer_1, (p,)), (consumer_2, (p,)), (load_tiles, (p,))],
            [4, 4, 1],
            [CONSUMER_REGS, CONSUMER_REGS, 24],
        )
