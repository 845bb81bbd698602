"""Captions to pictures, resumable and the same for every variant and engine.

The noise of a picture depends on its prompt id and seed alone and is drawn on the CPU, so all
variants, batch sizes and devices start from the same bits. Prompts are cut into fixed batches; a
batch is the unit that a restart repeats, so a stopped run ends with the pictures of an unbroken
one. A picture's PNG is written last, after its latents: where the PNG stands, all is done.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from safetensors.torch import save_file

from dit8.models.memory import enough_memory
from dit8.models.pipeline import encode_chat
from dit8.models.threads import THREADS
from dit8.models.types import PATCH_PX, Prompt, Sample, Sampler, stack_noise
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

if TYPE_CHECKING:
    from dit8.models.engine.sampling import Engine

METADATA_KEY = "dit8"


@dataclass(frozen=True)
class Timing:
    """Durations of freshly made pictures: whole ones (batch share) and single steps."""

    image_ms: tuple[float, ...]
    step_ms: tuple[float, ...]


def check_length(tokenizer: Any, prompts: Sequence[Prompt], limit: int) -> None:
    """Refuse captions with more tokens than the sampler takes.

    Raises:
        UserError: names the first such prompt, its tokens and the limit.
    """
    for prompt in prompts:
        tokens = len(encode_chat(tokenizer, prompt.caption))
        if tokens > limit:
            raise UserError(
                f"caption of prompt {prompt.id} has {tokens} tokens, expected at most {limit}; "
                "shorten it or raise model.max_sequence_length"
            )


def denoise(
    pipeline,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    step_ms: list[float] | None = None,
    *,
    decode: bool = True,
    engine: "Engine | None" = None,
    after_step: Callable[[], object] = lambda: None,
) -> tuple[list[Image.Image], torch.Tensor]:
    """Draw one batch: PIL pictures and the final latents (B, tokens, C) fp32 on the CPU.

    Args:
        pipeline: an Ideogram4Pipeline.
        prompts: of the batch.
        sampler: see `Sampler`.
        step_ms: gets the duration of every step but the first.
        decode: without it the VAE stays out of it and the list of pictures is empty.
        engine: made on this pipeline; None: its own forward.
        after_step: called after every step; an engine on a GPU has then only queued it.

    Raises:
        UserError: out of GPU memory.
        ValueError: an engine that was made on another pipeline.
    """
    if engine is not None:
        if engine.pipeline is not pipeline:
            raise ValueError("denoise: engine must have been made on this pipeline")
        return engine.denoise(prompts, sampler, step_ms, decode=decode, after_step=after_step)
    grid = sampler.size_px // PATCH_PX
    channels = pipeline.transformer.config.in_channels
    noise = stack_noise(prompts, grid * grid, channels)
    last: dict[str, Any] = {"time": time.perf_counter()}

    def on_step_end(_, index: int, __, values: dict) -> dict:
        now = time.perf_counter()
        if step_ms is not None and index > 0:  # the first step's time includes the text encoder
            step_ms.append(1e3 * (now - last["time"]))
        last["time"], last["latents"] = now, values["latents"]
        THREADS.share(values["latents"].device)
        after_step()
        return values

    with enough_memory(
        f"drawing {len(prompts)} images of {sampler.size_px} px",
        "lower size or batch, or use hardware=cuda_24gb",
    ):
        images = pipeline(
            prompt=[prompt.caption for prompt in prompts],
            height=sampler.size_px,
            width=sampler.size_px,
            num_inference_steps=sampler.steps,
            guidance_schedule=sampler.guidance_schedule,
            mu=sampler.mu,
            std=sampler.std,
            max_sequence_length=sampler.max_sequence_length,
            latents=noise,
            callback_on_step_end=on_step_end,
            output_type="pil" if decode else "latent",
        ).images
    return images if decode else [], last["latents"].float().cpu()


def generate(
    pipeline,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    folder: Path,
    *,
    batch: int,
    metadata: dict[str, Any],
    progress: Callable[[int], None] = lambda count: None,
    engine: "Engine | None" = None,
    spared: Callable[[], float] = lambda: 0.0,
) -> tuple[list[Sample], Timing]:
    """Draw what is not yet in `folder`.

    Args:
        pipeline: an Ideogram4Pipeline.
        prompts: with unique ids.
        sampler: see `Sampler`.
        folder: gets `<id>_<seed>.png` and `<id>_<seed>.safetensors` (tensor "latents").
        batch: pictures drawn at once.
        metadata: goes into every PNG with the caption, seed and time.
        progress: called with the number of pictures that have just become available.
        engine: as for `denoise`.
        spared: returns the seconds that a batch would have taken longer had nothing of it been
            known from before (see models/text_cache.py); they count as if they had been spent, so
            that the times of variants compare.

    Returns:
        one sample a prompt, in order, and the durations of the pictures made by this call.

    Raises:
        UserError: a caption too long, or a folder that cannot be written.
    """
    if batch < 1:
        raise UserError(f"batch must be at least 1, got {batch}")
    check_length(pipeline.tokenizer, prompts, sampler.max_sequence_length)
    samples: list[Sample] = []
    image_ms: list[float] = []
    step_ms: list[float] = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        found = [find_sample(prompt, folder) for prompt in chunk]
        if None in found:
            begin = time.perf_counter()
            images, latents = denoise(pipeline, chunk, sampler, step_ms, engine=engine)
            seconds = (time.perf_counter() - begin + spared()) / len(chunk)
            image_ms += [1e3 * seconds] * len(chunk)
            about = metadata | {"sampler": asdict(sampler), "seconds": seconds}
            found = [
                save_sample(prompt, image, latent, folder, about)
                for prompt, image, latent in zip(chunk, images, latents, strict=True)
            ]
        samples += found
        progress(len(chunk))
    return samples, Timing(tuple(image_ms), tuple(step_ms))


def sample_paths(prompt: Prompt, folder: Path) -> tuple[Path, Path]:
    """Name a picture and its latents."""
    stem = f"{prompt.id}_{prompt.seed}"
    return folder / f"{stem}.png", folder / f"{stem}.safetensors"


def save_sample(
    prompt: Prompt, image: Image.Image, latents: torch.Tensor, folder: Path, about: dict[str, Any]
) -> Sample:
    """Write latents, then the PNG with its metadata, each atomically."""
    image_path, latents_path = sample_paths(prompt, folder)
    write_atomically(latents_path, lambda path: save_file({"latents": latents.contiguous()}, path))
    info = PngImagePlugin.PngInfo()
    record = about | {"prompt_id": prompt.id, "seed": prompt.seed, "caption": prompt.caption}
    info.add_itxt(METADATA_KEY, json.dumps(record, sort_keys=True, ensure_ascii=False))
    write_atomically(image_path, lambda path: image.save(path, format="PNG", pnginfo=info))
    return Sample(prompt, image_path, latents_path, float(about["seconds"]))


def find_sample(prompt: Prompt, folder: Path, *, whole: bool = True) -> Sample | None:
    """Return the sample of a prompt if its picture is there, None if not.

    Args:
        prompt: what the picture shows.
        folder: of the run.
        whole: decode the picture to see that it is complete; otherwise only its metadata, which
            stand in front, are read.

    Raises:
        UserError: the picture is there but is not one of ours, or is damaged.
    """
    image_path, latents_path = sample_paths(prompt, folder)
    if not image_path.exists():
        return None
    try:
        with Image.open(image_path) as image:
            if whole:
                image.load()
            record = json.loads(image.info[METADATA_KEY])
    except (OSError, UnidentifiedImageError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{image_path} must be a picture written by dit8, got {type(error).__name__}: {error}; "
            "delete it and start again"
        ) from error
    latents = latents_path if latents_path.exists() else None
    return Sample(prompt, image_path, latents, float(record["seconds"]))
