"""Load a pipeline from a diffusers folder, offline, with a sentence when something is missing."""

import json
import warnings
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, Ideogram4Pipeline, ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from quant.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_dtype(name: str) -> torch.dtype:
    """Turn a dtype's name into the dtype.

    Raises:
        UserError: not one of DTYPES.
    """
    if name not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def resolve_device(name: str) -> torch.device:
    """Turn auto, cpu or cuda into a device.

    Raises:
        UserError: another name, or cuda where torch sees none; never falls back.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"hardware.device must be auto, cpu or cuda, got {name!r}")
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise UserError(
            "hardware=cuda needs an NVIDIA GPU and a CUDA build of torch, got torch "
            f"{torch.__version__} without a device; use hardware=cpu"
        )
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


def load_pipeline(
    folder: Path, dtype: str, companion_dtype: str, device: torch.device
) -> Ideogram4Pipeline:
    """Load an `Ideogram4Pipeline` from a local folder; nothing is downloaded.

    Args:
        folder: as `save_pretrained` writes it.
        dtype: compute dtype of the two branches.
        companion_dtype: of text encoder and VAE, the same for every variant.
        device: where everything goes.

    Raises:
        UserError: no such folder, another kind of pipeline, or files that do not load.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"model folder {folder} must hold model_index.json, got no such file; "
            "use model=mini, or put the weights of this model there"
        )
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index} is not valid JSON ({error}); restore the model folder") from error
    kind = entries.get("_class_name") if isinstance(entries, dict) else None
    if kind != "Ideogram4Pipeline":
        raise UserError(f"{index} must name the class Ideogram4Pipeline, got {kind!r}")
    branch, companion = torch_dtype(dtype), torch_dtype(companion_dtype)
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            pipeline = DiffusionPipeline.from_pretrained(
                folder,
                local_files_only=True,
                dtype={
                    "transformer": branch,
                    "unconditional_transformer": branch,
                    "default": companion,
                },
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model folder {folder} does not load: {first}; restore it") from error
    _check_complete(pipeline, folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _check_complete(pipeline: Ideogram4Pipeline, folder: Path) -> None:
    """Refuse a branch or VAE with a tensor that no file holds: diffusers fills it at random."""
    for name, module in pipeline.components.items():
        if not isinstance(module, ModelMixin):
            continue
        held: set[str] = set()
        for path in (folder / name).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                held |= set(file.keys())
        missing = [tensor for tensor in module.state_dict() if tensor not in held]
        if missing:
            raise UserError(
                f"model folder {folder} does not load: {name} lacks {len(missing)} tensors, "
                f"first {missing[0]}; restore it"
            )
