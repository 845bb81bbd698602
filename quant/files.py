"""What touches a path more than once: writing it whole, locking it, hashing it; and blocks of rows.

Files are whole or absent: written under a temporary name, then renamed. Content keys name what is
made by what it was made of: two things have the same key only if they have the same bytes.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from dit8.quant.errors import UserError

CHUNK_BYTES = 1 << 24  # large enough that hashing, not reading, is the limit

# Two changes within one tick of the file system's clock leave the same times, so a digest is kept
# only for files that have rested longer than any tick (2 s on FAT, otherwise milliseconds).
REST_NS = 3 * 10**9

B = TypeVar("B")
R = TypeVar("R")

_HASHED: dict[tuple, str] = {}  # of this process: what is hashed, with its stamps -> digest


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`.

    Args:
        path: the file to replace.
        write: called once with the temporary path.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full.
    """
    with whole_file(path) as temporary, writing(path):
        write(temporary)


@contextlib.contextmanager
def whole_file(path: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` if the `with` block ends well.

    A reader sees the old file or the new one; an interrupted write leaves the old one. Missing
    folders are made. Two writers of one path do not mix, the later rename wins. Errors inside the
    block pass unchanged: see `writing`.

    Args:
        path: the file to replace.
        needed_bytes: free on the disk, or nothing is begun.

    Raises:
        UserError: the folder cannot be made or written, or the disk is too full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
    with writing(path, needed_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed_bytes > _free_bytes(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        yield temporary
        with writing(path):
            temporary.chmod(0o644)  # some writers leave 0600, which breaks shared folders
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an operating system's error inside the `with` block into one sentence about `path`.

    Args:
        path: what is being written.
        needed_bytes: still to be written, for the message; 0: not known.

    Raises:
        UserError: in place of any OSError.
    """
    path = Path(path)
    try:
        yield
    except OSError as error:
        reason, remedy = error.strerror or str(error), "choose a folder that you may write to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = f"{needed_bytes} bytes are needed, " if needed_bytes else ""
            reason += f" ({needed}{_free_bytes(path)} are free)"
            remedy = "make room or choose a folder on another disk"
        raise UserError(f"write_atomically: cannot write {path}: {reason}; {remedy}") from error


def _writer() -> str:
    """Name this writer: two machines that share a disk may have processes of one number."""
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def _free_bytes(path: Path) -> int:
    """Return what is free on the disk of a path, which need not exist."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def locked(
    path: Path, waiting: Callable[[], None] = lambda: None, *, shared: bool = False
) -> Iterator[None]:
    """Hold the lock of a file: another file beside it, since itself is replaced.

    Args:
        path: what is locked; it need not exist.
        waiting: called once if another process holds the lock, before waiting for it.
        shared: others may hold it, too, as long as nobody holds it alone.

    Raises:
        UserError: the folder cannot be made or written, or its file system has no locks.
    """
    name = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = name.open("a+")  # NFS: reading for a shared lock, writing for the other
    except OSError as error:
        raise UserError(
            f"locked: cannot lock {path} ({error.strerror}), expected a writable folder;"
            " choose a folder that you may write to"
        ) from error
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with lock:
        try:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(lock, kind)
        except OSError as error:
            raise UserError(
                f"locked: cannot lock {path} ({error.strerror}), expected a file system with"
                " flock; mount it with locks (Lustre: option flock; NFS: without nolock), or"
                " choose a folder on another disk"
            ) from error
        yield


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: the value holds something JSON has no exact form for (a path, a nan).
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"canonical_json: the value is no strict JSON: {error}") from error


def content_key(value: Any) -> str:
    """Hash a JSON value, whatever the order of its keys.

    Returns:
        the first 12 hexadecimal digits of SHA-256 over `canonical_json`: 48 bits, a collision is
        unlikely below ten million keys.

    Raises:
        ValueError: as `canonical_json`.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


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


def file_sha256(path: Path | str) -> str:
    """Hash one file's content; like `files_sha256` it reads an unchanged file once.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: the file cannot be read.
    """

    def read() -> str:
        digest = hashlib.sha256()
        _update(digest, Path(path))
        return digest.hexdigest()

    try:
        return _known(("file",), [Path(path)], read)
    except OSError as error:
        raise UserError(
            f"file_sha256: cannot hash {path} ({error.strerror}), expected a readable file"
        ) from error


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


def over_blocks(function: Callable[[B], R], blocks: Iterable[B]) -> list[R]:
    """Map a function over blocks of rows on all cores, in order: one core a block.

    torch's own parallelism splits every small operation over the cores and waits for the slowest;
    on two cores with other work that took ten times as long. Whole blocks side by side have no
    barrier inside, and torch releases the interpreter in its operations.

    Args:
        function: must not change anything that another block's call reads.
        blocks: such as `StoredWeight.blocks()`.

    Raises:
        whatever the function raises, for the first block that fails.
    """
    blocks = list(blocks)
    if len(blocks) < 2:
        return [function(block) for block in blocks]
    import torch  # seconds: nothing else here needs it

    return list(_pool(torch.get_num_threads()).map(function, blocks))


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    import torch

    # the number of threads inside an operation is a property of the calling thread
    return ThreadPoolExecutor(workers, "rows", initializer=torch.set_num_threads, initargs=(1,))
