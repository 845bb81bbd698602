"""What crosses the stages of generation: a prompt, how it is drawn, its noise, and the picture."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit8.conf.schema import ModelConfig, SamplerConfig
from dit8.quant.errors import UserError

if TYPE_CHECKING:
    import torch

PATCH_PX = 16  # VAE 8x and 2 x 2 patches
SampleKey = tuple[str, int]  # (prompt id, seed): what two variants of a picture have in common


@dataclass(frozen=True)
class Prompt:
    """Hold one caption to draw and the texts a reader should find in the picture.

    Args:
        id: unique in its prompt set.
        caption: minified JSON object, non-ASCII characters literal.
        texts: texts expected in the picture; empty when reading is not judged.
        seed: seeds the noise together with `id`.
        idea: the short idea that the caption was expanded from; "" where there is none.
        category: kind of content, such as "signage"; "" where a set has no categories.
    """

    id: str
    caption: str
    texts: tuple[str, ...]
    seed: int
    idea: str = ""
    category: str = ""


@dataclass(frozen=True)
class Sample:
    """Hold one generated picture: which prompt it came from and where it lies.

    Args:
        prompt: whose id and seed are the pairing key; noise is a function of these two alone.
        image_path: lossless RGB image.
        latents_path: safetensors file with a tensor "latents", or None when not kept.
        seconds: wall-clock time this picture took, its share of the batch.
    """

    prompt: Prompt
    image_path: Path
    latents_path: Path | None
    seconds: float

    @property
    def key(self) -> SampleKey:
        """Return (prompt id, seed)."""
        return (self.prompt.id, self.prompt.seed)

    @property
    def texts(self) -> tuple[str, ...]:
        return self.prompt.texts

    @property
    def caption(self) -> str:
        return self.prompt.caption


@dataclass(frozen=True)
class Sampler:
    """Everything that decides how noise becomes a picture, the weights aside."""

    name: str
    steps: int
    guidance: float
    final_guidance: float  # of the last `final_steps` steps
    final_steps: int
    mu: float
    std: float
    size_px: int
    max_sequence_length: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if self.size_px < PATCH_PX or self.size_px % PATCH_PX:
            raise UserError(
                f"size must be a multiple of {PATCH_PX} pixels, got {self.size_px}; "
                f"use {max(PATCH_PX, round(self.size_px / PATCH_PX) * PATCH_PX)}"
            )

    @property
    def guidance_schedule(self) -> list[float]:
        last = min(self.final_steps, self.steps)
        return [self.guidance] * (self.steps - last) + [self.final_guidance] * last


def noise_for(prompt_id: str, seed: int, tokens: int, channels: int) -> "torch.Tensor":
    """Draw the initial latents of one picture on the CPU: (tokens, channels) fp32."""
    import torch

    digest = hashlib.sha256(f"{prompt_id}/{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(tokens, channels, generator=generator)


def stack_noise(prompts: Sequence[Prompt], tokens: int, channels: int) -> "torch.Tensor":
    """Draw the initial latents of a batch: (B, tokens, channels) fp32 on the CPU."""
    import torch

    return torch.stack([noise_for(p.id, p.seed, tokens, channels) for p in prompts])


def make_sampler(
    preset: SamplerConfig,
    model: ModelConfig,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
) -> Sampler:
    """Join a preset, a model's own settings and what the command line overrides."""
    return Sampler(
        name=preset.name,
        steps=preset.steps if steps is None else steps,
        guidance=model.guidance if guidance is None else guidance,
        final_guidance=model.final_guidance if guidance is None else guidance,
        final_steps=preset.final_steps,
        mu=preset.mu,
        std=preset.std,
        size_px=model.size if size is None else size,
        max_sequence_length=model.max_sequence_length,
    )
