"""Write random checkpoints of any size in the official FP8 layout, to try conversion on.

The real weights are gated and large; what conversion costs in time and memory depends on shapes,
types and names only, which are these:

    model_index.json                                      names the pipeline and its branches
    transformer/config.json                               and unconditional_transformer/ likewise
    transformer/diffusion_pytorch_model.safetensors       or shards and their index

Linears of the blocks, the text projection and adaLN are float8_e4m3fn `X.weight` with fp32
`X.weight_scale`, one a row; everything else is bf16.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import Ideogram4Transformer2DModel

from dit8.models.synthetic_values import PATTERN, Pattern, number_of
from dit8.quant.architectures import architecture_of
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.checkpoint.safetensors_file import SafetensorsWriter
from dit8.quant.errors import UserError
from dit8.quant.files import files_sha256
from dit8.quant.types import Architecture, TensorSpec

PIPELINE, STEM = "Ideogram4Pipeline", "diffusion_pytorch_model"
DTYPES, LAYOUTS = ("fp8", "bf16"), ("diffusers", "original")
NORM, BIAS = (1.0, 0.1), (0.0, 0.02)  # mean and deviation


@dataclass(frozen=True)
class Branch:
    """One branch as data; both have the same."""

    config: dict[str, Any]  # as in config.json
    shapes: dict[str, tuple[int, ...]]  # by diffusers name
    architecture: Architecture


@dataclass(frozen=True)
class Options:
    """How a checkpoint is written.

    Args:
        branches: file prefixes.
        dtype: "fp8", or "bf16" for everything.
        layout: "diffusers" (to_q, to_k, to_v) or "original" (attention.qkv); the same values.
        shards: files that a branch is cut into, at most.
        seed: a value depends on it, its branch and its tensor's name in diffusers alone.

    Raises:
        UserError: a field out of its range.
    """

    branches: tuple[str, ...] = tuple(BRANCHES)
    dtype: str = "fp8"
    layout: str = "diffusers"
    shards: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values, allowed in (
            ("branches", self.branches or (None,), tuple(BRANCHES)),
            ("dtype", (self.dtype,), DTYPES),
            ("layout", (self.layout,), LAYOUTS),
        ):
            for value in values:
                if value not in allowed:
                    raise UserError(
                        f"synthetic: {name} must be among {', '.join(allowed)}, got {value!r}; "
                        f"use {allowed[0]}"
                    )
        if self.shards < 1:
            raise UserError(f"synthetic: shards must be at least 1, got {self.shards}; use 1")


def describe(overrides: Mapping[str, Any]) -> Branch:
    """List the tensors of a branch; builds it without memory.

    Args:
        overrides: of Ideogram4Transformer2DModel's configuration; its defaults are the real size.

    Raises:
        UserError: diffusers refuses the configuration.
    """
    try:
        with torch.device("meta"):
            model = Ideogram4Transformer2DModel(**overrides)
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            "synthetic: the configuration must suit Ideogram4Transformer2DModel, got "
            f"{json.dumps(dict(overrides))}: {error}; correct it"
        ) from error
    config = json.loads(model.to_json_string())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Branch(config, shapes, architecture_of(config))


def bytes_needed(branch: Branch, options: Options) -> int:
    """Count the bytes of all tensors of all branches."""
    specs = _specs(branch, options)
    return len(options.branches) * sum(spec.nbytes for spec in specs.values())


def write_synthetic(
    folder: Path,
    branch: Branch,
    options: Options,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a diffusers folder, whole or not at all, in the memory of a few patterns.

    Args:
        folder: must not exist.
        branch: see `describe`.
        options: see `Options`.
        progress: called with the number of bytes just written.

    Raises:
        UserError: the folder exists or cannot be written, or the disk has too little room.
    """
    if folder.exists():
        raise UserError(f"synthetic: {folder} exists already; delete it to write it again")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        needed, free = bytes_needed(branch, options), shutil.disk_usage(partial).free
        if free < needed:
            raise UserError(
                f"synthetic: {folder} must have {needed / 1e9:.2f} GB of disk, got "
                f"{free / 1e9:.2f} GB free; make room, or write fewer layers or one branch"
            )
        subfolders = {prefix: BRANCHES[prefix] for prefix in options.branches}
        kind = ["diffusers", branch.config["_class_name"]]
        index = {"_class_name": PIPELINE} | dict.fromkeys(subfolders.values(), kind)
        _write_json(partial / "model_index.json", index)
        pattern = Pattern(options.seed)
        for prefix, subfolder in subfolders.items():
            (partial / subfolder).mkdir()
            _write_json(partial / subfolder / "config.json", branch.config)
            _write_branch(partial / subfolder, branch, options, prefix, pattern, progress)
        partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"synthetic: cannot write {folder}: {error.strerror or error}; "
            "choose a folder that you may write to"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def synthetic_key(folder: Path) -> str:
    """Hash what was written as `models.ideogram4.source_sha256` does, one branch alone included.

    Returns:
        12 hexadecimal digits, the model's key; reads every byte.
    """
    files: list[Path] = []
    for subfolder in (folder / name for name in BRANCHES.values()):
        if subfolder.is_dir():
            files += [subfolder / "config.json", *sorted(subfolder.glob("*.safetensors"))]
    return files_sha256(files, root=folder)[:12]


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _specs(branch: Branch, options: Options) -> dict[str, TensorSpec]:
    """List a branch's tensors by diffusers name, scales behind their weights."""
    is_fp8 = {
        target
        for group in branch.architecture.groups
        for target in group.targets
        if group.role != "rest" or target.endswith("adaln_modulation")
    }
    specs = {}
    for name, shape in branch.shapes.items():
        module, _, suffix = name.rpartition(".")
        if options.dtype == "fp8" and suffix == "weight" and module in is_fp8:
            specs[name] = TensorSpec(shape, torch.float8_e4m3fn)
            specs[f"{module}.weight_scale"] = TensorSpec(shape[:1], torch.float32)
        else:
            specs[name] = TensorSpec(shape, torch.bfloat16)
    return specs


