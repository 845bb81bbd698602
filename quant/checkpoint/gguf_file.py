"""Read and write a GGUF file tensor by tensor, with pread and pwrite.

Quantized tensors come as their raw blocks, in bytes; what these mean is the affair of
`quant.formats`. The file is never mapped: touched pages of a map count as memory of the process.

A written file is whole or absent, never half. Its header is made by the package gguf, so that it is
what its own readers expect; the data is appended here, since that package reports a full disk
without saying so. Names, kinds and shapes are known beforehand, and a tensor is made when its turn
comes: a file of any size takes the memory of its largest tensor. The checksums go in last, over
digits that were left blank (see gguf_header.py).
"""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dit8.quant.checkpoint.gguf_header import (
    ALIGNMENT,
    CHECKSUMS,
    KINDS,
    MAGIC,
    GgufEntry,
    GgufError,
    GgufHeader,
    checksum_text,
    parse,
)
from dit8.quant.errors import UserError
from dit8.quant.files import whole_file, writing
from dit8.quant.types import TensorSpec

PIECE_BYTES = 16 << 20  # of one pread or pwrite: enough for any disk, in the cache for the CRC


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


# general.file_type, what most of the bytes are: members of gguf.LlamaFileType. Q4_K_S is the mix
# of llama.cpp that has Q4_K in every layer.
FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
    "Q4_K": "MOSTLY_Q4_K_S",
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor to be written.

    Args:
        name: in the file.
        kind: a key of `quant.checkpoint.gguf_header.KINDS`.
        spec: of what `make` returns: blocks are (N, bytes of a row) uint8.
        make: called once, when it is this tensor's turn; the result may be on any device.
    """

    name: str
    kind: str
    spec: TensorSpec
    make: Callable[[], torch.Tensor]


def write_gguf(
    path: str | Path,
    tensors: Sequence[GgufTensor],
    metadata: Mapping[str, str],
    *,
    architecture: str = "ideogram4",
    name: str = "",
) -> None:
    """Write a file; equal content gives equal bytes.

    Args:
        path: the .gguf file; missing folders are made, an old file is replaced.
        tensors: in the order in which they are made and stored.
        metadata: texts; an entry "dit8" holds the JSON of this project. Checksums are added.
        architecture: general.architecture.
        name: general.name; left out if empty.

    Raises:
        UserError: the package gguf is missing, the disk is full or cannot be written, or what a
            `make` raises.
        ValueError: names that repeat, or a tensor that is not what its spec says.
    """
    package = _import_gguf()
    for tensor in tensors:
        _check(tensor)
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        raise ValueError(f"write_gguf: {path} must get every name once, got one twice")
    entries = {
        **metadata,
        **({"general.name": name} if name else {}),
        CHECKSUMS: checksum_text(names),
    }
    padded = sum(_padded(tensor) for tensor in tensors)
    with whole_file(path, padded) as temporary:
        with writing(path):
            _write_header(package, temporary, tensors, entries, architecture)
            file = FileIO(temporary, "r+")
        with file:
            header = file.readall()
            _write_data(file, path, tensors, header, padded)


def _write_data(
    file: FileIO, path: str | Path, tensors: Sequence[GgufTensor], header: bytes, missing: int
) -> None:
    """Append the tensors to the header, then fill the checksums in."""
    start, crc32 = -(-len(header) // ALIGNMENT) * ALIGNMENT, {}
    for tensor in tensors:
        crc32[tensor.name] = _write_tensor(file, path, tensor, start, missing)
        start, missing = start + _padded(tensor), missing - _padded(tensor)
    names = [tensor.name for tensor in tensors]
    blank = checksum_text(names).encode()
    place = header.index(blank)
    _put(file, path, checksum_text(names, zlib.crc32(header), crc32).encode(), place, missing)
    with writing(path):
        os.ftruncate(file.fileno(), start)  # the gap behind the last tensor, too
        os.fsync(file.fileno())


def _import_gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            f"write_gguf: writing needs the package gguf, got {error}; run pip install 'dit8[gguf]'"
        ) from error
    return gguf


def _check(tensor: GgufTensor) -> None:
    kind, spec = KINDS.get(tensor.kind), tensor.spec
    if kind is None or spec.dtype != kind.dtype or not 1 <= len(spec.shape) <= 4:
        raise ValueError(
            f"write_gguf: {tensor.name!r} must be of a kind {', '.join(KINDS)} in its dtype with 1 "
            f"to 4 dimensions, got {tensor.kind} {spec.dtype} {spec.shape}"
        )
    if kind.values > 1 and spec.shape[-1] % kind.nbytes:
        raise ValueError(
            f"write_gguf: {tensor.name!r} must have rows of whole blocks of {kind.nbytes} bytes, "
            f"got {spec.shape}"
        )


def _write_header(
    package: ModuleType,
    path: Path,
    tensors: Sequence[GgufTensor],
    entries: Mapping[str, str],
    architecture: str,
) -> None:
    sizes: dict[str, int] = {}
    writer = package.GGUFWriter(path, architecture)
    for tensor in tensors:
        kind, spec = KINDS[tensor.kind], tensor.spec
        # As bytes, for every kind: numpy has no bf16, and gguf divides by the size of a block.
        shape = (*spec.shape[:-1], spec.shape[-1] * spec.dtype.itemsize)
        number = package.GGMLQuantizationType(kind.number)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), spec.nbytes, number)
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + spec.nbytes
    main = max(sizes, key=sizes.__getitem__, default="F32")
    writer.add_file_type(package.LlamaFileType[FILE_TYPES[main]])
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
    for key, text in entries.items():
        writer.add_string(key, text)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _padded(tensor: GgufTensor) -> int:
    return -(-tensor.spec.nbytes // ALIGNMENT) * ALIGNMENT


def _write_tensor(
    file: FileIO, path: str | Path, tensor: GgufTensor, start: int, missing: int
) -> int:
    """Make one tensor, write it, forget it; returns its CRC-32."""
    made, spec = tensor.make(), tensor.spec
    if tuple(made.shape) != spec.shape or made.dtype != spec.dtype:
        raise ValueError(
            f"write_gguf: {tensor.name!r} must be made as {spec.shape} {spec.dtype}, got "
            f"{tuple(made.shape)} {made.dtype}"
        )
    flat = made.detach().cpu().contiguous().flatten()
    data, crc = memoryview(flat.view(torch.uint8).numpy()), 0
    for offset in range(0, len(data), PIECE_BYTES):
        piece = data[offset : offset + PIECE_BYTES]
        _put(file, path, piece, start + offset, missing)
        crc = zlib.crc32(piece, crc)
    return crc


def _put(
    file: FileIO, path: str | Path, view: memoryview | bytes, start: int, missing: int
) -> None:
    """Write a view from byte `start` on; a write may take less than it was given."""
    done = 0
    while done < len(view):
        with writing(path, missing):
            done += os.pwrite(file.fileno(), view[done:], start + done)
