"""Files that are whole or absent: written under a temporary name, then renamed."""

import errno
import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dit8.quant.errors import UserError


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


@contextmanager
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


@contextmanager
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