def _files(
    specs: Mapping[str, TensorSpec], architecture: Architecture, options: Options
) -> list[dict[str, list[str]]]:
    """Cut a branch into files of about equal size: stored name -> diffusers names it stacks."""
    owner = {}
    if options.layout == "original":
        owner = {part: linear.name for linear in architecture.stored for part in linear.parts}
    contents: dict[str, list[str]] = {}
    for name in specs:  # the model lists q, k and v in the order in which they are stacked
        module, _, suffix = name.rpartition(".")
        contents.setdefault(f"{owner.get(module, module)}.{suffix}", []).append(name)
    total, seen = sum(spec.nbytes for spec in specs.values()), 0
    files: dict[int, dict[str, list[str]]] = {}
    for stored, names in contents.items():
        files.setdefault(seen * options.shards // total, {})[stored] = names
        seen += sum(specs[name].nbytes for name in names)
    return list(files.values())


def _write_branch(
    folder: Path,
    branch: Branch,
    options: Options,
    prefix: str,
    pattern: Pattern,
    progress: Callable[[int], None],
) -> None:
    """Write the weight files of one branch, and an index if there are several."""
    specs = _specs(branch, options)
    files = _files(specs, branch.architecture, options)
    weight_map: dict[str, str] = {}
    for number, contents in enumerate(files, start=1):
        shard = f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else ""
        file = f"{STEM}{shard}.safetensors"
        weight_map |= dict.fromkeys(contents, file)
        stacked = {stored: _stack([specs[n] for n in names]) for stored, names in contents.items()}
        with SafetensorsWriter(folder / file, stacked, {"format": "pt"}) as writer:
            for stored, names in contents.items():
                row = 0
                for name in names:
                    offset = number_of(options.seed, prefix, name) % PATTERN
                    moments = _moments(name, branch.shapes)
                    for block in pattern.blocks(specs[name], offset, *moments):
                        writer.write_rows(stored, row, block)
                        row += block.shape[0]
                        progress(block.nbytes)
    if len(files) > 1:
        total = sum(spec.nbytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / f"{STEM}.safetensors.index.json", index)


def _stack(specs: list[TensorSpec]) -> TensorSpec:
    rows = sum(spec.shape[0] for spec in specs)
    return TensorSpec((rows, *specs[0].shape[1:]), specs[0].dtype)


def _moments(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
    """Choose a tensor's mean and deviation: 1 / sqrt(K) keeps a linear's output at its input's."""
    if name.endswith(".bias"):
        return BIAS
    shape = shapes[name.removesuffix("_scale")]
    return NORM if len(shape) == 1 else (0.0, shape[1] ** -0.5)
