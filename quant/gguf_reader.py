"""Read a GGUF file tensor by tensor, with pread straight into the tensor's own memory.

Quantized tensors come as their raw blocks, in bytes; what these mean is the affair of
`quant.formats`. The file is never mapped: touched pages of a map count as memory of the process.
"""

import os
import zlib
from pathlib import Path
from typing import Any

import torch

from dit8.quant.errors import UserError
from dit8.quant.gguf_header import MAGIC, GgufEntry, GgufError, GgufHeader, parse
from dit8.quant.types import TensorSpec

PIECE_BYTES = 16 << 20  # of one pread: large enough for any disk, still in the cache for the CRC


class GgufFile:
    """An open GGUF file whose header has been checked.

    Attributes:
        tensors: name -> kind, shape and place, in file order.
        metadata: key -> text, number, bool, or a list of one of them; checksums left out.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        remedy: str = "download it again, or make it with scripts/quantize.py",
    ) -> None:
        """Open the file and check its header.

        Args:
            path: the file.
            remedy: what the user should do if it cannot be read, for the message.

        Raises:
            UserError: no such file, something else than a GGUF, a damaged header, or a tensor type
                that dit8 cannot read.
        """
        self._path, self._remedy = Path(path), remedy
        try:
            if not self._path.exists():
                raise UserError(f"GgufFile: no file at {path}; {remedy}")
            if not self._path.is_file():  # opening a pipe would wait for ever
                what = "a folder" if self._path.is_dir() else "not a regular file"
                raise self._unreadable(f"it is {what}")
            self._file = open(self._path, "rb", buffering=0)
            try:
                self._header = self._parse()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        self.tensors: dict[str, GgufEntry] = self._header.tensors
        self.metadata: dict[str, Any] = self._header.metadata

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of what `read` returns.

        Raises:
            ValueError: the file has no tensor of that name.
        """
        if name not in self.tensors:
            raise ValueError(f"GgufFile: no tensor {name!r} in {self._path}")
        return self.tensors[name].spec

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor to the CPU and compare its checksum, if the file has one.

        Returns:
            (N, K) fp32, fp16 or bf16, or blocks (N, bytes of a row) uint8.

        Raises:
            UserError: the tensor is damaged, or the disk fails.
            ValueError: the file has no tensor of that name, or is closed.
        """
        spec = self.spec(name)
        data = torch.empty(spec.nbytes, dtype=torch.uint8)
        view, crc = memoryview(data.numpy()), 0
        for offset in range(0, len(view), PIECE_BYTES):
            piece = view[offset : offset + PIECE_BYTES]
            self._fill(piece, self.tensors[name].start + offset)
            if self._header.crc32:
                crc = zlib.crc32(piece, crc)
        expected = self._header.crc32.get(name)
        if expected is not None and f"{crc:08x}" != expected:
            raise UserError(
                f"GgufFile: tensor {name!r} of {self._path} is damaged (checksum {crc:08x}, "
                f"expected {expected}); {self._remedy}"
            )
        return data.view(spec.dtype).view(spec.shape)

    def close(self) -> None:
        """Close the file; tensors that were read stay."""
        self._file.close()

    def __enter__(self) -> "GgufFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _unreadable(self, reason: str) -> UserError:
        return UserError(
            f"GgufFile: {self._path} is not a readable GGUF file: {reason}; {self._remedy}"
        )

    def _parse(self) -> GgufHeader:
        size = os.fstat(self._file.fileno()).st_size
        head = self._bytes(0, min(size, 512))
        if not size:
            raise self._unreadable("it is empty")
        if not head.startswith(MAGIC):
            raise self._unreadable(_recognize(head))
        try:
            return parse(self._bytes, size)
        except GgufError as error:
            raise self._unreadable(str(error)) from error

    def _bytes(self, start: int, count: int) -> bytes:
        data = bytearray(count)
        self._fill(memoryview(data), start)
        return bytes(data)

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


def _recognize(head: bytes) -> str:
    """Say what a file is that is no GGUF."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "it is an HTML or XML page, perhaps an error message"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file it points to (run git lfs pull)"
    if head[8:9] == b"{":
        return "it looks like a safetensors file (give it the suffix .safetensors)"
    return f"it must begin with {MAGIC!r}, got {head[:4]!r}"
