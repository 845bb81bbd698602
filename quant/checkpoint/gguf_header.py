"""The header of a GGUF file: bytes -> metadata and the place of every tensor; opens no file.

    file = "GGUF" | version | number of tensors | number of entries | entries | tensors | gap | data
    entry = key, type, value        tensor = name, dimensions, type, offset from the start of data

(ggml's docs/gguf.md), little-endian. Dimensions stand fastest first, so that a torch weight (N, K)
is written K, N. Everything that a header claims is checked before any of it is used.

Parsed here and not by gguf.GGUFReader, which would make the package a need of every reader for the
sake of a few structs, and which calls a download that broke off an array that cannot be reshaped.
The tests compare the two.

Checksums. A file of this project has an entry "dit8.crc32" with the CRC-32 of every tensor's bytes
and that of the header, taken with all these digits zero. Files of other programs have none and are
taken as they are.
"""

import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dit8.quant.types import TensorSpec

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 had lengths of 32 bits
ALIGNMENT = 32  # of tensors, unless the entry general.alignment says otherwise
MAX_HEADER_BYTES = 100_000_000  # a damaged length must not fill the memory
ENTRY = "dit8"
CHECKSUMS = "dit8.crc32"
BLANK = "0" * 8  # stands for a checksum that is not known yet


@dataclass(frozen=True)
class Kind:
    """A tensor type of ggml: `values` neighbours of a row take `nbytes` bytes."""

    number: int
    values: int
    nbytes: int
    dtype: torch.dtype  # of the tensor in torch; blocks stay bytes


KINDS = {
    "F32": Kind(0, 1, 4, torch.float32),
    "F16": Kind(1, 1, 2, torch.float16),
    "BF16": Kind(30, 1, 2, torch.bfloat16),
    "Q8_0": Kind(8, 32, 34, torch.uint8),
    "Q4_K": Kind(12, 256, 144, torch.uint8),
}
_NAMES = {kind.number: name for name, kind in KINDS.items()}
# What other programs write and dit8 does not read: for the message.
FOREIGN_KINDS = dict(
    zip(
        (*range(2, 4), 6, 7, *range(9, 12), *range(13, 30), 34, 35, 39),
        "Q4_0 Q4_1 Q5_0 Q5_1 Q8_1 Q2_K Q3_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL "
        "IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M TQ1_0 TQ2_0 MXFP4".split(),
        strict=True,
    )
)
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # types of values, as structs
_STRING, _ARRAY = 8, 9


class GgufError(Exception):
    """What is wrong with a header, as a clause that follows "is not a readable GGUF file: "."""


