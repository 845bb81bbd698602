"""Find the files of an unquantized model's branches and open them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dit8.quant.errors import UserError
from dit8.quant.safetensors_reader import SafetensorsFile
from dit8.quant.source import REMEDY, FileSource
from dit8.quant.types import Architecture


@contextmanager
def open_sources(
    path: Path, architecture: Architecture, branches: Mapping[str, str]
) -> Iterator[dict[str, FileSource]]:
    """Open every branch of a model for the length of a `with` block; reads headers only.

    Args:
        path: a diffusers folder with one subfolder a branch (one file, or shards), or one
            safetensors file in which every name has its branch in front.
        architecture: of each branch.
        branches: branch -> subfolder.

    Yields:
        branch -> source.

    Raises:
        UserError: files are missing or damaged, or hold something else.
    """
    with ExitStack() as stack:
        sources = {}
        if path.is_file():
            files = {path.name: stack.enter_context(SafetensorsFile(path, remedy=REMEDY))}
            for branch in branches:
                sources[branch] = FileSource(files, architecture, str(path), f"{branch}.")
        else:
            for branch, subfolder in branches.items():
                folder = path / subfolder
                files = {
                    file.name: stack.enter_context(SafetensorsFile(file, remedy=REMEDY))
                    for file in weight_files(folder)
                }
                sources[branch] = FileSource(files, architecture, str(folder))
        for branch, source in sources.items():
            _check_complete(source, architecture, f"{path} ({branch})")
        yield sources


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a branch; an index names its shards.

    Raises:
        UserError: none there, or a shard of the index is missing.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(
                f"weight_files: {folder} must hold *.safetensors, got none; {REMEDY} there"
            )
        return files
    try:
        weight_map = json.loads(indexes[0].read_text("utf-8"))["weight_map"]
        names = sorted({Path(name).name for name in weight_map.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"weight_files: {indexes[0]} must be the JSON index of a sharded model, got "
            f"{type(error).__name__}: {error}; download it again"
        ) from error
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"weight_files: {folder} must hold the {len(names)} shards of its index, "
                f"{name} is missing; download it again"
            )
    return [folder / name for name in names]


def _check_complete(source: FileSource, architecture: Architecture, where: str) -> None:
    """Refuse a file of another architecture before anything is read."""
    for linear in architecture.linears:
        if f"{linear}.weight" not in source.shapes:
            found = next(iter(source.shapes), "nothing")
            raise UserError(
                f"open_source: {where} must hold {linear}.weight, got {len(source.shapes)} other "
                f"tensors, first {found!r}; is it a checkpoint of another architecture, or a "
                "quantized one? " + REMEDY
            )
