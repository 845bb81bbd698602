"""Triton helper: multiply every group of 4, 16, 64 or 256 values by the regular Hadamard matrix.

Order 256 is H16 (x) H16, so a group, seen as a 16 x 16 matrix X, becomes H16 X H16: two products
with a matrix whose entries +-1/4 are exact in bf16. Smaller groups replace a factor by a
block-diagonal one (64: diag of four H4 on the left) or leave the left one out (16 and 4).

The factors go on that side on purpose. A thread of `mma.sync` holds the result of the first product
in just the places where the second one wants its left operand, so between the two nothing moves:
chunks pass through shared memory once, as bf16, before the first. Butterflies in fp32 need the
same number of instructions and two passes through shared memory in fp32 (counted in SASS: for 4096
columns and 8 warps 16 shared stores a thread, here 2).

Numbers that are not bf16 enter as the sum of two bf16, 8 bits each, so 16 bits of a value survive
a product; a code of the rotated row differs from the one of an fp32 rotation only beside a tie.
"""

import triton
import triton.language as tl


@triton.jit
def hadamard_factor(GROUPS: tl.constexpr, ORDER: tl.constexpr):  # -> (GROUPS, 16, 16) bfloat16
    """Repeat diag(H, ..., H), H of order 4 or 16, for every group of a chunk.

    Computed from the indices and not loaded: the compiler then evaluates each entry in the thread
    that needs it. An entry is negative where the two digits of exactly one base-4 place sum to 3.
    """
    i = tl.arange(0, 16)[None, :, None]
    j = tl.arange(0, 16)[None, None, :]
    low = (i & 3) + (j & 3) == 3
    if ORDER == 16:
        high = (i >> 2) + (j >> 2) == 3
        entry = tl.where(low == high, 0.25, -0.25)
    else:
        entry = tl.where((i >> 2) == (j >> 2), tl.where(low, -0.5, 0.5), 0.0)
    return tl.broadcast_to(entry, (GROUPS, 16, 16)).to(tl.bfloat16)


@triton.jit
def split_bf16(x):  # float32 -> two bfloat16 of the same shape that sum to its first 16 bits
    # Cut off, not rounded: a mask and an exact conversion, which the GPU does for two values at a
    # time. Infinity leaves infinity - infinity = NaN in the second part, so it is not lost.
    cut = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return cut.to(tl.bfloat16), (x - cut).to(tl.bfloat16)


@triton.jit
def rotate_chunk(v, BLOCK_K: tl.constexpr, ROTATION: tl.constexpr):  # -> (BLOCK_K,) float32
    """Rotate the groups of one chunk of a row; ROTATION 0 only widens it.

    v: (BLOCK_K,) bfloat16 (exact in one part), float16 or float32, BLOCK_K a multiple of 256 that
    starts at a multiple of the group. Zeros behind the row's end stay in their own groups.
    """
    if ROTATION == 0:
        return v.to(tl.float32)
    GROUPS: tl.constexpr = BLOCK_K // 256
    right = hadamard_factor(GROUPS, 16 if ROTATION >= 16 else 4)
    left = hadamard_factor(GROUPS, 16 if ROTATION == 256 else 4)
    if v.dtype == tl.bfloat16:
        x = tl.reshape(v, (GROUPS, 16, 16))
        y = tl.dot(left, x) if ROTATION > 16 else tl.dot(x, right)
    else:
        first, second = split_bf16(v.to(tl.float32))
        first = tl.reshape(first, (GROUPS, 16, 16))
        second = tl.reshape(second, (GROUPS, 16, 16))
        if ROTATION > 16:
            y = tl.dot(left, second, acc=tl.dot(left, first))
        else:
            y = tl.dot(second, right, acc=tl.dot(first, right))
    if ROTATION > 16:
        first, second = split_bf16(y)
        y = tl.dot(second, right, acc=tl.dot(first, right))
    return tl.reshape(y, (BLOCK_K,))
