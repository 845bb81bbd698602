"""Content keys: two things have the same key only if they have the same bytes."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 24  # large enough that hashing, not reading, is the limit


def content_key(value: Any) -> str:
    """Hash a JSON value, whatever the order of its keys.

    Returns:
        the first 12 hexadecimal digits of SHA-256 over the canonical text.

    Raises:
        TypeError: the value is not JSON; ValueError: it holds NaN or infinity.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def files_sha256(paths: Iterable[Path], *, root: Path) -> str:
    """Hash files with their names relative to `root` and their lengths, in the order given.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in paths:
        header = f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0"
        digest.update(header.encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
