"""Both branches of Ideogram 4 with random weights, and random inputs for them: no files needed.

What a full-size architecture does to rounding errors can be measured without its weights: depth,
widths, norms and gates are the real ones, diffusers' default initialisation is not. So a number
from here is of a random model and says nothing about the trained one's outliers.
"""

import math
from dataclasses import dataclass

import torch
from diffusers import Ideogram4Transformer2DModel
from torch import nn

from dit8.quant.architectures.ideogram4 import BRANCHES

TEXT, IMAGE = 3, 2  # indicators of the packed sequence
IMAGE_POSITIONS = 65536  # where image positions start
SMALL = {  # other widths than the default, which is the real model's
    "in_channels": 16,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "adaln_dim": 64,
    "llm_features_dim": 208,
    "rope_theta": 100,
    "mrope_section": (12, 10, 10),
}


@dataclass(frozen=True)
class RandomPrompt:
    """Stands for a caption: text features and noise depend on its seed alone."""

    id: str
    seed: int


def build_random(
    layers: int, *, full: bool, dtype: torch.dtype, device: torch.device, seed: int
) -> dict[str, nn.Module]:
    """Build both branches directly on the device, in their dtype: 18.6 GB each in bf16 if full.

    Args:
        layers: blocks a branch, 34 in the real model.
        full: the real widths; otherwise those of a toy.
        dtype: of the weights.
        device: where they are made.
        seed: of the initialisation; the same on one kind of device gives the same weights.
    """
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    try:
        torch.set_default_dtype(dtype)  # a cast afterwards would hold two copies
        with torch.device(device):
            return {
                branch: Ideogram4Transformer2DModel(num_layers=layers, **({} if full else SMALL))
                .eval()
                .requires_grad_(False)
                for branch in BRANCHES
            }
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def run_random(
    branches: dict[str, nn.Module],
    prompt: RandomPrompt,
    *,
    steps: int,
    image_tokens: int,
    text_tokens: int,
) -> None:
    """Run `steps` forwards of both branches on unit noise: text and image rows, image rows only.

    Every step has noise of its own: a random model's velocity leads nowhere worth following.
    """
    generator = torch.Generator().manual_seed(prompt.seed)
    for branch, module in branches.items():
        text = text_tokens if branch == "conditional" else 0
        device, dtype, config = module.device, module.dtype, module.config

        def draw(rows: int, width: int, before: int, after: int, to=(device, dtype)):
            values = torch.randn(1, rows, width, generator=generator)
            return nn.functional.pad(values, (0, 0, before, after)).to(*to)

        layout = {k: v.to(device) for k, v in _layout(text, image_tokens).items()}
        features = draw(text, config.llm_features_dim, 0, image_tokens)
        for step in range(steps):
            module(
                hidden_states=draw(image_tokens, config.in_channels, text, 0),
                timestep=torch.full((1,), (step + 0.5) / steps, device=device, dtype=dtype),
                encoder_hidden_states=features,
                return_dict=False,
                **layout,
            )


def _layout(text: int, image: int) -> dict[str, torch.Tensor]:
    """Lay out [text][image] as the pipeline does, without padding; the image is nearly square."""
    rows, width = torch.arange(image), math.isqrt(image)
    grid = torch.stack([torch.zeros_like(rows), rows // width, rows % width], dim=1)
    words = torch.arange(text)[:, None].expand(text, 3)
    indicator = torch.tensor([TEXT] * text + [IMAGE] * image)
    return {
        "position_ids": torch.cat([words, grid + IMAGE_POSITIONS])[None],
        "segment_ids": torch.ones(1, text + image, dtype=torch.long),
        "indicator": indicator[None],
    }
