"""clip-mini: two small towers of open_clip that judge the mini's posters.

CLIP's own towers have never seen such posters, and a JSON caption overflows their context. These
are trained on posters and on the caption's content in words (`eval.score_text.content_in_words`),
by `scripts/train_clip_mini.py`, so that CLIPScore means something for the mini too. The result is a
plain folder of open_clip: config, weights, tokenizer; nothing of this file is needed to load it.

A vocabulary of 49 408 tokens alone would take 12 MB at this width. The own tokenizer has whole
tokens for the words of the posters' grammar and single characters for everything else: below
500 tokens, and a word that was never seen is still spelled.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Sequence
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from dit8.models.mini_tokenizer import WORDS
from dit8.models.posters import IMAGE_PX
from dit8.models.torchvision_shim import import_torchvision
from dit8.models.training.checkpoint import save_weights
from dit8.quant.files import write_atomically

START, END, PAD = "<start>", "<end>", "<pad>"
CONTEXT = 64  # the longest content of a poster has 42 tokens
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
MAX_BYTES = 10_000_000  # of the weights, which are stored in bf16


CELLS = 10  # rows and columns that eval/score_text.py names places by


@dataclass(frozen=True)
class ClipSize:
    """Free numbers of the two towers; heads are 32 wide."""

    patch_px: int = 16
    vision_width: int = 192
    vision_layers: int = 8
    text_width: int = 128
    text_layers: int = 4
    embed: int = 192


FULL = ClipSize()
FINE = ClipSize(patch_px=8)  # four times the tokens: for letters that 16 px patches do not resolve
TOY = ClipSize(
    patch_px=32, vision_width=64, vision_layers=2, text_width=32, text_layers=1, embed=32
)


def build_clip_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; ids depend on the tables alone, and END has the highest of all.

    open_clip takes a text's feature where the highest id stands.
    """
    characters = [chr(code) for code in range(32, 127)]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate([PAD, *byte_tokens, *characters])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = Sequence([ByteFallback(), Fuse()])
    places = [f", {axis} {cell}" for axis in ("row", "column") for cell in range(CELLS)]
    words = [variant for word in WORDS for variant in (word, f" {word}")]
    plain = ["; word ", "; ", ", ", *places, *words]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (PAD, START, END)])
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Encode texts to (n, CONTEXT) int64, padded on the right."""
    output = tokenizer(
        texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    return output.input_ids


def model_config(size: ClipSize, vocabulary: int) -> dict[str, Any]:
    """Return open_clip's `model_cfg` of a size."""
    return {
        "embed_dim": size.embed,
        "vision_cfg": {
            "image_size": IMAGE_PX,
            "patch_size": size.patch_px,
            "width": size.vision_width,
            "layers": size.vision_layers,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocabulary,
            "width": size.text_width,
            "layers": size.text_layers,
            "heads": size.text_width // 32,
            "hf_tokenizer_name": "clip-mini",  # says "a Hugging Face tokenizer, in the folder"
        },
    }


def build_clip(size: ClipSize, seed: int) -> torch.nn.Module:
    """Build untrained towers on the CPU in fp32; weights depend on `seed` alone."""
    import_torchvision()  # first: open_clip imports it, and would say less where it is broken
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    return CLIP(**model_config(size, len(build_clip_tokenizer())))


def save_clip(model: torch.nn.Module, size: ClipSize, folder: Path) -> None:
    """Save a folder that `open_clip.create_model("local-dir:<folder>")` loads; weights in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_clip_tokenizer()
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    entries = json.loads(settings.read_text(encoding="utf-8"))
    # transformers 5 writes its internal class name, which transformers 4 does not know.
    entries["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(settings, entries)
    middle = [0.5, 0.5, 0.5]  # values in [-1, 1], as `models.training.pool.to_signal`
    preprocess = {"size": IMAGE_PX, "mean": middle, "std": middle, "resize_mode": "shortest"}
    config = {"model_cfg": model_config(size, len(tokenizer)), "preprocess_cfg": preprocess}
    _write_json(folder / CONFIG, config)
    save_weights(model, folder / WEIGHTS)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
