"""Talk to the Hugging Face hub: what a repository holds, who may read it, one file from a byte on.

Whatever the hub's client raises leaves this file as one sentence for the user.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that the hub's client uses, whichever it is
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from dit8.models.model_folder import INDEX, components
from dit8.quant.errors import UserError

# fp8 and nf4 are named by public model cards; bf16 is the name in the docstring of diffusers'
# pipeline, and whether weights are there is not known. All three are gated and unseen by us.
REPOSITORIES = {
    "fp8": "ideogram-ai/ideogram-4-fp8",
    "nf4": "ideogram-ai/ideogram-4-nf4",
    "bf16": "ideogram-ai/ideogram-v4",
}
HUB = "https://huggingface.co"
ROOT_FILES = ("LICENSE", "LICENCE", "NOTICE", "README")  # by the beginning of their names
SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".model")  # no pickles, no code


@dataclass(frozen=True)
class RemoteFile:
    """One file as the hub lists it."""

    path: str  # in the repository and in the folder
    size: int  # bytes
    digest: str  # SHA-256 for large files (64 digits), else git's SHA-1 of the blob (40)


@dataclass(frozen=True)
class Listing:
    """What is to be fetched, all of one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]  # the index last
    licence: RemoteFile | None

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def resolve_repository(name: str) -> str:
    """Turn fp8, nf4, bf16 or an owner/name into an owner/name.

    Raises:
        UserError: none of them.
    """
    if name in REPOSITORIES:
        return REPOSITORIES[name]
    owner, slash, rest = name.partition("/")
    if not (owner and slash and rest) or "/" in rest:
        raise UserError(
            f"model must be one of {', '.join(REPOSITORIES)}, or a repository such as "
            f"{REPOSITORIES['fp8']}, got {name!r}; correct the name"
        )
    return name


def list_repository(repo: str, token: str | None) -> Listing:
    """Ask the hub what has to be fetched, and whether this token may fetch it.

    Args:
        repo: owner/name.
        token: of the hub; None if the user has none.

    Raises:
        UserError: no such repository, no access, no connection, or no Ideogram 4 in it.
    """
    with _hub_errors(repo, token):
        api = HfApi(token=token or False)
        info = api.model_info(repo, files_metadata=True)
        api.auth_check(repo)
    found = {}
    for item in info.siblings or ():
        digest = item.lfs.sha256 if item.lfs is not None else item.blob_id
        if item.size is None or digest is None or info.sha is None:
            raise UserError(
                f"the hub must list size and hash of {item.rfilename} in {repo}, got "
                "none; is HF_ENDPOINT a hub?"
            )
        found[item.rfilename] = RemoteFile(item.rfilename, item.size, digest)
    if INDEX not in found:
        raise UserError(
            f"{repo} must be a diffusers repository with {INDEX}, got {len(found)} other "
            f"files; use one of {', '.join(REPOSITORIES)}"
        )
    index = _read(repo, info.sha, found[INDEX], token)
    folders = components(index, f"{INDEX} of {repo}")
    files = [file for path, file in sorted(found.items()) if _wanted(path, folders)]
    licences = [file for file in files if file.path.upper().startswith(ROOT_FILES[:2])]
    return Listing(repo, info.sha, (*files, found[INDEX]), licences[0] if licences else None)


def _wanted(path: str, folders: tuple[str, ...]) -> bool:
    parts = PurePosixPath(path).parts
    if ".." in parts or path.startswith("/"):
        raise UserError(f"the hub lists {path!r}, expected a path inside the folder")
    if len(parts) == 1:
        return path.upper().startswith(ROOT_FILES)
    return parts[0] in folders and path.endswith(SUFFIXES)


def read_licence(listing: Listing, token: str | None) -> str:
    """Fetch the licence's text, or say where it must be read.

    Raises:
        UserError: as `list_repository`.
    """
    if listing.licence is None:
        return f"{listing.repo} holds no licence file; its terms are at {HUB}/{listing.repo}"
    return _read(listing.repo, listing.commit, listing.licence, token)


def get_file(
    repo: str,
    commit: str,
    file: RemoteFile,
    token: str | None,
    stream: BinaryIO,
    start: int = 0,
) -> None:
    """Append what follows byte `start` of a remote file to a stream that holds what comes before.

    Goes on by itself after short interruptions of the connection.

    Raises:
        UserError: no access, or no connection.
        OSError: the stream cannot be written; without errno: other bytes came than were listed.
    """
    headers = build_hf_headers(token=token or False)
    headers["Accept-Encoding"] = "identity"  # a range of a compressed body has no meaning here
    with _hub_errors(repo, token):
        http_get(
            hf_hub_url(repo, file.path, revision=commit),
            stream,
            resume_size=start,
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.path,
        )


def _read(repo: str, commit: str, file: RemoteFile, token: str | None) -> str:
    """Fetch a small text."""
    stream = io.BytesIO()
    get_file(repo, commit, file, token, stream)
    return stream.getvalue().decode("utf-8", "replace")


@contextmanager
def _hub_errors(repo: str, token: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence."""
    page = f"{HUB}/{repo}"
    try:
        yield
    except GatedRepoError as error:
        if token is None:
            raise UserError(
                f"{repo} is gated and no token was found; ask for access at {page}, then "
                "set HF_TOKEN or run `hf auth login`"
            ) from error
        raise UserError(
            f"this token has no access to {repo}; ask for access at {page}, and use a "
            "token that may read gated repositories"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = "" if token else ", or set HF_TOKEN if it is private"
        raise UserError(
            f"there is no repository {repo} that you may see; correct the name{hint}"
        ) from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            "HF_HUB_OFFLINE forbids the hub's client every connection; unset it"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "make a new token" if status == 401 else "try again later"
        raise UserError(f"the hub answered {status} for {repo}; {hint}") from error
    except HTTPError as error:
        raise UserError(
            f"no connection to the hub ({type(error).__name__}: {error}); go online and "
            "run the same command again, what has come is kept"
        ) from error
