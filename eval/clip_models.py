"""Load an image tower and a text tower of the CLIP family: unit features of a picture and a text.

Two libraries hold such weights: open_clip (a built-in architecture with a checkpoint, or a folder
of config and weights) and transformers (a folder). Either is loaded strictly: a checkpoint that
lacks a tensor, which both libraries would fill at random with no more than a warning, is refused.

Everything is computed in fp32, one picture and one text at a time. A larger batch may round a
product differently, and a score must not depend on which other pictures are in the call.
"""

import functools
import importlib.util
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from dit8.models.torchvision_shim import import_torchvision
from dit8.quant.errors import UserError

LOCAL_DIR = "local-dir:"  # open_clip's prefix for a folder
# In the order in which open_clip takes them, so that the file hashed is the file loaded.
OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
# What the libraries raise about a damaged, foreign or incomplete checkpoint or config.
FAILURES = (
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError),
    *(pickle.UnpicklingError, SafetensorError),
)

Preprocess = Callable[[np.ndarray, int], torch.Tensor]


@dataclass(frozen=True)
class Backbone:
    """Say where two towers come from.

    Args:
        library: "open_clip" or "transformers".
        name: open_clip's name of the architecture or "local-dir:<folder>"; for transformers the
            folder of config and weights.
        weights: the file that is hashed and loaded.
        processor: transformers only: folder of tokenizer and image settings.
        preprocess: replaces the library's own preparation of a picture:
            ((H, W, 3) uint8, side in pixels) -> (3, side, side) fp32.
    """

    library: str
    name: str
    weights: Path
    processor: Path | None = None
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class Towers:
    """Hold what two loaded towers do.

    Args:
        image: (H, W, 3) uint8 -> (D,) fp32 of length 1.
        text: string, cut to the tower's context -> (D,) fp32 of length 1.
        prepare: (H, W, 3) uint8 -> (3, S, S) fp32, what `image` gives its tower.
        logit_scale: exp of the checkpoint's learned temperature.
    """

    image: Callable[[np.ndarray], torch.Tensor]
    text: Callable[[str], torch.Tensor]
    prepare: Callable[[np.ndarray], torch.Tensor]
    logit_scale: float


def missing_packages(library: str) -> list[str]:
    """Return the distributions of the extra `clip` that this library needs and that are absent."""
    needed = {"open_clip": {"open_clip": "open-clip-torch", "torchvision": "torchvision"}}
    modules = needed.get(library, {})
    return [name for module, name in modules.items() if importlib.util.find_spec(module) is None]


@functools.lru_cache(maxsize=2)
def load_towers(backbone: Backbone, device: str) -> Towers:
    """Load both towers and keep them for the process: two runs in a row read 4 GB once.

    Args:
        backbone: weights that are there.
        device: a torch device.

    Raises:
        UserError: the checkpoint is damaged, lacks tensors or is of another architecture.
    """
    with _loading(backbone):
        if backbone.library == "open_clip":
            return _open_clip_towers(backbone, torch.device(device))
        return _transformers_towers(backbone, torch.device(device))


@functools.lru_cache(maxsize=4)
def load_tokenizer(backbone: Backbone) -> Callable[[str], tuple[torch.Tensor, int]]:
    """Return the text tower's tokenizer: string -> ((1, context) ids, number of tokens cut off).

    Reads no weights.

    Raises:
        UserError: the tokenizer's files are damaged.
    """
    with _loading(backbone):
        if backbone.library == "open_clip":
            return _open_clip_tokenizer(backbone)
        return _transformers_tokenizer(backbone)


