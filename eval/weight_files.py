"""Find the weights of a scorer on this machine and prove which file they are.

Nothing is downloaded here: a scorer that fetched 4 GB by itself would surprise, and one that took
another revision would change a score. A file comes from a path, or from the hub's cache where
`hf download` has put it; so scoring is offline whether or not HF_HUB_OFFLINE is set.

The cache stores a large file under the SHA-256 that the hub announced for it. Hashing the file and
comparing proves that it arrived whole, without a list of hashes of our own.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from dit8.quant.errors import UserError
from dit8.quant.files import file_sha256

BLOB = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFiles:
    """What a scorer needs of one repository of the hub.

    Args:
        repo: owner/name.
        files: one tuple of alternatives for each file needed; the first that is there is taken.
        size: of the download, as a person would say it.
    """

    repo: str
    files: tuple[tuple[str, ...], ...]
    size: str

    @property
    def command(self) -> str:
        """Return the command that fetches every file in all forms that the repository has."""
        if all(len(names) == 1 for names in self.files):
            return f"hf download {self.repo} {' '.join(name for (name,) in self.files)}"
        # patterns, because a file that is asked for by name must exist
        patterns = (f"--include {name}" for names in self.files for name in names)
        return f"hf download {self.repo} {' '.join(patterns)}"


def find_in_cache(wanted: HubFiles) -> tuple[Path, ...] | None:
    """Return the cached path of every file, in order; None where one is not there."""
    # a module-level import would cost every scorer of the folder a second
    from huggingface_hub import try_to_load_from_cache

    found = []
    for names in wanted.files:
        paths = (try_to_load_from_cache(wanted.repo, name) for name in names)
        # the cache also remembers, by an object that is no string, that a file does not exist
        path = next((Path(p) for p in paths if isinstance(p, str)), None)
        if path is None:
            return None
        found.append(path)
    return tuple(found)


def verified_sha256(path: Path, expected: str | None = None) -> str:
    """Hash a file and compare with what it should be.

    Args:
        path: the weights.
        expected: 64 hex digits or their beginning; None: the name the hub's cache stores the file
            under, and no comparison for a file from elsewhere.

    Returns:
        64 hex digits.

    Raises:
        UserError: the file cannot be read or is another one.
    """
    stored = path.resolve()
    if expected is None and BLOB.fullmatch(stored.name):
        expected = stored.name
    try:
        status = stored.stat()
    except OSError as error:
        raise UserError(
            f"weights: cannot read {path} ({error.strerror}), expected a checkpoint; correct the "
            "path"
        ) from error
    digest = _digest(stored, status.st_size, status.st_mtime_ns)
    if expected is not None and not digest.startswith(expected.lower()):
        raise UserError(
            f"weights: {path} has the sha256 {digest}, expected {expected}; delete the file and "
            "download it again"
        )
    return digest


@functools.lru_cache(maxsize=16)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """Hash once a process: 4 GB take ten seconds; size and time tell a file that was replaced."""
    return file_sha256(path)
