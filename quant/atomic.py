"""Files that are whole or absent: written under a temporary name, then renamed."""

import os
from collections.abc import Callable
from pathlib import Path

from quant.errors import UserError


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`.

    A reader sees the old file or the new one; an interrupted write leaves the old one. Missing
    folders are made. Two writers of one path do not mix, the later rename wins.

    Args:
        path: the file to replace.
        write: called once with the temporary path.

    Raises:
        UserError: the folder cannot be made or written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            temporary.chmod(0o644)  # some writers leave 0600, which breaks shared folders
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"write_atomically: cannot write {path}: {error.strerror or error}; "
            "choose a folder that you may write to"
        ) from error
