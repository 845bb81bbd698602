"""Expand ideas with the prompt enhancer that diffusers ships for Ideogram 4.

The text encoder of the model, Qwen3-VL without a head, becomes generative again when a language
model head is put on top; the head is a download of its own. Only these two and the tokenizer are
loaded, none of the 9.3 B parameters of the branches. With `outlines` installed decoding is
constrained to the schema, otherwise it is not; every answer is checked either way, and one that
fails is drawn again with the next seed.
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit8.eval.expand import review
from dit8.models.torchvision_shim import import_torchvision
from dit8.quant.errors import UserError
from dit8.quant.files import content_key, files_sha256

TRIES = 3
HEAD_REPOSITORY = "diffusers/qwen3-vl-8b-instruct-lm-head"  # as an error of diffusers names it


@dataclass(frozen=True)
class EnhancerExpander:
    """Draw captions from the model's own text encoder.

    Args:
        model: diffusers folder with text_encoder and tokenizer.
        head: folder of an `Ideogram4PromptEnhancerHead`.
        device: auto, cpu or cuda.
        dtype: it computes in, such as "bfloat16".
        seed: of the first try; captions are drawn at temperature 1.
        size_px: side of the square picture that the caption is for.
        max_new_tokens: after which an unfinished caption is cut off.
    """

    model: Path
    head: Path
    device: str = "auto"
    dtype: str = "bfloat16"
    seed: int = 0
    size_px: int = 1024
    max_new_tokens: int = 1024
    name: str = "enhancer"

    def obstacle(self) -> str | None:
        for folder, remedy in (
            (self.model / "text_encoder", "scripts/download.py fetches the model"),
            (self.head, f"put the files of {HEAD_REPOSITORY} there"),
        ):
            if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
                return f"not available: {folder} holds no config.json with weights; {remedy}"
        return None

    def remarks(self, idea: str) -> tuple[str, ...]:
        return ()

    def identity(self) -> dict[str, Any]:
        """Hash the weights, once a process: half a minute for the real text encoder."""
        return {
            "weights": _weights_key(self.model, self.head),
            "dtype": self.dtype,
            "seed": self.seed,
            "size_px": self.size_px,
            "max_new_tokens": self.max_new_tokens,
            "constrained": _has_outlines(),
        }

    def expand(self, idea: str) -> str:
        """Return a canonical caption.

        Raises:
            UserError: weights that do not fit each other, or no try gives a valid caption.
        """
        model, tokenizer, constraint = _load(self.model, self.head, self.device, self.dtype)
        from diffusers.pipelines.ideogram4.prompt_enhancer import generate_captions

        problems: list[str] = []
        for attempt in range(TRIES):
            (answer,) = generate_captions(
                model,
                tokenizer,
                constraint,
                idea,
                self.size_px,
                self.size_px,
                max_new_tokens=self.max_new_tokens,
                generator=torch.Generator().manual_seed(self.seed + attempt),
                device=model.device,
            )
            caption, problems = review(answer, idea)
            if caption is not None:
                return caption
        remedy = "try another seed" if constraint else "`pip install outlines` constrains it"
        raise UserError(
            f"the prompt enhancer gave no valid caption in {TRIES} tries for the idea {idea!r}, the"
            f" last one: {problems[0]}; {remedy}"
        )


@functools.lru_cache(maxsize=1)  # one text encoder fills a GPU
def _load(model: Path, head: Path, device: str, dtype: str) -> tuple[Any, Any, Any]:
    """Load encoder, head and tokenizer; returns the generative model, tokenizer, constraint."""
    if importlib.util.find_spec("torchvision") is not None:  # else transformers does without
        import_torchvision()
    from diffusers import Ideogram4PromptEnhancerHead
    from diffusers.pipelines.ideogram4.prompt_enhancer import (
        build_caption_logits_processor,
        build_prompt_enhancer,
    )
    from transformers import AutoTokenizer, Qwen3VLModel

    from dit8.models.pipeline import resolve_device, torch_dtype

    encoder = Qwen3VLModel.from_pretrained(
        model / "text_encoder", dtype=torch_dtype(dtype), local_files_only=True
    )
    top = Ideogram4PromptEnhancerHead.from_pretrained(
        head, torch_dtype=torch_dtype(dtype), local_files_only=True
    )
    text = encoder.config.text_config
    expected, got = (text.vocab_size, text.hidden_size), tuple(top.lm_head.weight.shape)
    if got != expected:
        raise UserError(
            f"the head in {head} must have weights of shape {expected} for the text encoder in "
            f"{model}, got {got}; take the head of the same Qwen3-VL"
        )
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    enhancer = build_prompt_enhancer(encoder, top).to(resolve_device(device))
    constraint = build_caption_logits_processor(enhancer, tokenizer) if _has_outlines() else None
    return enhancer, tokenizer, constraint


def _has_outlines() -> bool:
    return importlib.util.find_spec("outlines") is not None


@functools.cache
def _weights_key(model: Path, head: Path) -> str:
    hashes = []
    for folder in (model / "text_encoder", head):
        files = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")]
        hashes.append(files_sha256(sorted(files), root=folder))
    return content_key(hashes)
