"""The three ways of drawing an image that are compared, on one pair of branches.

- stock: diffusers' Ideogram4Pipeline as it is. Text padded to 2048 slots, boolean mask.
- compiled: the same pipeline without what a user can take away by hand: as many slots as there are
  tokens, no mask, every block through torch.compile, the attention kernel that measures fastest.
- dit8: models.engine.sampling.Engine.

All three run the code that draws real pictures, `models.generate.denoise`. Replaced are the text
encoder, whose features are random and ready on the device, and the VAE, which is left out; their
time is in no number here. Steps are marked by the scheduler, which every loop calls once a step.
"""

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Ideogram4Pipeline
from torch import nn
from torch.nn.attention import sdpa_kernel

from dit8.models.engine.attention import BACKENDS, choose_attention
from dit8.models.engine.sampling import Clock, Engine
from dit8.models.generate import denoise
from dit8.models.types import PATCH_PX, Prompt, Sampler
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.errors import UserError
from dit8.scripts.random_variants import VARIANTS, Branches

STOCK_SLOTS = 2048  # the pipeline's default max_sequence_length
# name on the command line -> (variant, engine) of the table
PATHS = {"stock": ("bf16", "stock"), "compiled": ("bf16", "compiled")} | {
    variant: (variant, "dit8") for variant in VARIANTS
}


def sampler_at(size_px: int, steps: int, slots: int) -> Sampler:
    """Return the preset QUALITY, which has 48 steps, at any number of them."""
    return Sampler("quality_48", steps, 7.0, 3.0, 3, 0.0, 1.5, size_px, slots)


@dataclass(frozen=True)
class Drawing:
    """One image's times.

    Args:
        seconds: of the whole image, from text features to final latents on the CPU.
        step_ms: of every step but the first.
    """

    seconds: float
    step_ms: tuple[float, ...]