@dataclass(frozen=True)
class GgufEntry:
    """Where a tensor lies."""

    kind: str  # a key of KINDS
    shape: tuple[int, ...]  # of the weight, as torch has it: (N, K)
    start: int  # first byte, from the start of the file

    @property
    def spec(self) -> TensorSpec:
        """Shape and dtype as stored: (N, bytes of a row) uint8 for blocks."""
        return stored_spec(self.kind, self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a header says."""

    tensors: dict[str, GgufEntry]  # in file order
    metadata: dict[str, Any]  # text, number, bool, or a list of one of them; without checksums
    crc32: dict[str, str]  # name -> 8 hexadecimal digits; empty: the file has no checksums


def stored_spec(kind: str, shape: tuple[int, ...]) -> TensorSpec:
    """Return shape and dtype in which a weight of a kind is stored."""
    how = KINDS[kind]
    if how.values > 1:
        shape = (*shape[:-1], shape[-1] // how.values * how.nbytes)
    return TensorSpec(shape, how.dtype)


def parse(read: Callable[[int, int], bytes], size: int) -> GgufHeader:
    """Check a header and read it.

    Args:
        read: (first byte, count) -> bytes of the file.
        size: of the file, bytes.

    Returns:
        the header.

    Raises:
        GgufError: it is damaged, does not fit the file, or has a tensor type that dit8 cannot read.
    """
    cursor = _Cursor(read, size)
    cursor.take(len(MAGIC))
    version = cursor.unpack("I")[0]
    if version not in VERSIONS:
        order = " (big-endian?)" if version & 0xFFFF == 0 else ""
        raise GgufError(f"it must be of version 2 or 3, got {version}{order}")
    tensor_count, entry_count = cursor.unpack("QQ")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.text()
        if key in metadata:
            raise GgufError(f"it has the metadata key {key!r} twice")
        metadata[key] = cursor.value(cursor.unpack("I")[0])
    found = []
    for _ in range(tensor_count):
        name, rank = cursor.text(), cursor.unpack("I")[0]
        found.append((name, cursor.unpack(f"{rank}Q")[::-1], *cursor.unpack("IQ")))
    crc32 = _take_checksums(metadata, cursor.buffer[: cursor.at])
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise GgufError(f"its general.alignment must be a positive number, got {alignment!r}")
    data = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufEntry] = {}
    for name, shape, number, offset in found:
        if name in tensors:
            raise GgufError(f"it has the tensor {name!r} twice")
        tensors[name] = GgufEntry(_kind(name, shape, number), shape, data + offset)
    _check_places(tensors, size)
    return GgufHeader(tensors, metadata, crc32)


class _Cursor:
    """Walks through the start of a file and reads on when it gets there."""

    STEP = 2**18  # bytes a read; the header of 1000 tensors takes 100 kB

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self.read, self.size = read, size
        self.buffer, self.at = bytearray(), 0

    def need(self, count: int) -> None:
        """Make sure that so many bytes follow."""
        if self.at + count > self.size:
            raise GgufError(f"it is truncated, its header goes on after its {self.size} bytes")
        if self.at + count > MAX_HEADER_BYTES:
            raise GgufError(f"its header is damaged (more than {MAX_HEADER_BYTES} bytes long)")

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self.need(count)
        start, end = self.at, self.at + count
        if end > len(self.buffer):
            more = min(max(self.STEP, end - len(self.buffer)), self.size - len(self.buffer))
            self.buffer += self.read(len(self.buffer), more)
        self.at = end
        return bytes(self.buffer[start:end])

    def unpack(self, letters: str) -> tuple[Any, ...]:
        """Return the next values of a struct."""
        return struct.unpack(f"<{letters}", self.take(struct.calcsize(f"<{letters}")))

    def text(self) -> str:
        """Return the next text: its length, then UTF-8."""
        raw = self.take(self.unpack("Q")[0])
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise GgufError(f"its header is damaged ({raw[:40]!r} is no UTF-8)") from error

    def value(self, kind: int) -> Any:
        """Return the next metadata value, of the given type."""
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.text()
        of, count = self.unpack("IQ") if kind == _ARRAY else (kind, 0)
        if of in _SCALARS:
            self.need(count * struct.calcsize(_SCALARS[of]))  # a struct this long may not exist
            return list(self.unpack(f"{count}{_SCALARS[of]}"))
        if of == _STRING:
            return [self.text() for _ in range(count)]
        raise GgufError(f"its header is damaged (no type of metadata has the number {of})")


def _kind(name: str, shape: tuple[int, ...], number: int) -> str:
    """Name a tensor's type, if dit8 can read it and the shape fits."""
    if number not in _NAMES:
        kind = FOREIGN_KINDS.get(number, f"number {number}")
        raise GgufError(
            f"tensor {name!r} must be of type {', '.join(KINDS)}, got {kind}, which dit8 does not "
            "read"
        )
    values = KINDS[_NAMES[number]].values
    if not shape or shape[-1] % values:
        raise GgufError(
            f"tensor {name!r} of type {_NAMES[number]} must have rows of a multiple of {values} "
            f"values, got shape {shape}"
        )
    return _NAMES[number]


def _check_places(tensors: dict[str, GgufEntry], size: int) -> None:
    """Refuse tensors that overlap or end beyond the file."""
    end, before = 0, ""
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].start):
        if entry.start < end:
            raise GgufError(f"tensor {name!r} begins inside {before!r}")
        end, before = entry.start + entry.spec.nbytes, name
    if end > size:
        raise GgufError(f"it is truncated, {end - size} of {end} bytes are missing")


def checksum_text(names: list[str], header: int = 0, crc32: dict[str, int] | None = None) -> str:
    """Build the entry with the checksums; its length does not depend on them."""
    tensors = {name: f"{(crc32 or {}).get(name, 0):08x}" for name in names}
    return json.dumps({"header": f"{header:08x}", "tensors": tensors})


def _take_checksums(metadata: dict[str, Any], raw: bytes) -> dict[str, str]:
    """Move the checksums out of the metadata, and compare that of the header."""
    text = metadata.pop(CHECKSUMS, None)
    if text is None and ENTRY not in metadata:
        return {}
    try:
        stated = json.loads(text)
        header, tensors = stated["header"], dict(stated["tensors"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise GgufError(f"its header is damaged (no checksums in {CHECKSUMS})") from error
    blank = re.sub(r': "[0-9a-f]{8}"', f': "{BLANK}"', text)
    crc = zlib.crc32(raw.replace(text.encode(), blank.encode(), 1))
    if f"{crc:08x}" != header:
        raise GgufError(
            f"its header is damaged (checksum {crc:08x}, expected {header}), or another program "
            "rewrote it"
        )
    return tensors
