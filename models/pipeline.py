"""Load a pipeline from a diffusers folder, and build a variant of it: stock, rounded or quantized.

Offline, with a sentence when something is missing. diffusers and transformers are imported by the
functions that load: they take seconds, and a mistake in a configuration is told before.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from dit8.kernels.backend import backend_name
from dit8.models import model_folder
from dit8.models.memory import enough_memory
from dit8.models.threads import THREADS
from dit8.quant.architectures.ideogram4 import BRANCHES, architecture, branch_modules
from dit8.quant.checkpoint.load import load_quantized
from dit8.quant.checkpoint.read import FLOATS
from dit8.quant.checkpoint.safetensors_file import SafetensorsFile
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.rounding import round_linears


def encode_chat(tokenizer: Any, caption: str) -> list[int]:
    """Return the token ids that `Ideogram4Pipeline.encode_prompt` feeds its text encoder."""
    messages = [{"role": "user", "content": [{"type": "text", "text": caption}]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


if TYPE_CHECKING:
    from diffusers import Ideogram4Pipeline

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
    folder: Path,
    dtype: str,
    companion_dtype: str,
    device: torch.device,
    *,
    branches: bool = True,
    components: Mapping[str, Any] | None = None,
) -> "Ideogram4Pipeline":
    """Load an `Ideogram4Pipeline` from a local folder; nothing is downloaded.

    Branches may be stored in any format that `quant.checkpoint.load` reads, the official FP8 and
    NF4 ones included; they need no CUDA and no further package.

    Args:
        folder: as `save_pretrained` writes it.
        dtype: compute dtype of the two branches.
        companion_dtype: of text encoder and VAE, the same for every variant.
        device: where everything goes.
        branches: False leaves the branches without storage, for `load_quantized` to fill: then a
            quantized model is in memory once, and its unquantized one never.
        components: name -> what an earlier pipeline of this folder, companion dtype and device
            loaded; taken as it is instead of being loaded again.

    Raises:
        UserError: no such folder, another kind of pipeline, or files that do not load.
    """
    index = folder / model_folder.INDEX
    if not index.is_file():
        raise UserError(
            f"model folder {folder} must hold {model_folder.INDEX}, got no such file; "
            "use model=mini, or put the weights of this model there"
        )
    model_folder.components(index.read_bytes(), str(index))
    branch, companion = torch_dtype(dtype), torch_dtype(companion_dtype)
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    THREADS.share(device)  # the first look: loading takes long enough for the second to count
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    is_stock = branches and not _is_quantized(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            pipeline = DiffusionPipeline.from_pretrained(
                folder,
                local_files_only=True,
                dtype={**dict.fromkeys(BRANCHES.values(), branch), "default": companion},
                **({} if is_stock else _empty_branches(folder, branch)),
                **(components or {}),
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model folder {folder} does not load: {first}; restore it") from error
    _check_complete(pipeline, folder)
    pipeline.set_progress_bar_config(disable=True)
    if branches and not is_stock:
        load_quantized(pipeline, folder, device=device)
    elif not branches:
        for name, component in pipeline.components.items():
            if isinstance(component, torch.nn.Module) and name not in BRANCHES.values():
                component.to(device)
        return pipeline
    return pipeline.to(device)


def load_tokenizer(folder: Path) -> Any:
    """Load a model's tokenizer alone, to count a caption's tokens.

    Raises:
        UserError: no such folder, or files that do not load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"tokenizer of {folder} does not load: {first}; restore it") from error


def _is_quantized(folder: Path) -> bool:
    """Tell whether a branch is stored in some other way than plain floating tensors."""
    for subfolder in BRANCHES.values():
        for path in (folder / subfolder).glob("*.safetensors"):
            with SafetensorsFile(path, remedy="restore it") as file:
                if any(spec.dtype not in FLOATS for spec in file.specs.values()):
                    return True
    return False


def _empty_branches(folder: Path, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Build the branches without storage for their parameters."""
    from accelerate import init_empty_weights
    from diffusers import Ideogram4Transformer2DModel

    modules = {}
    for subfolder in BRANCHES.values():
        config = Ideogram4Transformer2DModel.load_config(folder / subfolder)
        config.pop("quantization_config", None)
        with init_empty_weights():
            module = Ideogram4Transformer2DModel.from_config(config).eval()
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
        modules[subfolder] = module  # its buffer, the rotary frequencies, stays in fp32
    return modules


def _check_complete(pipeline: "Ideogram4Pipeline", folder: Path) -> None:
    """Refuse a branch or VAE with a tensor that no file holds: diffusers fills it at random."""
    from diffusers import ModelMixin

    for name, module in pipeline.components.items():
        if not isinstance(module, ModelMixin) or next(module.parameters()).is_meta:
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


if TYPE_CHECKING:
    from diffusers import Ideogram4Pipeline

IN_MEMORY = ("source", "rounded")  # made from the model's own weights, without a checkpoint


@dataclass(frozen=True)
class Variant:
    """How the weights are stored and multiplied.

    Args:
        name: label in ledgers and tables.
        format: "source" (as the model is on disk), "rounded" (see quant/rounding.py), or a file
            format of quant/formats/table.py.
        gemm: for the int8 formats, "fake_quant" or "fused".
        bits: for rounded.
    """

    name: str
    format: str
    gemm: str | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.format not in (*IN_MEMORY, *FORMATS):
            raise UserError(
                f"variant {self.name}: format must be one of {', '.join((*IN_MEMORY, *FORMATS))}, "
                f"got {self.format!r}"
            )
        if self.has_recipe != (self.gemm is not None):
            raise UserError(
                f"variant {self.name}: gemm goes with an int8 format and no other, got format "
                f"{self.format!r} and gemm {self.gemm!r}"
            )
        if (self.format == "rounded") != (self.bits is not None):
            raise UserError(
                f"variant {self.name}: bits goes with format rounded and no other, got format "
                f"{self.format!r} and bits {self.bits!r}"
            )

    @property
    def needs_checkpoint(self) -> bool:
        return self.format not in IN_MEMORY

    @property
    def has_recipe(self) -> bool:
        """Tell whether a recipe changes this variant."""
        return self.needs_checkpoint and FORMATS[self.format].has_recipe

    def backend(self, device: torch.device) -> str:
        """Name what multiplies: the fused op's backend, else torch's own matmul."""
        if self.gemm == "fused":
            return backend_name(device)
        return f"torch-{device.type}"


def build_variant(
    variant: Variant,
    folder: Path,
    checkpoint: Path | None,
    *,
    model_key: str,
    dtype: str,
    companion_dtype: str,
    device: torch.device,
    components: Mapping[str, Any] | None = None,
) -> "Ideogram4Pipeline":
    """Load the model and, for a quantized variant, put its checkpoint in.

    `components` is as for `load_pipeline`.

    Raises:
        UserError: a model or checkpoint that is missing, damaged or of another model, or that is
            larger than the device's memory.
    """
    remedy = "use a variant with smaller weights, or hardware=cuda_24gb with engine=dit8"
    with enough_memory(f"variant {variant.name}, with text encoder and VAE,", remedy):
        pipeline = load_pipeline(
            folder,
            dtype,
            companion_dtype,
            device,
            branches=not variant.needs_checkpoint,
            components=components,
        )
        if variant.needs_checkpoint:
            gemm = variant.gemm or "fused"
            load_quantized(pipeline, checkpoint, gemm, model_key=model_key, device=device)
            pipeline.to(device)
        if variant.format == "rounded":
            for module in branch_modules(pipeline).values():
                round_linears(module, architecture(len(module.layers)), variant.bits)
    return pipeline
