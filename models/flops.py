"""What a CFG step of Ideogram 4 has to compute and to move, counted from the architecture.

A product of (M, K) rows with (N, K) weights is 2 M N K operations; attention over L rows is 4 L^2 H
(two products per head). Bytes are what passes main memory if every kernel reads its operands once
and writes its result once (the roofline model, Williams et al. 2009): so the passes over (rows,
hidden) between the products are counted kernel by kernel, eager as diffusers 0.42 issues them and
fused as the producers of `kernels/` do. That difference, 1380 against 185 kB a row and block, is
why fusing pays before any bit is saved.

Counted, not measured; `eval/roofline.py` turns it into times.

How much memory both branches need on the card while they denoise is counted, too: weights from the
architecture (test: within 0.1 % of the files that the converter wrote), and what is live at the
widest moment of a forward. Text encoder and VAE are staged: they visit the card before and after
and are not counted. A linear in int8 costs N K + 4 N bytes, its codes and scales.
"""

from dataclasses import dataclass

BF16, FP32, INT8, INT32 = 2, 4, 1, 4  # bytes a value
TEXT_SLOTS = 2048  # the stock pipeline pads every caption to this many rows
# Bytes a value that one eager RMSNorm of diffusers moves in bf16: to fp32 2+4, square 4+4, mean 4,
# times 1/rms 2+4, to bf16 4+2, times weight 2+2.
EAGER_NORM = 34
EAGER_MULTIPLY = 3 * BF16  # two operands that are both full tensors
EAGER_SCALE = 2 * BF16  # one operand is a vector, or there is only one

BF16_GEMM, INT8_GEMM, INT8_PRODUCT = "bf16_gemm", "int8_gemm", "int8_product"
ATTENTION, MASKED_ATTENTION = "attention", "masked_attention"
MEMORY, EAGER_MEMORY = "memory", "eager_memory"
UNITS = (
    *(BF16_GEMM, INT8_GEMM, INT8_PRODUCT),
    *(ATTENTION, MASKED_ATTENTION, MEMORY, EAGER_MEMORY),
)


@dataclass(frozen=True)
class Sizes:
    """Widths of one branch; the defaults are the real model's."""

    layers: int = 34
    heads: int = 18
    head_dim: int = 256
    ffn: int = 12288
    adaln: int = 512
    text_features: int = 53248
    channels: int = 128

    @property
    def hidden(self) -> int:
        return self.heads * self.head_dim

    @property
    def block_linears(self) -> dict[str, tuple[int, int]]:
        """(N, K) of a block's products, q/k/v and w1/w3 as one each."""
        return {
            "qkv": (3 * self.hidden, self.hidden),
            "attn_out": (self.hidden, self.hidden),
            "ffn_up2": (2 * self.ffn, self.hidden),
            "ffn_down": (self.hidden, self.ffn),
        }


IDEOGRAM4 = Sizes()


@dataclass(frozen=True)
class Execution:
    """How the forwards are carried out; the default is the engine in bf16."""

    int8: bool = False  # block linears and text projection in W8A8
    kept: int = 0  # down-projections a branch that stay bf16
    separate: bool = False  # quantize, int32 product and dequantize are kernels of their own
    stock: bool = False  # diffusers as it is: padded, masked, eager, text projected every time


VARIANTS = {
    "bf16_stock": Execution(stock=True),
    "bf16": Execution(),
    "int8_unfused": Execution(int8=True, kept=17, separate=True),
    "fused_int8": Execution(int8=True, kept=17),
    "rotated": Execution(int8=True),
}


@dataclass(frozen=True)
class Work:
    """One component of one branch, over all blocks.

    Attributes:
        name: of the component.
        unit: what it is limited by, one of UNITS.
        flops: operations, a multiply-add is two.
        bytes: moved through main memory.
    """

    name: str
    unit: str
    flops: float
    bytes: float


