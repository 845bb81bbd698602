"""Captions to pictures through the engine: the same numbers as the stock pipeline, less work.

    latents <- latents + (sigma' - sigma) * -(g v_cond + (1 - g) v_uncond)

Schedule, Euler step, noise and guidance are the stock pipeline's (fp32); each caption is encoded at
its own length instead of padded to a common one, so all of its rows are text.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from dit8.kernels.backend import backend_name
from dit8.models.engine.forward import EngineBranch
from dit8.models.memory import enough_memory, release_memory
from dit8.models.offload import BranchGuest, Guest
from dit8.models.pipeline import encode_chat
from dit8.models.threads import THREADS
from dit8.models.types import PATCH_PX, Prompt, Sampler, stack_noise
from dit8.quant.architectures.ideogram4 import BRANCHES, branch_modules
from dit8.quant.errors import UserError

ENGINES = ("stock", "dit8")


class Engine:
    """Draw pictures with two `EngineBranch`es.

    Args:
        pipeline: an Ideogram4Pipeline of any variant: on `device`, or in main memory if staged.
        device: where to draw.
        staged: let text encoder, branches and VAE visit the device; see models/offload.py.
        graphs: as for `EngineBranch`.
        attention: as for `EngineBranch`.

    Raises:
        UserError: as `EngineBranch`.
    """

    def __init__(
        self,
        pipeline: Any,
        device: torch.device,
        *,
        staged: bool = False,
        graphs: bool | None = None,
        attention: str | None = None,
    ) -> None:
        backend_name(device)  # the branches, which ask too, may still be in main memory
        self.pipeline, self.device = pipeline, device
        self.branches = {
            name: EngineBranch(module, graphs=graphs, attention=attention)
            for name, module in branch_modules(pipeline).items()
        }
        self._staged = staged
        if staged:
            self._encoder = Guest("the text encoder", pipeline.text_encoder.modules())
            self._vae = Guest("the VAE", pipeline.vae.modules())
            self._guests = {name: BranchGuest(name, b) for name, b in self.branches.items()}

    @torch.no_grad()
    def denoise(
        self,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        step_ms: list[float] | None = None,
        *,
        decode: bool = True,
        after_step: Callable[[], object] = lambda: None,
    ) -> tuple[list[Image.Image], torch.Tensor]:
        """Draw one batch; arguments and result as those of `models.generate.denoise`."""
        if self._staged:
            self._send_home()  # an interrupted call may have left them here
        texts = self._encode(prompts)
        side = sampler.size_px // PATCH_PX
        scheduler = self.pipeline.scheduler
        timesteps = set_schedule(scheduler, sampler, self.device)
        times = 1.0 - timesteps.float() / scheduler.config.num_train_timesteps
        self._prepare(times, texts, side)
        with_text, without = (self.branches[name].velocity for name in BRANCHES)
        weights = torch.tensor(sampler.guidance_schedule, device=self.device)
        channels = self.pipeline.transformer.config.in_channels
        latents = stack_noise(prompts, side * side, channels).to(self.device)
        clock = Clock(self.device)
        for step, timestep in enumerate(timesteps):
            weight = weights[step]
            v = weight * with_text(latents, step) + (1.0 - weight) * without(latents, step)
            latents = scheduler.step(-v, timestep, latents, return_dict=False)[0]
            clock.tick()
            THREADS.share(self.device)
            after_step()
        if step_ms is not None:
            step_ms += clock.milliseconds()  # of all but the first, which captures the graphs
        images = self._decode(latents, side) if decode else []
        if self._staged:
            self._send_home()
        return images, latents.float().cpu()

    def _encode(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """Compute (n, llm_features_dim) fp32 of each caption's n tokens."""
        pipeline = self.pipeline
        if self._staged:
            self._encoder.enter(self.device)
        texts = []
        with enough_memory("encoding the captions", "lower batch, or use hardware=cuda_24gb"):
            for prompt in prompts:
                tokens = len(encode_chat(pipeline.tokenizer, prompt.caption))
                features, *_ = pipeline.encode_prompt(prompt.caption, 0, 0, tokens, self.device)
                texts.append(features[0])
        if self._staged:
            self._encoder.leave()
            release_memory(self.device)
        return texts

    def _prepare(self, times: torch.Tensor, texts: list[torch.Tensor], side: int) -> None:
        for name, branch in self.branches.items():
            has_text = name == "conditional"
            if self._staged:
                self._guests[name].enter(self.device, with_text=has_text)
            branch.tabulate(times)
            branch.prepare(texts if has_text else None, (side, side), len(texts))
            if self._staged:
                self._guests[name].shrink()

    def _decode(self, latents: torch.Tensor, side: int) -> list[Image.Image]:
        """Undo the latents' normalization and patches, and decode them."""
        if self._staged:
            for guest in self._guests.values():  # the next caption's text encoder needs the room
                guest.leave()
            release_memory(self.device)
            self._vae.enter(self.device)
        vae, patch = self.pipeline.vae, self.pipeline.patch_size
        deviation = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps).to(latents)
        z = latents * deviation + vae.bn.running_mean.to(latents)
        z = z.unflatten(1, (side, side)).unflatten(3, (patch, patch, -1))
        z = z.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, C, side p, side p)
        with enough_memory(f"decoding {len(z)} images", "lower size or batch"):
            decoded = vae.decode(z.to(vae.dtype), return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(decoded.float(), output_type="pil")

    def _send_home(self) -> None:
        for guest in (*self._guests.values(), self._encoder, self._vae):
            guest.leave()
        release_memory(self.device)


def set_schedule(scheduler: Any, sampler: Sampler, device: torch.device) -> torch.Tensor:
    """Set the pipeline's own timesteps for a sampler, and return them.

    The first step is looked up here: `scheduler.step` would do it by waiting for the GPU.
    """
    from diffusers.pipelines.ideogram4.pipeline_ideogram4 import (
        _logit_normal_sigmas,
        _resolution_aware_mu,
    )

    mu = _resolution_aware_mu(sampler.size_px, sampler.size_px, sampler.mu)
    sigmas = _logit_normal_sigmas(sampler.steps, mu, std=sampler.std, device=device)
    scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)
    scheduler.set_begin_index(scheduler.index_for_timestep(scheduler.timesteps[0]))
    return scheduler.timesteps


