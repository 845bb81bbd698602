"""Write a checkpoint of any format, streaming: one linear in memory, whole or absent on disk.

The header carries format, recipe, model key and source hash, so a file alone is enough; recipe.json
beside it is for people. Equal content gives equal bytes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dit8.quant.checkpoint.entries import Entry, branch_entries
from dit8.quant.checkpoint.gguf_file import GgufTensor, write_gguf
from dit8.quant.checkpoint.read import BranchSource
from dit8.quant.checkpoint.safetensors_file import SafetensorsWriter
from dit8.quant.checkpoint.stored import ENTRY, KIND
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically
from dit8.quant.formats.table import Format
from dit8.quant.types import (
    ActStats,
    Architecture,
    LayerReport,
    ResolvedRecipe,
    StoredLinear,
    TensorSpec,
    recipe_to_json,
)

GGUF_PREFIXES = {"conditional": "cond.", "unconditional": "uncond."}
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Origin:
    """Where the weights come from, for the header and for config files."""

    model_key: str
    source_sha256: str
    subfolders: Mapping[str, str]  # branch -> subfolder of the diffusers layout
    configs: Mapping[str, Mapping]  # branch -> its config.json
    lora: str | None = None  # hash and strength of a LoRA that is merged in


def checkpoint_name(target: Format) -> str:
    """Name the file, or "" for a format that fills the folder."""
    return {"file": "model.safetensors", "gguf": "model.gguf"}.get(target.container, "")


def save_checkpoint(
    folder: str | Path,
    target: Format,
    sources: Mapping[str, BranchSource],
    architecture: Architecture,
    origin: Origin,
    resolved: ResolvedRecipe | None = None,
    stats: ActStats | None = None,
    *,
    progress: Progress = lambda weights: None,
) -> tuple[LayerReport, ...]:
    """Convert every branch into `folder`, which appears when it is complete.

    Args:
        folder: must not exist; gets model.safetensors, model.gguf, or one file or subfolder a
            branch, and recipe.json for a format with a recipe.
        target: the format.
        sources: branch -> unquantized weights.
        architecture: of each branch.
        origin: for the header.
        resolved: for the int8 formats.
        stats: of this model, if the recipe needs them.
        progress: called with the number of source values that have just been converted.

    Returns:
        one report a linear for the int8 formats; nothing for the others.

    Raises:
        UserError: `folder` exists, whatever entries.py refuses, or a disk that is full.
    """
    folder = Path(folder)
    if folder.exists():  # a rename would replace an empty folder, and refuse others after the work
        raise UserError(
            f"save_checkpoint: {folder} must not exist yet, got a "
            f"{'folder' if folder.is_dir() else 'file'}; delete it or choose another place"
        )
    if target.container == "diffusers":
        architecture = _unstacked(architecture)
    header = {
        "kind": KIND,
        "format": target.name,
        "model_key": origin.model_key,
        "source_sha256": origin.source_sha256,
        "lora": origin.lora,
        "recipe": None if resolved is None else recipe_to_json(resolved),
    }
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    reports: list[LayerReport] = []
    try:
        _make_folder(partial)
        entries = {
            branch: _counted(
                branch_entries(source, architecture, branch, target, resolved, stats),
                reports,
                progress,
            )
            for branch, source in sources.items()
        }
        _WRITERS[target.container](partial, target, entries, origin, header)
        if resolved is not None:
            text = recipe_to_json(resolved)
            write_atomically(
                partial / "recipe.json", lambda path: path.write_text(text, encoding="utf-8")
            )
        try:
            partial.rename(folder)
        except OSError as error:
            raise UserError(
                f"save_checkpoint: cannot move the finished checkpoint to {folder}: "
                f"{error.strerror}; delete what is there"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tuple(reports)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"save_checkpoint: cannot make {folder}: {error.strerror}; choose a folder that you "
            "may write to"
        ) from error


def _unstacked(architecture: Architecture) -> Architecture:
    """Give every module its own name on disk, as diffusers has it."""
    stored = tuple(StoredLinear(part, (part,)) for s in architecture.stored for part in s.parts)
    return replace(architecture, stored=stored)


def _counted(entries: list[Entry], reports: list[LayerReport], progress: Progress) -> list[Entry]:
    """Let every entry, when it is made, file its report and tell its size."""

    def counted(entry: Entry) -> Entry:
        def make() -> tuple[dict[str, torch.Tensor], None]:
            tensors, report = entry.make()
            if report is not None:
                reports.append(report)
            progress(entry.values)
            return tensors, None

        return replace(entry, make=make)

    return [counted(entry) for entry in entries]


def _specs(entries: list[Entry], prefix: str) -> dict[str, TensorSpec]:
    return {f"{prefix}{name}": spec for entry in entries for name, spec in entry.specs.items()}


def _write_safetensors(path: Path, prefixed: Mapping[str, list[Entry]], metadata: dict) -> None:
    specs = {}
    for prefix, entries in prefixed.items():
        specs |= _specs(entries, prefix)
    with SafetensorsWriter(path, specs, metadata) as writer:
        for prefix, entries in prefixed.items():
            for entry in entries:
                for name, tensor in entry.make()[0].items():
                    writer.write(f"{prefix}{name}", tensor)


def _write_file(
    folder: Path, target: Format, entries: Mapping[str, list[Entry]], _: Origin, header: dict
) -> None:
    prefixed = {f"{branch}.": made for branch, made in entries.items()}
    _write_safetensors(folder / checkpoint_name(target), prefixed, {ENTRY: json.dumps(header)})


def _write_files(
    folder: Path, _: Format, entries: Mapping[str, list[Entry]], __: Origin, header: dict
) -> None:
    for branch, made in entries.items():
        metadata = {ENTRY: json.dumps(header)}
        _write_safetensors(folder / f"{branch}.safetensors", {"": made}, metadata)


def _write_diffusers(
    folder: Path,
    target: Format,
    entries: Mapping[str, list[Entry]],
    origin: Origin,
    header: dict,
) -> None:
    for branch, made in entries.items():
        subfolder = folder / origin.subfolders[branch]
        _make_folder(subfolder)
        config = dict(origin.configs[branch])
        config.pop("quantization_config", None)
        if target.config is not None:
            config["quantization_config"] = target.config
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(
            subfolder / "config.json", lambda path, text=text: path.write_text(text, "utf-8")
        )
        # "format: pt" is what diffusers and transformers expect of a safetensors file
        metadata = {ENTRY: json.dumps(header), "format": "pt"}
        path = subfolder / "diffusion_pytorch_model.safetensors"
        _write_safetensors(path, {"": made}, metadata)


def _write_gguf(
    folder: Path, target: Format, entries: Mapping[str, list[Entry]], _: Origin, header: dict
) -> None:
    tensors = []
    for branch, made in entries.items():
        prefix = GGUF_PREFIXES.get(branch, f"{branch}.")
        for entry in made:
            tensors += _gguf_tensors(entry, prefix, target)
    write_gguf(folder / checkpoint_name(target), tensors, {ENTRY: json.dumps(header)})


def _gguf_tensors(entry: Entry, prefix: str, target: Format) -> Iterator[GgufTensor]:
    for name, spec in entry.specs.items():
        is_block = spec.dtype == torch.uint8
        yield GgufTensor(
            f"{prefix}{name}",
            target.name.upper() if is_block else "F32",
            spec,
            lambda entry=entry, name=name: entry.make()[0][name],
        )


_WRITERS = {
    "file": _write_file,
    "files": _write_files,
    "diffusers": _write_diffusers,
    "gguf": _write_gguf,
}
