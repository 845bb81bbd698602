"""Read a safetensors file tensor by tensor, with pread straight into the tensor's own memory.

The safetensors package maps the file. Mapped pages that have been touched count as memory of the
process, so that a conversion of 20 GB seems to need 20 GB, and a disk error or a file cut short
under a map ends the process with a signal. Here a tensor costs its own bytes and no more, and
whatever goes wrong is one sentence.

A file of this project carries a CRC-32 of every tensor, which `read` compares.
"""

import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from dit8.quant.errors import UserError
from dit8.quant.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    Header,
    HeaderError,
    decode,
)
from dit8.quant.types import TensorSpec

PIECE_BYTES = 16 << 20  # of one pread: large enough for any disk, still in the cache for the CRC
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
