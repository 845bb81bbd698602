"""Look into a diffusers folder without loading it: is it whole, and how are its weights stored?

Only JSON files and safetensors headers are read, so 27 GB of weights answer in milliseconds.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from dit8.quant import architectures
from dit8.quant.architectures.ideogram4 import BRANCHES, architecture
from dit8.quant.checkpoint.read import open_sources, weight_files
from dit8.quant.checkpoint.safetensors_file import SafetensorsFile
from dit8.quant.errors import UserError

INDEX = "model_index.json"
PIPELINE = "Ideogram4Pipeline"
REMEDY = "restore the model folder"
PLAIN = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# A tensor that only one format has; the official FP8 files mark theirs by the dtype instead.
MARKS = {".quant_state.bitsandbytes__nf4": "nf4", ".comfy_quant": "comfy"}


@dataclass(frozen=True)
class FolderFacts:
    """What a model folder holds."""

    format: str  # of both branches: bf16, fp16, fp32, fp8, nf4 or comfy
    blocks: int  # per branch
    weight_bytes: int  # of every component's safetensors files


def components(text: str | bytes, where: str) -> tuple[str, ...]:
    """List the subfolders that a model_index.json asks for.

    Args:
        text: of the file; bytes are read as UTF-8.
        where: names it in messages.

    Raises:
        UserError: not JSON, or the index of another pipeline.
    """
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}); {REMEDY}") from error
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind != PIPELINE:
        raise UserError(f"{where} must name the class {PIPELINE}, got {kind!r}; {_instead(kind)}")
    # a component that the pipeline can do without is stored as [null, null]
    listed = (name for name, value in index.items() if isinstance(value, list) and any(value))
    return tuple(sorted(listed))


def _instead(kind: object) -> str:
    """Say what to do with the index of another pipeline, or of none."""
    if not isinstance(kind, str):
        return REMEDY
    ways = ["use model=mini"]
    if kind in architectures.BRANCHES:
        ways.append(
            "quantize its transformer from Python with quant.checkpoint.write.save_checkpoint"
        )
    return f"commands take Ideogram 4 only so far: {' or '.join(ways)}"


def inspect_folder(folder: Path) -> FolderFacts:
    """Make sure that a folder is a whole Ideogram 4 model and tell its format.

    Unquantized and FP8 branches must hold every linear that a quantizer reads.

    Raises:
        UserError: a file is missing, damaged or of another model.
    """
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"model folder {folder} must hold {INDEX}, got no such file; {REMEDY}")
    size = 0
    for name in components(index.read_bytes(), str(index)):
        if not (folder / name).is_dir():
            raise UserError(f"model folder {folder} must hold {name}, got none; {REMEDY}")
        size += sum(file.stat().st_size for file in (folder / name).rglob("*.safetensors"))
    blocks = {branch: _blocks(folder / name) for branch, name in BRANCHES.items()}
    formats = {branch: _format(folder / name) for branch, name in BRANCHES.items()}
    for what, found in (("number of blocks", blocks), ("format", formats)):
        if len(set(found.values())) != 1:
            raise UserError(
                f"model folder {folder} must have the same {what} in both branches, got "
                f"{', '.join(f'{value} in {branch}' for branch, value in found.items())}; {REMEDY}"
            )
    kind, count = formats.popitem()[1], blocks.popitem()[1]
    if kind not in MARKS.values():
        with open_sources(folder, architecture(count), BRANCHES):
            pass  # it checks the names and types of both branches
    return FolderFacts(kind, count, size)


def _blocks(branch: Path) -> int:
    path = branch / "config.json"
    try:
        count = json.loads(path.read_text(encoding="utf-8"))["num_layers"]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {REMEDY}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must be a JSON object with num_layers; {REMEDY}") from error
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{path} must have num_layers >= 1, got {count!r}; {REMEDY}")
    return count


def _format(branch: Path) -> str:
    """Name the format by its mark, by float8 weights, or by the dtype of most bytes."""
    sizes: Counter[torch.dtype] = Counter()
    for path in weight_files(branch):
        with SafetensorsFile(path, remedy=REMEDY) as file:
            for name, spec in file.specs.items():
                for mark, kind in MARKS.items():
                    if name.endswith(mark):
                        return kind
                sizes[spec.dtype] += spec.nbytes
    if torch.float8_e4m3fn in sizes:
        return "fp8"
    dtype = sizes.most_common(1)[0][0] if sizes else None
    if dtype not in PLAIN:
        raise UserError(
            f"{branch} must hold weights in {', '.join(PLAIN.values())}, fp8, nf4 or comfy, got "
            f"{str(dtype).removeprefix('torch.')}; {REMEDY}"
        )
    return PLAIN[dtype]
