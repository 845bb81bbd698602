"""Write a safetensors file tensor by tensor, in any order: whole or absent, never half.

Names, shapes and dtypes are known beforehand, hence the place of every byte, so that a tensor goes
to its place as soon as it exists and then may be forgotten: a file of any size takes the memory of
its largest tensor. The header goes in last, since it holds the checksums; its length is known from
the start. The file has a temporary name until everything is on the disk.
"""

import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch

from dit8.quant.files import whole_file, writing
from dit8.quant.safetensors_header import decode, encode
from dit8.quant.types import TensorSpec

PIECE_BYTES = 16 << 20  # of one pwrite; the CRC finds the piece in the cache


class SafetensorsWriter:
    """Writes one file inside a `with` block; the file appears when the block ends well."""

    def __init__(
        self, path: str | Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        """Lay the file out; touches no disk.

        Args:
            path: the .safetensors file; missing folders are made, an old file is replaced.
            specs: of every tensor; each must be written before the block ends.
            metadata: an entry "dit8" must hold a JSON object, and the file gets checksums; without
                such an entry it is a plain safetensors, as other programs write it.

        Raises:
            ValueError: what `quant.safetensors_header.encode` refuses.
        """
        self._path = Path(path)
        self._specs, self._metadata = dict(specs), dict(metadata)
        header = encode(self._specs, self._metadata, {})
        data_bytes = sum(spec.nbytes for spec in self._specs.values())
        self._starts = decode(header, data_bytes).starts
        self._missing_bytes = len(header) + data_bytes
        self._done = dict.fromkeys(self._specs, 0)  # name -> bytes written
        self._crc32 = dict.fromkeys(self._specs, 0)  # name -> of the bytes written
        self._file: FileIO | None = None

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a whole tensor.

        Args:
            name: as in the specs.
            tensor: of the announced shape and dtype; on any device, in any layout.

        Raises:
            UserError: the disk is full or fails.
            ValueError: another shape or dtype, unknown, or written before.
        """
        spec = self._check(name, tensor)
        if tuple(tensor.shape) != spec.shape or self._done[name]:
            raise ValueError(
                f"SafetensorsWriter: {name!r} must be written once in shape {spec.shape}, got "
                f"shape {tuple(tensor.shape)} after {self._done[name]} bytes"
            )
        self._append(name, tensor)

    def write_rows(self, name: str, start: int, tensor: torch.Tensor) -> None:
        """Write rows start.. along the leading dimension; the rows of a tensor go in order.

        Args:
            name: as in the specs.
            start: how many rows have been written.
            tensor: (rows, ...) of the announced dtype; on any device, in any layout.

        Raises:
            UserError: the disk is full or fails.
            ValueError: another shape or dtype, unknown, too many rows, or out of order (a running
                checksum cannot go back).
        """
        spec = self._check(name, tensor)
        row_bytes = math.prod(spec.shape[1:]) * spec.dtype.itemsize
        fits = bool(spec.shape) and tuple(tensor.shape[1:]) == spec.shape[1:] and tensor.ndim > 0
        if not fits or start * row_bytes != self._done[name]:
            raise ValueError(
                f"SafetensorsWriter: {name!r} must be written in rows of shape {spec.shape[1:]}, "
                f"in order, got {tuple(tensor.shape)} at row {start} after {self._done[name]} bytes"
            )
        if start + tensor.shape[0] > spec.shape[0]:
            raise ValueError(
                f"SafetensorsWriter: {name!r} has {spec.shape[0]} rows, got rows {start} to "
                f"{start + tensor.shape[0]}"
            )
        self._append(name, tensor)

    def __enter__(self) -> "SafetensorsWriter":
        self._block = self._open()
        return self._block.__enter__()

    def __exit__(self, *exc: object) -> bool | None:
        return self._block.__exit__(*exc)

    @contextmanager
    def _open(self) -> Iterator["SafetensorsWriter"]:
        with whole_file(self._path, self._missing_bytes) as temporary:
            with writing(self._path):
                self._file = FileIO(temporary, "w")
            with self._file:
                yield self
                self._finish()

    def _check(self, name: str, tensor: torch.Tensor) -> TensorSpec:
        spec = self._specs.get(name)
        if spec is None or tensor.dtype != spec.dtype:
            expected = "a tensor of the file" if spec is None else f"of type {spec.dtype}"
            raise ValueError(
                f"SafetensorsWriter: {name!r} must be {expected}, got {tensor.dtype} for "
                f"{self._path}"
            )
        return spec

    def _append(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next bytes of a tensor."""
        if self._file is None:
            raise ValueError("SafetensorsWriter: write inside its with block")
        flat = tensor.detach().cpu().contiguous().flatten()
        data = memoryview(flat.view(torch.uint8).numpy())
        start, crc = self._starts[name] + self._done[name], self._crc32[name]
        for offset in range(0, len(data), PIECE_BYTES):
            piece = data[offset : offset + PIECE_BYTES]
            self._put(piece, start + offset)
            crc = zlib.crc32(piece, crc)
        self._crc32[name] = crc
        self._done[name] += len(data)

    def _put(self, view: memoryview | bytes, start: int) -> None:
        """Write a view from byte `start` on; a write may take less than it was given."""
        done = 0
        while done < len(view):
            with writing(self._path, self._missing_bytes):
                put = os.pwrite(self._file.fileno(), view[done:], start + done)
            done += put
            self._missing_bytes -= put

    def _finish(self) -> None:
        """Check that nothing is missing, write the header and wait for the disk."""
        missing = [name for name, spec in self._specs.items() if self._done[name] != spec.nbytes]
        if missing:
            raise ValueError(
                f"SafetensorsWriter: {self._path} must get {len(self._specs)} tensors, "
                f"{len(missing)} are not complete, the first is {missing[0]!r}"
            )
        self._put(encode(self._specs, self._metadata, self._crc32), 0)
        with writing(self._path):
            os.fsync(self._file.fileno())
