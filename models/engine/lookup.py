"""What a branch computes from its timesteps and its positions alone: tables, made before the loop.

adaLN: 1 + scale and tanh(gate) of every block depend on the step and on nothing else, so the 34
products of a step become one row of a table. Stock adaLN weights (0.64 GB a branch in bf16) are
read once an image instead of once a step, and can leave a small card afterwards.

Rotary angles depend on the positions alone. Both halves of diffusers' tables are equal, so half of
each is kept; in fp32, where stock bf16 rounds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Modulation:
    """adaLN of all steps.

    Args:
        blocks: (steps, layers, 4, H) fp32: scale and gate of the attention, scale and gate of the
            feed-forward; 1 + s and tanh(g) already.
        final: (steps, H) fp32, 1 + s of the output layer.
    """

    blocks: torch.Tensor
    final: torch.Tensor

    def replace(self, other: "Modulation") -> bool:
        """Take over another's values in place, so that captured graphs see them; False: no fit."""
        if self.blocks.shape != other.blocks.shape or self.blocks.device != other.blocks.device:
            return False
        self.blocks.copy_(other.blocks)
        self.final.copy_(other.final)
        return True


def tabulate_modulation(module: nn.Module, timesteps: torch.Tensor) -> Modulation:
    """Run the stock time embedding and adaLN linears once over a batch of timesteps.

    Args:
        module: an Ideogram4Transformer2DModel with any linears.
        timesteps: (S,) model time in [0, 1]. Cast to the model's dtype first, as the pipeline
            does: the embedding multiplies it by 1e4, so this is part of the model.

    The sum 1 + s and the tanh are fp32: in bf16 the sum alone would lose up to 0.4 %.
    """
    t = timesteps.to(module.embed_image_indicator.weight.device, module.dtype)
    conditioning = F.silu(module.adaln_proj(module.t_embedding(t)))  # (S, adaln_dim)
    blocks = []
    for layer in module.layers:
        parts = layer.adaln_modulation(conditioning).float().unflatten(-1, (4, -1))  # (S, 4, H)
        scale_attention, gate_attention, scale_mlp, gate_mlp = parts.unbind(1)
        row = (1 + scale_attention, gate_attention.tanh(), 1 + scale_mlp, gate_mlp.tanh())
        blocks.append(torch.stack(row, dim=1))
    final = 1 + module.final_layer.adaln_modulation(F.silu(conditioning)).float()
    return Modulation(torch.stack(blocks, dim=1), final)


def positions(text_lengths: Sequence[int], grid: tuple[int, int]) -> torch.Tensor:
    """List the (t, h, w) of every packed row: [text | image] of each sample in turn, (R, 3)."""
    # Here, since importing diffusers takes seconds and this file is read by every command.
    from diffusers.models.transformers.transformer_ideogram4 import IMAGE_POSITION_OFFSET

    rows, columns = grid
    place = (torch.arange(1), torch.arange(rows), torch.arange(columns))
    image = torch.cartesian_prod(*place) + IMAGE_POSITION_OFFSET
    parts = []
    for length in text_lengths:
        parts += [torch.arange(length)[:, None].expand(length, 3), image]
    return torch.cat(parts)


def rotary(module: nn.Module, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute cos and sin with the module's own frequencies.

    Args:
        module: an Ideogram4Transformer2DModel.
        place: (R, 3) from `positions`.

    Returns:
        both (R, head_dim / 2) fp32.
    """
    device = module.rotary_emb.inv_freq.device
    tables = module.rotary_emb(place[None].to(device))
    return tuple(table[0, :, : table.shape[-1] // 2].contiguous() for table in tables)
