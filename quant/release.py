"""Make a folder as one would publish it: weights, recipe, a card filled from the run, licence.

The folder appears when it is complete.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dit8.quant.errors import UserError
from dit8.quant.files import writing
from dit8.quant.model_card import ReleaseCard, ReleasedFile, render_card

WEIGHTS = (".safetensors", ".gguf")
RECIPE = "recipe.json"


def write_release(
    folder: str | Path, checkpoint_path: str | Path, card: ReleaseCard
) -> tuple[ReleasedFile, ...]:
    """Write weights, recipe.json, README.md and LICENSE, all or nothing.

    Weights are hard links where the file system allows it, so a release on the checkpoint's disk
    takes no room; nothing of dit8 changes a weight file in place.

    Args:
        folder: must not exist.
        checkpoint_path: the file with recipe.json beside it (if its format has a recipe), or the
            folder that `save_checkpoint` made.
        card: what the run knows.

    Returns:
        the weight files with sizes and hashes; reads every byte of them once.

    Raises:
        UserError: the folder exists or cannot be written, no weights are there, or they are too
            large for the base model whose licence the card gives.
    """
    folder, source = Path(folder), Path(checkpoint_path)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"write_release: {folder} exists already; delete it or choose another")
    files = _checkpoint_files(source)
    _check_base(files, card)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            for relative, path in files.items():
                _link(path, partial / relative)
            weights = sorted(relative for relative in files if relative.suffix in WEIGHTS)
            released = tuple(_released(partial, relative) for relative in weights)
            if not (partial / RECIPE).exists():
                (partial / RECIPE).write_text(_plain_recipe(card), encoding="utf-8")
            card_text = render_card(card, folder.name, released)
            (partial / "README.md").write_text(card_text, encoding="utf-8")
            (partial / "LICENSE").write_text(_licence(card), encoding="utf-8")
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return released


def find_licence(folder: Path) -> str | None:
    """Read the licence that lies in a folder, word for word; None if there is none.

    Args:
        folder: of the base model (downloads bring its licence along), or of dit8 for the mini.
    """
    spellings = ("LICENSE", "LICENCE")
    found = [path for path in sorted(folder.glob("*")) if path.stem.upper() in spellings]
    return found[0].read_text(encoding="utf-8") if found else None


def _checkpoint_files(source: Path) -> dict[Path, Path]:
    """Map the names in the release to files: weights, their configurations, the recipe."""
    if source.is_file():
        beside = source.with_name(RECIPE)
        found = {Path(source.name): source} | ({Path(RECIPE): beside} if beside.is_file() else {})
    else:
        paths = sorted(source.rglob("*")) if source.is_dir() else []
        found = {
            path.relative_to(source): path
            for path in paths
            if path.is_file() and path.suffix in (*WEIGHTS, ".json")
        }
    if not any(path.suffix in WEIGHTS for path in found):
        raise UserError(
            f"write_release: {source} must hold {' or '.join(WEIGHTS)} weights, got none; make the "
            "checkpoint with scripts/quantize.py"
        )
    return found


def _check_base(files: Mapping[Path, Path], card: ReleaseCard) -> None:
    """Refuse a licence that cannot be that of these weights: the error that must not happen."""
    size = sum(path.stat().st_size for path in files.values())
    limit = card.base.largest_bytes
    if limit is not None and size > limit:
        raise UserError(
            f"write_release: a checkpoint of {card.base.title} must have at most {limit} bytes, "
            f"got {size}; name the model that these weights come from, its licence is another"
        )


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a link to a symbolic link would be published as one
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links; copying says if it fails
        shutil.copyfile(source, target)


def _released(folder: Path, relative: Path) -> ReleasedFile:
    with (folder / relative).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return ReleasedFile(relative.as_posix(), stream.tell(), digest)


def _plain_recipe(card: ReleaseCard) -> str:
    """Stand in for the recipe of a format that has none."""
    value = {"format": card.format, "recipe": card.recipe, "source_sha256": card.source_sha256}
    return json.dumps(value, indent=2) + "\n"


def _licence(card: ReleaseCard) -> str:
    if card.licence_text is None:
        return card.base.notice + "\n"
    rule = "-" * 80
    return f"{card.base.notice}\n\n{rule}\n\n{card.licence_text.strip()}\n"
