"""Write a GGUF file tensor by tensor: whole or absent, never half.

The header is made by the package gguf, so that it is what its own readers expect; the data is
appended here, since that package reports a full disk without saying so. Names, kinds and shapes are
known beforehand, and a tensor is made when its turn comes: a file of any size takes the memory of
its largest tensor. The checksums go in last, over digits that were left blank (see
`quant.gguf_header`).
"""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from dit8.quant.errors import UserError
from dit8.quant.files import whole_file, writing
from dit8.quant.gguf_header import ALIGNMENT, CHECKSUMS, KINDS, checksum_text
from dit8.quant.types import TensorSpec

PIECE_BYTES = 16 << 20  # of one pwrite; the CRC finds the piece in the cache
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
        kind: a key of `quant.gguf_header.KINDS`.
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
