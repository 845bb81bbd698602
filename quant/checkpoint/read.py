"""Open an unquantized model and read its branches' weights, one tensor at a time, from any file.

A checkpoint of the real model has 9.3 G weights a branch, so nothing here holds more than the
tensor that was asked for. Both namings are understood (diffusers `to_q`, `to_k`, `to_v`,
`to_out.0`; original `attention.qkv`, `attention.o`), one file or shards, plain weights or the
official FP8 ones:

    weight = float8_e4m3fn (N, K) * weight_scale (N,)[:, None]           computed in fp32
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from dit8.quant.checkpoint.safetensors_file import SafetensorsFile
from dit8.quant.errors import UserError
from dit8.quant.files import over_blocks
from dit8.quant.rounding import e4m3_to_float
from dit8.quant.types import Architecture

BLOCK_VALUES = 2**19  # 2 MiB in fp32: the passes over a block of rows stay in the cache
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
REMEDY = "pass the unquantized model, in bf16 or in the official FP8 format"


@dataclass(frozen=True)
class StoredWeight:
    """A weight in the type it is stored in; fp32 rows on demand."""

    values: torch.Tensor  # (N, K) float8_e4m3fn or floating
    scale: torch.Tensor | None = None  # (N,) fp32, for float8 only

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.values.shape)

    @property
    def kept_dtype(self) -> torch.dtype:
        """Return the dtype in which this weight is written when it is not quantized."""
        return torch.bfloat16 if self.scale is not None else self.values.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows start..stop as (stop - start, K) fp32, exact."""
        block = self.values[start:stop]
        if self.scale is None:
            return block.float()
        return e4m3_to_float(block) * self.scale[start:stop, None]

    def blocks(self) -> list[tuple[int, int]]:
        """Cut the rows into pieces of about BLOCK_VALUES values."""
        n, k = self.shape
        rows = max(1, BLOCK_VALUES // k)
        return [(start, min(start + rows, n)) for start in range(0, n, rows)]

    def full(self) -> torch.Tensor:
        """Return the whole weight as (N, K) fp32."""
        return self.rows(0, self.shape[0])


class BranchSource(Protocol):
    """What a quantizer reads."""

    shapes: Mapping[str, tuple[int, ...]]  # by diffusers name, scales left out
    dtypes: Mapping[str, torch.dtype]  # in which a tensor is written when it stays as it is

    def weight(self, linear: str) -> StoredWeight: ...

    def tensor(self, name: str) -> torch.Tensor: ...


class MemorySource:
    """A branch's state dict, for models that fit."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(state_dict)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def weight(self, linear: str) -> StoredWeight:
        return StoredWeight(self._tensors[f"{linear}.weight"])

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


@dataclass(frozen=True)
class _Place:
    """Where a diffusers tensor lies: a file, its name there, and rows of it (None: all)."""

    file: SafetensorsFile
    name: str
    rows: tuple[int, int] | None


class FileSource:
    """A branch in one or several safetensors files, read with pread and never mapped."""

    def __init__(
        self,
        files: Mapping[str, SafetensorsFile],
        architecture: Architecture,
        where: str,
        prefix: str = "",
    ) -> None:
        """Find every tensor; reads no data.

        Args:
            files: anything -> open file.
            architecture: of the branch; knows which stored names stack which modules.
            where: folder or file, for messages.
            prefix: of the branch's names, "" or such as "conditional.".

        Raises:
            UserError: a tensor twice, an unexpected type, or rows that do not split.
        """
        self._places: dict[str, _Place] = {}
        self._where = where
        parts = {linear.name: linear.parts for linear in architecture.stored}
        for file in files.values():
            for name, spec in file.specs.items():
                if not name.startswith(prefix):
                    continue
                stem, _, suffix = name.removeprefix(prefix).rpartition(".")
                modules = parts.get(stem, (stem,))
                n = spec.shape[0] if spec.shape else 0
                if len(modules) > 1 and (n == 0 or n % len(modules)):
                    raise UserError(
                        f"open_source: {name!r} in {where} must stack {len(modules)} equal parts, "
                        f"got {n} rows; {REMEDY}"
                    )
                for index, module in enumerate(modules):
                    size = n // len(modules)
                    rows = None if len(modules) == 1 else (index * size, (index + 1) * size)
                    self._add(f"{module}.{suffix}" if module else suffix, _Place(file, name, rows))
        self.shapes, self.dtypes = {}, {}
        for name, place in self._places.items():
            if name.endswith(".weight_scale"):
                continue
            spec = place.file.specs[place.name]
            rows = place.rows
            shape = spec.shape if rows is None else (rows[1] - rows[0], *spec.shape[1:])
            is_float8 = spec.dtype == torch.float8_e4m3fn
            if is_float8 and f"{name}_scale" not in self._places:
                raise UserError(
                    f"open_source: {name!r} in {where} is float8 and must have {name}_scale beside "
                    f"it, got none; {REMEDY}"
                )
            if not is_float8 and spec.dtype not in FLOATS:
                raise UserError(
                    f"open_source: {name!r} in {where} must be floating, got "
                    f"{str(spec.dtype).removeprefix('torch.')}; {REMEDY}"
                )
            self.shapes[name] = tuple(shape)
            self.dtypes[name] = torch.bfloat16 if is_float8 else spec.dtype

    def _add(self, name: str, place: _Place) -> None:
        if name in self._places:
            raise UserError(
                f"open_source: {name!r} must be stored once, got it twice in {self._where}; "
                "remove the file that does not belong there"
            )
        self._places[name] = place

    def _read(self, name: str) -> torch.Tensor:
        place = self._places.get(name)
        if place is None:
            raise UserError(
                f"open_source: {self._where} must hold {name!r}, got {len(self._places)} other "
                f"tensors; {REMEDY}"
            )
        if place.rows is None:
            return place.file.read(place.name)
        return place.file.read_rows(place.name, *place.rows)

    def weight(self, linear: str) -> StoredWeight:
        """Read a linear's weight.

        Raises:
            UserError: not there, not a matrix, or a scale that does not fit.
        """
        values = self._read(f"{linear}.weight")
        if values.ndim != 2:
            raise UserError(
                f"open_source: {linear}.weight in {self._where} must be a matrix, got shape "
                f"{tuple(values.shape)}; {REMEDY}"
            )
        if values.dtype != torch.float8_e4m3fn:
            return StoredWeight(values)
        scale = self._read(f"{linear}.weight_scale").float().flatten()
        if scale.shape[0] != values.shape[0]:
            raise UserError(
                f"open_source: {linear}.weight_scale in {self._where} must have one scale a row, "
                f"{values.shape[0]}, got {scale.shape[0]}; {REMEDY}"
            )
        return StoredWeight(values, scale)

    def tensor(self, name: str) -> torch.Tensor:
        """Read any tensor, a float8 weight dequantized to bf16.

        Raises:
            UserError: not there.
        """
        if name.endswith(".weight") and f"{name}_scale" in self._places:
            weight = self.weight(name.removesuffix(".weight"))
            return torch.cat(
                over_blocks(lambda block: weight.rows(*block).bfloat16(), weight.blocks())
            )
        return self._read(name)


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
