"""One transformer block as a chain of products with fused steps in between.

    qkv -> q/k norm and rotary -> attention -> out -> gate, residual, norm, quantize
        -> w1 | w3, silu, product -> quantize -> w2 -> gate, residual, norm of the next block

A product that runs on integers gets codes from the step before it, one that does not gets values;
a block may mix both (protected w2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dit8.kernels.int8_gemm import int8_gemm_swiglu
from dit8.kernels.norms import (
    gated_residual,
    gated_residual_norm,
    gated_residual_norm_quant,
    modulated_norm,
    modulated_norm_quant,
)
from dit8.kernels.qk_norm_rope import qk_norm_rope_
from dit8.kernels.swiglu import swiglu, swiglu_quant
from dit8.models.engine.attention import attend
from dit8.models.engine.linears import Projection, Rows, project

Attention = Mapping[tuple[int, int], str | None]  # (samples, rows of each) -> backend


@dataclass(frozen=True)
class Block:
    """A block's norms and its four products."""

    layer: nn.Module
    qkv: Projection
    out: Projection
    up: Projection
    down: Projection

    @classmethod
    def of(cls, layer: nn.Module) -> "Block":
        """Stack the linears of an Ideogram4TransformerBlock."""
        return cls(layer, *(project(*parts) for parts in linears_of(layer)))

    @property
    def projections(self) -> tuple[Projection, ...]:
        return self.qkv, self.out, self.up, self.down

    @property
    def is_current(self) -> bool:
        """Tell whether the layer's own linears are still those of the projections."""
        pairs = zip(self.projections, linears_of(self.layer), strict=True)
        return all(one.parts == parts and one.is_shared for one, parts in pairs)


def linears_of(layer: nn.Module) -> tuple[tuple[nn.Module, ...], ...]:
    """List a block's linears by what they read, in the order that they run in."""
    attention, feed_forward = layer.attention, layer.feed_forward
    return (
        (attention.to_q, attention.to_k, attention.to_v),
        (attention.to_out[0],),
        (feed_forward.w1, feed_forward.w3),
        (feed_forward.w2,),
    )


def run_blocks(
    blocks: Sequence[Block],
    hidden: torch.Tensor,  # (R, H)
    modulation: torch.Tensor,  # (layers, 4, H) fp32
    cos: torch.Tensor,  # (R, d / 2) fp32
    sin: torch.Tensor,
    lengths: Sequence[int],
    attention: Attention,
) -> torch.Tensor:  # (R, H)
    """Run all blocks on packed rows; `hidden` is not written to."""
    first = blocks[0]
    rows = _norm(first.qkv, hidden, first.layer.attention_norm1, modulation[0, 0])
    for index, block in enumerate(blocks):
        scales, layer = modulation[index], block.layer
        mixed = block.out.from_values(_attention(block, rows, hidden, cos, sin, lengths, attention))
        hidden, rows = _residual_norm(
            block.up, hidden, mixed, layer.attention_norm2, scales[1], layer.ffn_norm1, scales[2]
        )
        fed = _feed_forward(block, rows, hidden.dtype)
        if index + 1 == len(blocks):
            norm = layer.ffn_norm2
            return gated_residual(hidden, fed, norm.weight, scales[3], eps=norm.eps)
        following = blocks[index + 1]
        hidden, rows = _residual_norm(
            following.qkv,
            hidden,
            fed,
            layer.ffn_norm2,
            scales[3],
            following.layer.attention_norm1,
            modulation[index + 1, 0],
        )
    raise ValueError("run_blocks: there must be at least one block")


def _norm(reader: Projection, hidden: torch.Tensor, norm: nn.Module, scale: torch.Tensor) -> Rows:
    """Normalize and modulate, in the form that the next product reads."""
    if not reader.takes_codes:
        return modulated_norm(hidden, norm.weight, scale, eps=norm.eps)
    return modulated_norm_quant(hidden, norm.weight, scale, eps=norm.eps, **reader.input_change)


def _residual_norm(
    reader: Projection,
    hidden: torch.Tensor,
    y: torch.Tensor,
    norm: nn.Module,
    gate: torch.Tensor,
    next_norm: nn.Module,
    next_scale: torch.Tensor,
) -> tuple[torch.Tensor, Rows]:
    """Add gate * norm(y), then normalize and modulate for the next product."""
    arguments = (hidden, y, norm.weight, gate, next_norm.weight, next_scale)
    if not reader.takes_codes:
        return gated_residual_norm(*arguments, eps=norm.eps)
    hidden, codes, scale = gated_residual_norm_quant(
        *arguments, eps=norm.eps, **reader.input_change
    )
    return hidden, (codes, scale)


def _attention(
    block: Block,
    rows: Rows,
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    lengths: Sequence[int],
    backends: Attention,
) -> torch.Tensor:
    """Mix the rows of each sample: (R, H)."""
    own = block.layer.attention
    qkv = block.qkv(rows, hidden.dtype)  # (R, 3 H)
    q_norm, k_norm = own.norm_q, own.norm_k
    qk_norm_rope_(qkv, q_norm.weight, k_norm.weight, cos, sin, heads=own.num_heads, eps=q_norm.eps)
    qkv = qkv.unflatten(1, (3, own.num_heads, own.head_dim))
    if len(set(lengths)) == 1:
        samples = [qkv.unflatten(0, (len(lengths), -1))]
    else:
        samples = [sample[None] for sample in qkv.split(list(lengths))]
    mixed = [
        attend(*sample.unbind(2), backends[tuple(sample.shape[:2])]).flatten(0, 1)
        for sample in samples
    ]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _feed_forward(block: Block, rows: Rows, dtype: torch.dtype) -> torch.Tensor:
    """Compute w2(silu(w1 x) * w3 x)."""
    up, down = block.up, block.down
    if up.takes_codes:
        codes, scale = rows
        z = int8_gemm_swiglu(codes, scale, up.linear.wq, up.linear.ws, out_dtype=dtype)
        return down.from_values(z)
    both = up(rows, dtype)
    if down.takes_codes:
        return down(swiglu_quant(both, **down.input_change), dtype)
    return down(swiglu(both), dtype)
