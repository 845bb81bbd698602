"""Open a checkpoint of any known format: one file or a folder, safetensors or GGUF, both branches.

Only headers are read here. Tensors come one at a time, by the name they have in the file without
the branch in front.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dit8.quant.checkpoint.gguf_file import GgufFile
from dit8.quant.checkpoint.read import weight_files
from dit8.quant.checkpoint.safetensors_file import SafetensorsFile
from dit8.quant.errors import UserError
from dit8.quant.types import ResolvedRecipe, TensorSpec, recipe_from_json

KIND = "dit8 checkpoint 2"  # raise the number when a tensor changes its name or meaning
ENTRY = "dit8"
REMEDY = "make it with scripts/quantize.py, or download it again"
# branch of Ideogram 4 -> prefixes seen in published files; other branches have their own name only
PREFIXES = {
    "conditional": ("conditional.", "cond.", "transformer."),
    "unconditional": ("unconditional.", "uncond.", "unconditional_transformer."),
}


@dataclass(frozen=True)
class StoredBranch:
    """One branch's tensors in a file, not read yet."""

    specs: dict[str, TensorSpec]  # name without the branch -> as it lies in the file
    blocks: dict[str, str]  # name -> its format where the tensor is raw ggml blocks
    where: str  # file and branch, for messages
    _places: dict[str, tuple[Any, str]] = field(repr=False)  # name -> open file, name there

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        file, stored = self._places[name]
        return file.read(stored)


@dataclass(frozen=True)
class StoredCheckpoint:
    """What `open_checkpoint` found; header fields are None for files that dit8 did not write."""

    branches: dict[str, StoredBranch]
    resolved: ResolvedRecipe | None
    model_key: str | None
    format: str | None
    lora: str | None  # what was merged into the weights before they were quantized


@contextmanager
def open_checkpoint(path: str | Path, branches: Mapping[str, str]) -> Iterator[StoredCheckpoint]:
    """Open a checkpoint for the length of a `with` block.

    Args:
        path: a .safetensors or .gguf file with the branch in front of every name, or a folder:
            with one subfolder or one `<branch>.safetensors` a branch, or with a single such file.
        branches: branch -> subfolder.

    Yields:
        every branch's tensors by their stored names.

    Raises:
        UserError: nothing there, a damaged file, a version that this code does not know, or a
            branch without tensors.
    """
    path = Path(path)
    with ExitStack() as stack:
        files = _locate(path, branches)
        opened = {
            file: stack.enter_context(_open(file)) for group in files.values() for file in group
        }
        # a file for several branches must say whose each tensor is
        is_shared = len(branches) > 1 and len({tuple(group) for group in files.values()}) == 1
        found = {}
        for branch, group in files.items():
            found[branch] = _branch(branch, [opened[file] for file in group], path, is_shared)
        empty = [branch for branch, stored in found.items() if not stored.specs]
        if empty:
            some = next((name for file in opened.values() for name in _names(file)), "nothing")
            raise UserError(
                f"open_checkpoint: {path} must hold the branches {', '.join(branches)}, got no "
                f"tensor of {empty[0]} (first name in the file: {some!r}); {REMEDY}"
            )
        header = _header(next(iter(opened.values())), path)
        recipe = header.get("recipe")
        yield StoredCheckpoint(
            found,
            recipe_from_json(recipe) if recipe else None,
            header.get("model_key"),
            header.get("format"),
            header.get("lora"),
        )


def read_header(path: str | Path, branches: Mapping[str, str]) -> StoredCheckpoint:
    """Open, check and close a checkpoint: what made it, no tensor with it.

    Raises:
        UserError: as `open_checkpoint`.
    """
    with open_checkpoint(path, branches) as stored:
        return stored


def checkpoint_files(path: Path, branches: Mapping[str, str]) -> list[Path]:
    """List the weight files of a checkpoint.

    Raises:
        UserError: nothing there.
    """
    return sorted({file for group in _locate(path, branches).values() for file in group})


def _locate(path: Path, branches: Mapping[str, str]) -> dict[str, list[Path]]:
    if path.is_file():
        return {branch: [path] for branch in branches}
    if not path.is_dir():
        raise UserError(f"open_checkpoint: no checkpoint at {path}; {REMEDY}")
    if all((path / subfolder).is_dir() for subfolder in branches.values()):
        return {branch: weight_files(path / subfolder) for branch, subfolder in branches.items()}
    single = {branch: [path / f"{branch}.safetensors"] for branch in branches}
    if all(files[0].is_file() for files in single.values()):
        return single
    weights = sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")])
    if len(weights) != 1:
        raise UserError(
            f"open_checkpoint: {path} must hold one .safetensors or .gguf file, or one subfolder "
            f"or file for each of {', '.join(branches)}, got {len(weights)} weight files; {REMEDY}"
        )
    return {branch: weights for branch in branches}


def _open(file: Path) -> SafetensorsFile | GgufFile:
    return GgufFile(file) if file.suffix == ".gguf" else SafetensorsFile(file, remedy=REMEDY)


def _names(file: SafetensorsFile | GgufFile) -> list[str]:
    return list(file.tensors if isinstance(file, GgufFile) else file.specs)


def _branch(branch: str, files: list, path: Path, is_shared: bool) -> StoredBranch:
    stored = StoredBranch({}, {}, f"{path} ({branch})", {})
    prefixes = PREFIXES.get(branch, (f"{branch}.",))
    for file in files:
        names = _names(file)
        prefix = next((p for p in prefixes if any(n.startswith(p) for n in names)), "")
        if not prefix and is_shared:
            continue
        for name in names:
            if not name.startswith(prefix):
                continue
            short = name.removeprefix(prefix)
            if short in stored.specs:
                raise UserError(
                    f"open_checkpoint: {short!r} must be stored once in {stored.where}, got it "
                    "twice; remove the file that does not belong there"
                )
            stored._places[short] = (file, name)
            if isinstance(file, GgufFile):
                kind = file.tensors[name].kind
                stored.specs[short] = file.spec(name)
                if kind in ("Q8_0", "Q4_K"):
                    stored.blocks[short] = kind.lower()
            else:
                stored.specs[short] = file.specs[name]
    return stored


def _header(file: SafetensorsFile | GgufFile, path: Path) -> dict[str, Any]:
    """Read what dit8 wrote about the file; {} for a foreign one."""
    text = file.metadata.get(ENTRY)
    if text is None:
        return {}
    try:
        header = json.loads(text)
        kind = header.get("kind")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"open_checkpoint: the header of {path} must be JSON, got {error}; {REMEDY}"
        ) from error
    if kind != KIND:
        raise UserError(f"open_checkpoint: {path} must be of kind {KIND!r}, got {kind!r}; {REMEDY}")
    return header
