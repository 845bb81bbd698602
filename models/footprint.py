"""How much memory both branches need on the card while they denoise.

Weights from the architecture (test: within 0.1 % of the files that the converter wrote), and what
is live at the widest moment of a forward. Text encoder and VAE are staged: they visit the card
before and after and are not counted. A linear in int8 costs N K + 4 N bytes, its codes and scales.
"""

from dit8.models.work import BF16, IDEOGRAM4, INT8, INT32, TEXT_SLOTS, Execution, Sizes

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
