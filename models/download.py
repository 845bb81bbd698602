"""Fetch a listed model into a folder: resumable, and checked byte for byte.

The hub's client gives a growing file a name of its own and deletes it when it is interrupted, so a
killed download of a 9 GB shard starts again at zero. Here a file grows in
`<folder>/.download/<hash>.part` and goes on where it stopped, less the chunk of up to 10 MB that
had not come whole; the hub's listing gives the SHA-256 (or git's SHA-1, for small files) that it
must have before it gets its name. `model_index.json` comes last: a folder without it is no model
to any other script.
"""

import fcntl
import hashlib
import json
import shutil
from pathlib import Path
from typing import BinaryIO

from dit8.models.hub import Listing, RemoteFile, get_file
from dit8.models.model_folder import INDEX
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

RECORD = "download.json"
PARTS = ".download"
CHUNK_BYTES = 1 << 24


def check_folder(listing: Listing, folder: Path) -> int:
    """Make sure that the folder can take the files.

    Returns:
        the bytes that have yet to come.

    Raises:
        UserError: the folder holds something else, or its disk is too small.
    """
    holds = _recorded(folder)
    if folder.exists() and holds != listing.repo and (folder.is_file() or any(folder.iterdir())):
        raise UserError(
            f"{folder} must be empty or hold {listing.repo}, got "
            f"{holds or 'something that this script did not fetch'}; choose another folder with "
            "--to, or delete this one"
        )
    listed = {folder / file.path for file in listing.files}
    for path in sorted(folder.rglob("*.safetensors")):
        if path not in listed:  # a shard of an older commit would be loaded with the new ones
            raise UserError(
                f"{path} must be a file of {listing.repo}, which lists none of that name; delete it"
            )
    missing = 0
    for file in listing.files:
        target, part = folder / file.path, _part(folder, file)
        if not (target.is_file() and target.stat().st_size == file.size):
            missing += max(0, file.size - (part.stat().st_size if part.is_file() else 0))
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if missing > free:
        raise UserError(
            f"the disk of {folder} must have {missing / 1e9:.2f} GB free for "
            f"{listing.repo}, got {free / 1e9:.2f} GB; free some, or choose another with --to"
        )
    return missing


def _recorded(folder: Path) -> str | None:
    """Name the repository that a folder was fetched from."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))["repository"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fetch(listing: Listing, folder: Path, token: str | None) -> int:
    """Fetch what is not there yet; every file gets its name when its hash is right.

    Args:
        listing: from `list_repository`, agreed to.
        folder: from `check_folder`.
        token: of the hub.

    Returns:
        bytes that came over the network.

    Raises:
        UserError: the connection or the disk fails, or a file arrives damaged. What has come
            stays, and the same call goes on.
    """
    record = {"repository": listing.repo, "commit": listing.commit}
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(folder / RECORD, lambda partial: partial.write_text(text, encoding="utf-8"))
    came = 0
    for file in listing.files:
        target = folder / file.path
        if target.is_file() and _digest(target, file) == file.digest:
            continue
        (folder / INDEX).unlink(missing_ok=True)  # until all is there, the folder is no model
        came += _fetch_file(listing, folder, file, token)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return came


def _fetch_file(listing: Listing, folder: Path, file: RemoteFile, token: str | None) -> int:
    part, target = _part(folder, file), folder / file.path
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            _lock(stream, folder)
            start = stream.tell()
            if start > file.size:
                stream.truncate(start := 0)
            get_file(listing.repo, listing.commit, file, token, stream, start)
        if _digest(part, file) != file.digest:
            part.unlink()
            raise UserError(
                f"{file.path} must have hash {file.digest}, what came has another and "
                "was deleted; run the same command again"
            )
        part.replace(target)
    except OSError as error:
        if error.errno is None:  # the hub's client found more or fewer bytes than listed
            raise UserError(
                f"{file.path} must have {file.size} bytes, other bytes came; run the "
                "same command again"
            ) from error
        raise UserError(
            f"cannot write {target} ({error.strerror}); make room or choose another "
            "folder with --to, what has come is kept"
        ) from error
    return file.size - start


def _lock(stream: BinaryIO, folder: Path) -> None:
    """Refuse two downloads into one file; the lock ends with the process."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process is fetching into {folder}; wait for it or stop it"
        ) from error


def _part(folder: Path, file: RemoteFile) -> Path:
    return folder / PARTS / f"{file.digest}.part"


def _digest(path: Path, file: RemoteFile) -> str:
    """Hash a local file the way the hub hashed the remote one."""
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