def step_work(
    how: Execution, image_tokens: int, text_tokens: int, sizes: Sizes = IDEOGRAM4
) -> tuple[Work, ...]:
    """Count one CFG step: the conditional forward, then the unconditional one.

    Args:
        how: one of VARIANTS or another combination.
        image_tokens: 16 x 16 pixels each.
        text_tokens: of the caption; stock pads them to TEXT_SLOTS.
        sizes: of the model.

    Raises:
        ValueError: no image rows, a negative caption, or more kept linears than blocks.
    """
    if image_tokens < 1 or text_tokens < 0 or not 0 <= how.kept <= sizes.layers:
        raise ValueError(
            f"step_work: image_tokens must be >= 1, text_tokens >= 0 and kept within 0..layers "
            f"{sizes.layers}, got {image_tokens}, {text_tokens} and {how.kept}"
        )
    text = TEXT_SLOTS if how.stock else text_tokens
    return (
        *_forward(how, image_tokens + text, sizes),
        *_forward(how, image_tokens, sizes),
    )


def image_work(how: Execution, text_tokens: int, sizes: Sizes = IDEOGRAM4) -> tuple[Work, ...]:
    """Count what is done once an image: the text projection, which stock repeats every forward.

    The adaLN tables are left out (48 rows: below a millisecond), and so are the text encoder and
    the VAE, which no variant changes.
    """
    if how.stock or not text_tokens:
        return ()
    return (_projection(how, text_tokens, sizes),)


def _forward(how: Execution, rows: int, sizes: Sizes) -> list[Work]:
    hidden, layers = sizes.hidden, sizes.layers
    works = []
    for name, (n, k) in sizes.block_linears.items():
        kept = how.kept if name == "ffn_down" else 0
        quantized = layers - kept if how.int8 else 0
        # the fused epilogue multiplies silu(w1 x) and w3 x: half of the columns are written
        is_gated = how.int8 and not how.separate and name == "ffn_up2"
        written = n // 2 if is_gated else n
        if quantized:
            works.append(_int8_gemm(how, name, rows, n, k, quantized, written))
        if layers - quantized:
            works.append(_gemm(name, BF16_GEMM, rows, n, k, layers - quantized, BF16, n * BF16))
    unit = MASKED_ATTENTION if how.stock else ATTENTION
    operations = 4 * rows * rows * hidden
    works.append(Work("attention", unit, layers * operations, layers * rows * 4 * hidden * BF16))
    for name, row_bytes in elementwise_bytes(how, sizes).items():
        unit = EAGER_MEMORY if how.stock else MEMORY
        works.append(Work(name, unit, 0, rows * row_bytes))
    works.append(_gemm("in_out", BF16_GEMM, rows, hidden, sizes.channels, 2, BF16, hidden * BF16))
    if how.stock:
        works.append(_projection(how, rows, sizes))  # over image rows too, then masked away
        adaln = sizes.adaln * 4 * hidden * layers + 2 * hidden * hidden
        works.append(Work("modulation", EAGER_MEMORY, 2 * adaln, adaln * BF16))
    return works


def elementwise_bytes(how: Execution, sizes: Sizes = IDEOGRAM4) -> dict[str, float]:
    """Count the bytes a row moves outside the products and attention, over all blocks.

    Scales of rows (4 bytes) and vectors shared by all rows are not counted.
    """
    hidden, ffn, layers = sizes.hidden, sizes.ffn, sizes.layers
    if how.stock:
        text_norm = sizes.text_features * (EAGER_SCALE + EAGER_NORM)  # mask, then norm
        rotate = EAGER_SCALE + EAGER_SCALE + EAGER_SCALE  # x cos, cat(-x2, x1), its product by sin
        rotate += BF16 + EAGER_MULTIPLY  # negating a half, the sum
        # two norms before (times scale), two after (times gate, plus residual)
        norms = 4 * (EAGER_NORM + EAGER_SCALE) + 2 * EAGER_MULTIPLY
        return {
            "norms": layers * hidden * norms,
            "qk_norm_rope": layers * 2 * hidden * (EAGER_NORM + rotate),
            "swiglu": layers * ffn * (EAGER_SCALE + EAGER_MULTIPLY),
            "text_norm": text_norm,
        }
    fused = how.int8 and not how.separate
    # residual and output in, residual and normed row out; twice a block
    norms = 2 * hidden * (3 * BF16 + (INT8 if fused else BF16))
    found = {
        "norms": layers * norms,
        # q and k in place; cos and sin in fp32, half a head each, once for all heads
        "qk_norm_rope": layers * (2 * hidden * 2 * BF16 + sizes.head_dim * FP32),
    }
    if not fused:
        found["swiglu"] = layers * 3 * ffn * BF16
    if how.int8:
        # attention's output, and w2's input where w2 is int8; unfused also both normed rows
        values = layers * hidden * (3 if how.separate else 1) + (layers - how.kept) * ffn
        found["quantize"] = values * (BF16 + INT8)
    if how.separate:
        columns = {name: n for name, (n, _) in sizes.block_linears.items()}
        down = columns.pop("ffn_down")
        written = layers * sum(columns.values()) + (layers - how.kept) * down
        found["dequantize"] = written * (INT32 + BF16)
    return found


