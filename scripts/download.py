"""Fetch the gated weights of Ideogram 4, after showing their licence.

    python scripts/download.py fp8                                # 27.5 GB, by its public listing
    python scripts/download.py nf4 --to checkpoints/models/ideogram4_nf4
    python scripts/download.py fp8 --accept-licence               # where nobody can be asked
    python scripts/download.py owner/name --to checkpoints/models/name

The weights are for non-commercial use and gated: ask for access on their page at huggingface.co,
then set HF_TOKEN or run `hf auth login`. A stopped download goes on where it was with the same
command. Prints one JSON document last.
"""

import argparse
import json
import sys

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"download: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from huggingface_hub import get_token

from dit8.quant.errors import UserError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model", nargs="?", default="fp8")
    made.add_argument("--to", default="checkpoints/models/ideogram4")
    made.add_argument("--accept-licence", action="store_true")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.models.download import check_folder, fetch
from dit8.models.hub import Listing, list_repository, read_licence, resolve_repository
from dit8.models.model_folder import inspect_folder

RULE = "-" * 80
ANSWER = "I agree"


def agree(listing: Listing, text: str, accepted: bool) -> None:
    """Show the licence; go on only if the user agrees, here or by the flag."""
    print(RULE, text.strip(), RULE, sep="\n")
    print(
        f"These are the terms of {listing.repo}. Weights of Ideogram 4 are for non-commercial use, "
        "and so is what you derive from them, quantized files included.",
        flush=True,
    )
    if accepted:
        return
    if not sys.stdin.isatty():
        raise UserError(
            "the licence must be agreed to, and nobody can be asked here; read it above "
            "and pass --accept-licence"
        )
    try:
        answer = input(f'Type "{ANSWER}" to go on: ')
    except EOFError:
        answer = ""
    if answer.strip().strip('"').lower() != ANSWER.lower():
        raise UserError(f"the licence must be agreed to, got {answer!r}; nothing was fetched")


def download(arguments: argparse.Namespace) -> dict:
    """List, ask, fetch, check."""
    repo, folder, token = resolve_repository(arguments.model), from_root(arguments.to), get_token()
    listing = list_repository(repo, token)
    missing = check_folder(listing, folder)
    agree(listing, read_licence(listing, token), arguments.accept_licence)
    print(
        f"{repo}: {len(listing.files)} files, {listing.total_bytes / 1e9:.2f} GB, of which "
        f"{missing / 1e9:.2f} GB are missing in {shorten(folder)}",
        file=sys.stderr,
    )
    came = fetch(listing, folder, token)
    facts = inspect_folder(folder)
    return {
        "model": shorten(folder),
        "repository": repo,
        "commit": listing.commit,
        "format": facts.format,
        "files": len(listing.files),
        "bytes": listing.total_bytes,
        "fetched_bytes": came,
    }


def main() -> None:
    with one_sentence("download"):
        print(json.dumps(download(parser().parse_args())))


if __name__ == "__main__":
    main()
