"""Content keys: two things have the same key only if they have the same bytes."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 24  # large enough that hashing, not reading, is the limit

# Two changes within one tick of the file system's clock leave the same times, so a digest is kept
# only for files that have rested longer than any tick (2 s on FAT, otherwise milliseconds).
REST_NS = 3 * 10**9

_HASHED: dict[tuple, str] = {}  # of this process: what is hashed, with its stamps -> digest


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

    Files that this process has hashed before and whose stamp is still the same are not read again:
    the cells of a sweep ask for the same tens of gigabytes.

    Returns:
        64 hexadecimal digits.
    """
    named = [(path.relative_to(root).as_posix(), path) for path in paths]

    def read() -> str:
        digest = hashlib.sha256()
        for name, path in named:
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            _update(digest, path)
        return digest.hexdigest()

    return _known(("files", *(name for name, _ in named)), [path for _, path in named], read)


def file_sha256(path: Path) -> str:
    """Hash one file's content; like `files_sha256` it reads an unchanged file once.

    Returns:
        64 hexadecimal digits.
    """

    def read() -> str:
        digest = hashlib.sha256()
        _update(digest, path)
        return digest.hexdigest()

    return _known(("file",), [path], read)


def _known(label: tuple, paths: list[Path], read: Callable[[], str]) -> str:
    """Return the digest kept for files with these stamps, or read it.

    A replaced file has another inode; one written in place has another time of change, which,
    unlike the time of modification, nobody can set back.
    """
    found = [path.stat() for path in paths]
    stamps = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found]
    key = (*label, *stamps)
    if key in _HASHED:
        return _HASHED[key]
    digest = read()
    if all(time.time_ns() - status.st_ctime_ns > REST_NS for status in found):
        _HASHED[key] = digest
    return digest


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