class Clock:
    """Time steps without waiting for them: events of the GPU, or the clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._ticks: list[Any] = []

    def tick(self) -> None:
        """Mark the end of a step."""
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ticks.append(event)
        else:
            self._ticks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Return the time between each two ticks; waits for the last."""
        if self._is_cuda and self._ticks:
            self._ticks[-1].synchronize()
        pairs = zip(self._ticks, self._ticks[1:], strict=False)
        if self._is_cuda:
            return [start.elapsed_time(end) for start, end in pairs]
        return [1e3 * (end - start) for start, end in pairs]


def check_engine(name: str, *, staged: bool = False) -> None:
    """Refuse an engine that does not exist, or that cannot draw staged.

    Raises:
        UserError: not one of ENGINES, or stock where not everything fits on the device.
    """
    if name not in ENGINES:
        raise UserError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if staged and name == "stock":
        raise UserError(
            "engine must be dit8 where the hardware is staged, got 'stock', which keeps text "
            "encoder, branches and VAE on the device at once; add engine=dit8 or use hardware=cuda"
        )


def open_engine(
    name: str, pipeline: Any, device: torch.device, *, staged: bool = False
) -> Engine | None:
    """Make the engine of that name; None is the stock pipeline's own forward.

    Args:
        name: of ENGINES.
        pipeline: as for `Engine`.
        device: where to draw.
        staged: see `Engine`; of dit8 alone.

    Raises:
        UserError: as `check_engine` and `Engine`.
    """
    check_engine(name, staged=staged)
    return Engine(pipeline, device, staged=staged) if name == "dit8" else None