def _open_clip_towers(backbone: Backbone, device: torch.device) -> Towers:
    open_clip = _import_open_clip()
    name = backbone.name
    source = {} if name.startswith(LOCAL_DIR) else {"pretrained": str(backbone.weights)}
    model = open_clip.create_model(name, device=device, require_pretrained=True, **source)
    model.eval().requires_grad_(False)
    settings = model.visual.preprocess_cfg
    size = settings["size"][0] if isinstance(settings["size"], tuple | list) else settings["size"]
    transforms = open_clip.transform
    transform = transforms.image_transform_v2(transforms.PreprocessCfg(**settings), is_train=False)
    tokenize = load_tokenizer(backbone)

    def prepare(pixels: np.ndarray) -> torch.Tensor:
        if backbone.preprocess is not None:
            return backbone.preprocess(pixels, size)
        return transform(Image.fromarray(pixels))

    def image(pixels: np.ndarray) -> torch.Tensor:
        with _in_fp32():
            features = model.encode_image(prepare(pixels)[None].to(device), normalize=True)
        return features[0].float().cpu()

    def text(string: str) -> torch.Tensor:
        ids, _ = tokenize(string)
        with _in_fp32():
            return model.encode_text(ids.to(device), normalize=True)[0].float().cpu()

    return Towers(image, text, prepare, float(model.logit_scale.detach().exp()))


def _open_clip_tokenizer(backbone: Backbone) -> Callable[[str], tuple[torch.Tensor, int]]:
    tokenizer = _import_open_clip().get_tokenizer(backbone.name)

    def tokenize(string: str) -> tuple[torch.Tensor, int]:
        ids = tokenizer([string])
        if hasattr(tokenizer, "tokenizer"):  # a Hugging Face tokenizer, which adds its own marks
            total = len(tokenizer.tokenizer(tokenizer.clean_fn(string)).input_ids)
        else:
            total = len(tokenizer.encode(string)) + 2  # start and end
        return ids, max(0, total - ids.shape[1])

    return tokenize


def _import_open_clip() -> Any:
    import_torchvision()  # first: open_clip imports it, and would say less where it is broken
    import open_clip

    return open_clip


def _transformers_towers(backbone: Backbone, device: torch.device) -> Towers:
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()  # transformers imports it where it is installed
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model, report = CLIPModel.from_pretrained(
        backbone.name,
        local_files_only=True,
        use_safetensors=backbone.weights.suffix == ".safetensors",
        output_loading_info=True,
        dtype=torch.float32,
    )
    absent = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if absent:
        raise ValueError(f"{len(absent)} tensors missing or of another shape, first {absent[0]}")
    model.eval().requires_grad_(False).to(device)
    # Pillow's resampling on every machine; the torchvision one differs by up to 0.03
    processor = CLIPImageProcessorPil.from_pretrained(backbone.processor, local_files_only=True)
    tokenize = load_tokenizer(backbone)

    def prepare(pixels: np.ndarray) -> torch.Tensor:
        return processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]

    def image(pixels: np.ndarray) -> torch.Tensor:
        with _in_fp32():
            output = model.get_image_features(pixel_values=prepare(pixels)[None].to(device))
        return torch.nn.functional.normalize(output.pooler_output[0].cpu(), dim=0)

    def text(string: str) -> torch.Tensor:
        ids, _ = tokenize(string)
        with _in_fp32():
            output = model.get_text_features(input_ids=ids.to(device))
        return torch.nn.functional.normalize(output.pooler_output[0].cpu(), dim=0)

    return Towers(image, text, prepare, float(model.logit_scale.detach().exp()))


def _transformers_tokenizer(backbone: Backbone) -> Callable[[str], tuple[torch.Tensor, int]]:
    from transformers import CLIPConfig, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(backbone.processor, local_files_only=True)
    config = CLIPConfig.from_pretrained(backbone.name, local_files_only=True)
    context = config.text_config.max_position_embeddings

    def tokenize(string: str) -> tuple[torch.Tensor, int]:
        total = len(tokenizer(string).input_ids)
        kept = tokenizer(string, truncation=True, max_length=context, return_tensors="pt")
        return kept.input_ids, max(0, total - context)

    return tokenize


@contextmanager
def _in_fp32():
    """Compute without gradients and, on a GPU, without TF32: a convolution would use it unasked."""
    with (
        torch.no_grad(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        yield


@contextmanager
def _loading(backbone: Backbone):
    """Turn what the libraries raise about a checkpoint into one sentence."""
    try:
        yield
    except UserError:
        raise
    except FAILURES as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"clip_models: {backbone.weights} cannot be loaded as {backbone.name} by "
            f"{backbone.library} ({type(error).__name__}: {text[:200]}), expected all tensors of "
            "that architecture; download it again or correct the backbone"
        ) from error