@dataclass
class Path:
    """A way of drawing, ready to be timed.

    Args:
        variant, engine: what the rows call it.
        pipeline: of the branches; its scheduler calls `after_step`.
        slots: text rows; more than tokens means padding.
        runner: dit8's engine; None: the pipeline's own forward.
        attention: entered around an image of that size.
    """

    variant: str
    engine: str
    pipeline: Ideogram4Pipeline
    slots: int
    runner: Engine | None = None
    attention: Callable[[int], AbstractContextManager] = field(
        default=lambda size_px: nullcontext()
    )

    @property
    def modules(self) -> list[nn.Module]:
        return [getattr(self.pipeline, attribute) for attribute in BRANCHES.values()]

    def draw(
        self,
        seed: int,
        size_px: int,
        steps: int,
        clock: Clock,
        after_step: Callable[[int], None] = lambda index: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> Drawing:
        """Draw one image.

        Args:
            seed: of the noise.
            size_px: of a side.
            steps: denoising steps; the last 3 have the lower guidance.
            clock: new; gets a tick after every step.
            after_step: called with the index of each step that was queued.
            now: the host's clock, in seconds.

        Raises:
            UserError: the latents are not finite: such a time is worth nothing.
        """
        sampler = sampler_at(size_px, steps, self.slots)
        marks = iter(range(steps))

        def mark() -> None:
            clock.tick()
            after_step(next(marks))

        self.pipeline.scheduler.mark = mark
        prompt = Prompt(f"random-{seed}", "{}", (), seed)
        with self.attention(size_px):
            start = now()  # nothing is queued: the last image's latents are on the CPU
            _, latents = denoise(self.pipeline, [prompt], sampler, decode=False, engine=self.runner)
            seconds = now() - start
        if not bool(torch.isfinite(latents).all()):
            raise UserError(
                f"{self.variant} through {self.engine} must give finite latents at "
                f"{size_px} px, got NaN or infinity; nothing of this round was kept"
            )
        return Drawing(seconds, tuple(clock.milliseconds()))

    def release(self) -> None:
        """Free what the last images left: graphs, tables, compiled buffers."""
        if self.runner is not None:
            for branch in self.runner.branches.values():
                branch.release()


def open_path(name: str, branches: Branches, text: torch.Tensor) -> Path:
    """Prepare a path.

    Args:
        name: of PATHS.
        branches: of its variant.
        text: (n, llm_features_dim) features of the caption, on the device.
    """
    variant, engine = PATHS[name]
    tokens, device = len(text), text.device
    if engine == "compiled":
        branches = {branch: compile_blocks(module) for branch, module in branches.items()}
    pipeline = open_pipeline(branches, text)
    if engine == "stock":
        return Path(variant, engine, pipeline, max(STOCK_SLOTS, tokens))
    if engine == "dit8":
        return Path(variant, engine, pipeline, tokens, Engine(pipeline, device))
    config, dtype = pipeline.transformer.config, pipeline.transformer.dtype
    heads, head_dim = config.num_attention_heads, config.attention_head_dim

    def fastest(size_px: int) -> AbstractContextManager:
        rows = (size_px // PATCH_PX) ** 2 + tokens
        backend = choose_attention(1, rows, heads, head_dim, dtype, device)
        return nullcontext() if backend is None else sdpa_kernel(BACKENDS[backend])

    return Path(variant, engine, pipeline, tokens, attention=fastest)


class MarkingScheduler(FlowMatchEulerDiscreteScheduler):
    """The pipeline's scheduler; calls `mark` after every step."""

    mark: Callable[[], None] = staticmethod(lambda: None)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the Euler step."""
        result = super().step(*args, **kwargs)
        self.mark()
        return result


class Tokens:
    """Stands for a tokenizer: every caption has the same number of tokens."""

    def __init__(self, count: int) -> None:
        self.count = count

    def apply_chat_template(self, messages: list, **_: Any) -> str:
        """Return anything: the text is not looked at."""
        return ""

    def __call__(self, text: str, return_tensors: str | None = None, **_: Any) -> Mapping[str, Any]:
        """Return ids 0, 1, ...; a batch of one tensor if tensors are asked for."""
        ids = torch.arange(self.count)
        return {"input_ids": ids.tolist() if return_tensors is None else ids[None]}


def open_pipeline(branches: Branches, text: torch.Tensor) -> Ideogram4Pipeline:
    """Make a pipeline whose text encoder always answers `text`, in the encoder's own form."""
    pipeline = Ideogram4Pipeline(
        scheduler=MarkingScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=Tokens(len(text)),
        **{attribute: branches[branch] for branch, attribute in BRANCHES.items()},
    )
    pipeline.set_progress_bar_config(disable=True)

    def encode_prompt(
        prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: torch.device
    ) -> tuple[torch.Tensor, ...]:
        """Pad as the pipeline does: slots before the text, image rows behind it, in fp32."""
        padding = (0, 0, max_sequence_length - len(text), grid_h * grid_w)
        layout = pipeline._prepare_ids([len(text)], grid_h, grid_w, max_sequence_length, device)
        return nn.functional.pad(text.float(), padding)[None], *layout

    pipeline.encode_prompt = encode_prompt
    return pipeline


def compile_blocks(module: nn.Module) -> nn.Module:
    """Compile every block and drop the mask; the module itself and its blocks stay as they are."""
    outer = copy.copy(module)
    outer._modules = dict(module._modules)
    outer.layers = nn.ModuleList(Unmasked(layer) for layer in module.layers)
    return outer


class Unmasked(nn.Module):
    """A compiled block that sees no mask: one of a single segment is all true."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.compiled = torch.compile(block, fullgraph=True, dynamic=False)

    def forward(self, hidden: torch.Tensor, _: torch.Tensor, *rest: Any) -> torch.Tensor:
        """Run the block without its mask."""
        return self.compiled(hidden, None, *rest)
