"""Read and write a safetensors file tensor by tensor, with pread and pwrite.

The safetensors package maps the file. Mapped pages that have been touched count as memory of the
process, so that a conversion of 20 GB seems to need 20 GB, and a disk error or a file cut short
under a map ends the process with a signal. Here a tensor costs its own bytes and no more, and
whatever goes wrong is one sentence. A file of this project carries a CRC-32 of every tensor, which
`read` compares.

A written file is whole or absent, never half. Names, shapes and dtypes are known beforehand, hence
the place of every byte, so that a tensor goes to its place as soon as it exists, in any order, and
then may be forgotten: a file of any size takes the memory of its largest tensor. The header goes in
last, since it holds the checksums; its length is known from the start. The file has a temporary
name until everything is on the disk.
"""

import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch

from dit8.quant.checkpoint.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    Header,
    HeaderError,
    decode,
    encode,
)
from dit8.quant.errors import UserError
from dit8.quant.files import whole_file, writing
from dit8.quant.types import TensorSpec

PIECE_BYTES = 16 << 20  # of one pread or pwrite: enough for any disk, in the cache for the CRC
_SNIFF_BYTES = 512
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class SafetensorsFile:
    """An open safetensors file whose header has been checked.

    Attributes:
        specs: name -> shape and dtype, in file order.
        metadata: strings; checksums left out.
    """

    def __init__(self, path: str | Path, *, remedy: str = "download it again") -> None:
        """Open the file and check its header.

        Args:
            path: the file.
            remedy: what the user should do if it cannot be read, for the message.

        Raises:
            UserError: no such file, something else than a safetensors, or a damaged header.
        """
        self._path, self._remedy = Path(path), remedy
        try:
            if not self._path.exists():
                raise UserError(f"SafetensorsFile: no file at {path}; {remedy}")
            if not self._path.is_file():  # opening a pipe would wait for ever
                what = "a folder" if self._path.is_dir() else "not a regular file"
                raise self._unreadable(f"it is {what}")
            self._file = open(self._path, "rb", buffering=0)
            try:
                self._header = self._read_header(os.fstat(self._file.fileno()).st_size)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        self.specs: dict[str, TensorSpec] = self._header.specs
        self.metadata: dict[str, str] = self._header.metadata

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor to the CPU and compare its checksum, if the file has one.

        Raises:
            UserError: the tensor is damaged, or the disk fails.
            ValueError: the file has no tensor of that name, or is closed.
        """
        spec = self._spec(name)
        tensor, crc = self._read_bytes(self._header.starts[name], spec)
        expected = self._header.crc32.get(name)
        if expected is not None and f"{crc:08x}" != expected:
            raise UserError(
                f"SafetensorsFile: tensor {name!r} of {self._path} is damaged (checksum "
                f"{crc:08x}, expected {expected}); {self._remedy}"
            )
        return tensor

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows start..stop along the leading dimension; compares no checksum.

        Raises:
            UserError: the disk fails.
            ValueError: no such tensor or rows, or the file is closed.
        """
        spec = self._spec(name)
        if not spec.shape or not 0 <= start <= stop <= spec.shape[0]:
            raise ValueError(
                f"read_rows: {name!r} of shape {spec.shape} has no rows {start} to {stop}"
            )
        row_bytes = math.prod(spec.shape[1:]) * spec.dtype.itemsize
        rows = TensorSpec((stop - start, *spec.shape[1:]), spec.dtype)
        return self._read_bytes(self._header.starts[name] + start * row_bytes, rows)[0]

    def close(self) -> None:
        """Close the file; tensors that were read stay."""
        self._file.close()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise ValueError(f"SafetensorsFile: no tensor {name!r} in {self._path}")
        return self.specs[name]

    def _unreadable(self, reason: str, remedy: str | None = None) -> UserError:
        return UserError(
            f"SafetensorsFile: {self._path} is not a readable safetensors file: {reason}; "
            f"{remedy or self._remedy}"
        )

    def _read_header(self, size: int) -> Header:
        head = bytearray(min(size, _SNIFF_BYTES))
        self._fill(memoryview(head), 0)
        length = int.from_bytes(head[:LENGTH_BYTES], "little")
        # 640 bytes of header begin like a pickle, so first of all ask whether it is a safetensors
        is_plausible = length <= MAX_HEADER_BYTES and head[LENGTH_BYTES : LENGTH_BYTES + 1] in (
            b"",
            b"{",
        )
        if not size:
            raise self._unreadable("it is empty")
        if not is_plausible or size < LENGTH_BYTES:
            raise self._unreadable(*_recognize(bytes(head)))
        missing = LENGTH_BYTES + length - size
        if missing > 0:
            raise self._unreadable(f"it is truncated, {missing} bytes of its header are missing")
        raw = bytearray(LENGTH_BYTES + length)
        self._fill(memoryview(raw), 0)
        try:
            return decode(bytes(raw), size - len(raw))
        except HeaderError as error:
            raise self._unreadable(str(error)) from error

    def _read_bytes(self, start: int, spec: TensorSpec) -> tuple[torch.Tensor, int]:
        """Read consecutive bytes as a tensor; returns their CRC-32 too."""
        data = torch.empty(spec.nbytes, dtype=torch.uint8)
        crc = 0
        for offset, piece in _pieces(memoryview(data.numpy())):
            self._fill(piece, start + offset)
            if self._header.crc32:
                crc = zlib.crc32(piece, crc)
        return data.view(spec.dtype).reshape(spec.shape), crc

    def _fill(self, view: memoryview, start: int) -> None:
        """Fill the view from byte `start` on; a read may return less than was asked for."""
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._file.fileno(), [view[done:]], start + done)
            except OSError as error:
                raise self._unreadable(error.strerror or str(error)) from error
            if not got:
                raise self._unreadable("it was cut short while it was open")
            done += got


def _pieces(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    for offset in range(0, len(view), PIECE_BYTES):
        yield offset, view[offset : offset + PIECE_BYTES]


def _recognize(head: bytes) -> tuple[str, str | None]:
    """Say what a file is that is no safetensors, and what to do about it if that is special."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "it is an HTML or XML page, perhaps an error message", None
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file it points to", "run git lfs pull"
    if head.startswith(b"GGUF"):
        return "it is a GGUF file", "give it the suffix .gguf"
    is_torch_zip = head.startswith(b"PK\x03\x04") and b"data.pkl" in head
    if is_torch_zip or head.startswith(_PICKLES):
        what = "it is a pickle / torch.save file, which can run code when opened"
        return what, "convert it to safetensors"
    if len(head) < LENGTH_BYTES:
        return f"it is truncated, only {len(head)} bytes are left", None
    return "it does not begin with the length of a header and a brace", None


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
            ValueError: what `quant.checkpoint.safetensors_header.encode` refuses.
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
