"""The header of a safetensors file: bytes <-> specs, offsets, metadata, checksums; opens no file.

    file = length n (8 bytes, little endian) | n bytes of JSON, "{" first | tensors, without gaps
    JSON = {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [start, end]}}

(format description in the README of huggingface/safetensors). Offsets count from the end of the
JSON. Everything that a header claims is checked before any of it is used.

Order. Tensors lie by falling item size, then by name, so that each starts at a multiple of its item
size: programs that map a file use the values where they lie. Metadata is sorted. Equal content
therefore gives equal bytes, and the hash of a file names it.

Checksums. A metadata entry "dit8" holds the JSON of this project, and to it are added "crc32", the
CRC-32 of every tensor's bytes, and "header_crc32", that of the header with its own eight digits
zero. Whichever single bit of the header flips, one of the two no longer fits. Files of other
programs have no such entry and are taken as they are.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dit8.quant.types import TensorSpec

ENTRY = "dit8"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_BLANK = "0" * 8
_OWN_CRC = rb"\"header_crc32\": \""  # as it stands in the file: JSON inside a JSON string


class HeaderError(Exception):
    """What is wrong with a header, as a clause that follows "is not a readable file: "."""


@dataclass(frozen=True)
class Header:
    """What a header says."""

    specs: dict[str, TensorSpec]  # in file order
    starts: dict[str, int]  # first byte of each tensor, from the start of the file
    metadata: dict[str, str]  # as given to the writer: without checksums
    crc32: dict[str, str]  # name -> 8 hexadecimal digits; empty: the file has no checksums


def encode(
    specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], crc32: Mapping[str, int]
) -> bytes:
    """Build the header, length included, padded so that the tensors start at a multiple of 8.

    Args:
        specs: of every tensor.
        metadata: any; with an entry "dit8" (a JSON object) the file gets checksums.
        crc32: of the tensors' bytes, 0 where missing; the length of the header does not depend on
            them.

    Returns:
        the bytes in front of the first tensor.

    Raises:
        ValueError: a dtype that the format lacks, a name that it reserves, or a "dit8" entry that
            is no JSON object without checksums.
    """
    metadata = dict(sorted(metadata.items()))
    if ENTRY in metadata:
        metadata[ENTRY] = _with_checksums(metadata[ENTRY], {n: crc32.get(n, 0) for n in specs})
    entries: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    position = 0
    for name in sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name)):
        spec = specs[name]
        if name == _METADATA or spec.dtype not in _NAMES:
            raise ValueError(
                f"encode: tensor {name!r} must have a type of {', '.join(DTYPES)} and another name "
                f"than {_METADATA}, got {spec.dtype}"
            )
        entries[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(LENGTH_BYTES, "little") + text
    if ENTRY not in metadata:
        return raw
    if raw.count(_OWN_CRC) != 1:
        raise ValueError(f"encode: only {ENTRY!r} may speak of header_crc32, got it elsewhere too")
    before, own, after = raw.partition(_OWN_CRC)
    return before + own + _hex(zlib.crc32(raw)).encode() + after[len(_BLANK) :]


def decode(raw: bytes, data_bytes: int) -> Header:
    """Check a header and read it.

    Args:
        raw: the header, length included.
        data_bytes: that follow it in the file.

    Returns:
        the header.

    Raises:
        HeaderError: it is damaged, or does not fit what follows it.
    """
    has_crc = _check_own_crc(raw)
    try:
        entries = json.loads(raw[LENGTH_BYTES:].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header is not JSON ({error})") from error
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError(f"its {_METADATA} must map strings to strings")
    placed = sorted(
        ((*_place(name, entry), name) for name, entry in entries.items()),
        key=lambda place: place[:2],
    )
    specs, starts, position = {}, {}, 0
    for start, end, spec, name in placed:
        if start != position:
            how = "overlaps the one before" if start < position else "leaves a gap before it"
            raise HeaderError(
                f"tensor {name!r} {how}: it starts at byte {start} of the data, expected {position}"
            )
        specs[name], starts[name], position = spec, len(raw) + start, end
    if data_bytes < position:
        raise HeaderError(
            f"it is truncated, {position - data_bytes} of {len(raw) + position} bytes are missing"
        )
    if data_bytes > position:
        raise HeaderError(f"{data_bytes - position} bytes too many follow its last tensor")
    metadata, crc32 = _without_checksums(metadata)
    if has_crc != (crc32 is not None) or (crc32 is not None and crc32.keys() != specs.keys()):
        raise HeaderError("its header is damaged (checksums and tensors do not belong together)")
    return Header(specs, starts, metadata, crc32 or {})


def _place(name: str, entry: Any) -> tuple[int, int, TensorSpec]:
    """Check one tensor's entry by itself; returns its first byte, its end and its spec."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise HeaderError(
            f"tensor {name!r} must have a shape and two data_offsets, got {str(entry)[:80]!r}"
        )
    dtype = DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        raise HeaderError(
            f"tensor {name!r} must have a type of {', '.join(DTYPES)}, got {fields.get('dtype')!r}"
        )
    spec = TensorSpec(tuple(shape), dtype)
    start, end = offsets
    if end - start != spec.nbytes:
        raise HeaderError(
            f"tensor {name!r} of shape {spec.shape} needs {spec.nbytes} bytes, its offsets give "
            f"{end - start}"
        )
    return start, end, spec


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HeaderError("its header says something twice")
    return found


def _hex(crc: int) -> str:
    return f"{crc:08x}"


def _with_checksums(text: str, crc32: Mapping[str, int]) -> str:
    content = json.loads(text)
    if not isinstance(content, dict) or not content.keys().isdisjoint(("crc32", "header_crc32")):
        raise ValueError(
            f"encode: metadata {ENTRY!r} must be a JSON object without crc32 and header_crc32, got "
            f"{text[:80]!r}"
        )
    content |= {"crc32": {n: _hex(crc) for n, crc in crc32.items()}, "header_crc32": _BLANK}
    return json.dumps(content, sort_keys=True, allow_nan=False)


def _without_checksums(metadata: dict[str, str]) -> tuple[dict[str, str], dict[str, str] | None]:
    """Split the checksums off, None where there are none."""
    if ENTRY not in metadata:
        return metadata, None
    try:
        content = json.loads(metadata[ENTRY])
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its metadata {ENTRY!r} must be JSON ({error})") from error
    if not isinstance(content, dict):
        raise HeaderError(f"its metadata {ENTRY!r} must be a JSON object")
    if not isinstance(content.get("crc32"), dict):
        return metadata, None
    crc32 = content.pop("crc32")
    content.pop("header_crc32", None)
    return metadata | {ENTRY: json.dumps(content, sort_keys=True)}, crc32


def _check_own_crc(raw: bytes) -> bool:
    """Compare the header's checksum, if it has one, and tell whether it has."""
    before, own, after = raw.partition(_OWN_CRC)
    if not own:
        return False
    stated = after[: len(_BLANK)].decode("ascii", "replace")
    blank = before + own + _BLANK.encode() + after[len(_BLANK) :]
    if _hex(zlib.crc32(blank)) != stated:
        raise HeaderError(
            f"its header is damaged (checksum {_hex(zlib.crc32(blank))}, expected {stated}), or "
            "another program rewrote it"
        )
    return True