def _projection(how: Execution, rows: int, sizes: Sizes) -> Work:
    n, k = sizes.hidden, sizes.text_features
    if how.int8:
        return _int8_gemm(how, "llm_proj", rows, n, k, 1, n)
    return _gemm("llm_proj", BF16_GEMM, rows, n, k, 1, BF16, n * BF16)


def _int8_gemm(
    how: Execution, name: str, rows: int, n: int, k: int, calls: int, written: int
) -> Work:
    if how.separate:
        return _gemm(name, INT8_PRODUCT, rows, n, k, calls, INT8, n * INT32)
    return _gemm(name, INT8_GEMM, rows, n, k, calls, INT8, written * BF16)


def _gemm(
    name: str, unit: str, rows: int, n: int, k: int, calls: int, size: int, row_bytes: int
) -> Work:
    """Count `calls` products; operands have `size` bytes a value, a row of results `row_bytes`."""
    moved = (rows + n) * k * size + rows * row_bytes
    return Work(name, unit, calls * 2 * rows * n * k, calls * moved)


CONTEXT_BYTES = 0.5e9  # an assumption: CUDA's context, cuBLAS workspaces, the allocator's slack
SCALE_BYTES = 4  # fp32, one an output channel
BRANCHES = 2


def linear_weights(sizes: Sizes = IDEOGRAM4) -> int:
    """Count the weights of all linears of one branch."""
    hidden = sizes.hidden
    block = sum(n * k for n, k in sizes.block_linears.values()) + sizes.adaln * 4 * hidden
    time = 2 * hidden * hidden + hidden * sizes.adaln
    ends = 2 * sizes.channels * hidden + sizes.adaln * hidden
    return sizes.layers * block + sizes.text_features * hidden + time + ends


def weight_bytes(how: Execution, sizes: Sizes = IDEOGRAM4) -> int:
    """Count what both branches take: int8 where `how` says so, else bf16.

    Norms, biases and the indicator embedding, below a per mille, are left out.
    """
    saved = 0
    if how.int8:
        shapes = [
            (n, k, sizes.layers - (how.kept if name == "ffn_down" else 0))
            for name, (n, k) in sizes.block_linears.items()
        ]
        shapes.append((sizes.hidden, sizes.text_features, 1))
        saved = sum(calls * (n * k * (BF16 - INT8) - n * SCALE_BYTES) for n, k, calls in shapes)
    return BRANCHES * (linear_weights(sizes) * BF16 - saved)


def activation_bytes(
    how: Execution, image_tokens: int, text_tokens: int, sizes: Sizes = IDEOGRAM4
) -> int:
    """Count what is live at the widest moment of the conditional forward, a batch of one.

    Stock: the norm of the text features of all slots (argument, masked copy, fp32 copy, its
    square). Engine: the feed-forward (residual, its input, [w1; w3] of it, their gated product),
    with the text features kept beside.
    """
    if how.stock:
        rows = image_tokens + TEXT_SLOTS
        return rows * (sizes.text_features * (2 * BF16 + 8) + sizes.hidden * BF16)
    rows, hidden, ffn = image_tokens + text_tokens, sizes.hidden, sizes.ffn
    features = text_tokens * (sizes.text_features + hidden) * BF16
    if not how.int8:
        row = 2 * hidden * BF16 + 3 * ffn * BF16
    elif how.separate:  # int32 products and the bf16 values made of them
        row = hidden * (BF16 + INT8) + 2 * ffn * (INT32 + BF16)
    else:  # gated in the epilogue: product in bf16 and its codes
        row = hidden * (BF16 + INT8) + ffn * (BF16 + INT8)
    return rows * row + features


def needed_bytes(how: Execution, image_tokens: int, text_tokens: int) -> float:
    """Add up weights, activations and CONTEXT_BYTES."""
    return weight_bytes(how) + activation_bytes(how, image_tokens, text_tokens) + CONTEXT_BYTES
