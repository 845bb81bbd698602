"""Flow matching for one branch: the velocity network, its loss, and an Euler sampler.

    x_t = (1 - t) noise + t data,   v = data - noise,   t = 0 is noise, t = 1 is data
    loss = mean(w (v_theta(x_t, t, text) - v)^2)

(Lipman et al., arXiv:2210.02747, with the optimal-transport path.) `velocity` runs the
blocks of `Ideogram4Transformer2DModel` without the waste of its forward: no image rows through the
text projection, one rotary table for the whole batch, a key mask instead of a dense one. Its output
equals the stock forward's (tested).
"""

import torch
from diffusers import Ideogram4Pipeline, Ideogram4Transformer2DModel
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import (
    _logit_normal_sigmas,
    _resolution_aware_mu,
)

GRID = 16  # image tokens a side at 256 px
IMAGE_TOKENS = GRID * GRID


def rope_table(model: Ideogram4Transformer2DModel, text_tokens: int, device: torch.device):
    """Compute cos and sin, each (1, text_tokens + 256, head_dim), for [text][image] sequences."""
    positions, _, _ = Ideogram4Pipeline._prepare_ids([text_tokens], GRID, GRID, text_tokens, device)
    with torch.no_grad():
        return model.rotary_emb(positions)


def velocity(
    model: Ideogram4Transformer2DModel,
    latents: torch.Tensor,  # (B, 256, C)
    t: torch.Tensor,  # (B,) fp32 in [0, 1]
    rope: tuple[torch.Tensor, torch.Tensor],  # of rope_table with this many text tokens
    text: torch.Tensor | None = None,  # (B, T, F), right-padded
    text_mask: torch.Tensor | None = None,  # (B, T) bool, True on real tokens
) -> torch.Tensor:
    """Predict the velocity of the image tokens: (B, 256, C)."""
    tokens = latents.shape[1]
    indicator = model.embed_image_indicator.weight
    x = model.input_proj(latents) + indicator[1]
    mask = None
    if text is not None:
        x = torch.cat([model.llm_cond_proj(model.llm_cond_norm(text)) + indicator[0], x], dim=1)
        mask = torch.nn.functional.pad(text_mask, (0, tokens), value=True)[:, None, None, :]
    adaln = torch.nn.functional.silu(model.adaln_proj(model.t_embedding(t).unsqueeze(1)))
    for block in model.layers:
        x = block(x, mask, rope, adaln)
    return model.final_layer(x[:, -tokens:], adaln)


def flow_loss(
    model: Ideogram4Transformer2DModel,
    data: torch.Tensor,  # (B, 256, C)
    noise: torch.Tensor,  # (B, 256, C)
    t: torch.Tensor,  # (B,)
    weight: torch.Tensor,  # (B, 256)
    rope: tuple[torch.Tensor, torch.Tensor],
    text: torch.Tensor | None = None,
    text_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted flow-matching loss, a scalar."""
    mix = t[:, None, None]
    predicted = velocity(model, (1 - mix) * noise + mix * data, t, rope, text, text_mask)
    error = (predicted.float() - (data - noise).float()).square().mean(dim=-1)
    return (weight * error).sum() / weight.sum()


@torch.no_grad()
def sample(
    model: Ideogram4Transformer2DModel,
    noise: torch.Tensor,  # (B, 256, C) fp32
    text: torch.Tensor,
    text_mask: torch.Tensor,
    steps: int,
    mu: float = 0.0,
    std: float = 1.75,
) -> torch.Tensor:
    """Integrate from noise to latents by Euler steps on the pipeline's sigmas, unguided."""
    shifted = _resolution_aware_mu(GRID * 16, GRID * 16, mu)
    sigmas = [*_logit_normal_sigmas(steps, shifted, std=std).tolist(), 0.0]
    rope = rope_table(model, text.shape[1], noise.device)
    x = noise
    for now, after in zip(sigmas, sigmas[1:], strict=False):
        t = torch.full((len(x),), 1.0 - now, device=x.device)
        x = x + (now - after) * velocity(model, x, t, rope, text, text_mask).float()
    return x
