"""Make a folder as one would publish it: weights, recipe, a card filled from the run, licence.

The folder appears when it is complete. What a release must say about the model it was made from,
its terms, access and how to load it, stands here, too.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dit8.quant.errors import UserError
from dit8.quant.files import writing
from dit8.quant.model_card import ReleaseCard, ReleasedFile, render_card

IDEOGRAM4_REPOSITORY = "ideogram-ai/ideogram-4-fp8"
IDEOGRAM4_PAGE = f"https://huggingface.co/{IDEOGRAM4_REPOSITORY}"


@dataclass(frozen=True)
class Base:
    """A base model as far as a release is concerned.

    Args:
        title: as it is called in sentences.
        repository: on the hub; None if it is on none.
        licence: front matter keys and values about the licence.
        tags: of the hub, besides the format's name.
        notice: of licence and access, also the text of the file LICENSE.
        companions: where the components outside the release come from.
        dtype: in which branches and companions compute, for the lines of usage.
        device: that these lines use.
        folder: where dit8 looks for the base model.
        call: arguments of the pipeline after the caption.
        largest_bytes: of any checkpoint of it; None if unbounded.
    """

    title: str
    repository: str | None
    licence: dict[str, str]
    tags: tuple[str, ...]
    notice: str
    companions: str
    dtype: str
    device: str
    folder: str
    call: str
    largest_bytes: int | None = None


IDEOGRAM4 = Base(
    title="Ideogram 4",
    repository=IDEOGRAM4_REPOSITORY,
    licence={
        "license": "other",
        "license_name": "ideogram-non-commercial-model-agreement",
        "license_link": IDEOGRAM4_PAGE,
        "extra_gated_prompt": "These weights are derived from Ideogram 4 and stay under its "
        "non-commercial licence. Agree to it on the page of the base model before using them.",
    },
    tags=("text-to-image", "diffusion", "flow-matching", "quantization", "ideogram"),
    notice=f"""\
These weights are derived from Ideogram 4 ({IDEOGRAM4_REPOSITORY}). Derived weights stay under the
base model's licence, the Ideogram Non-Commercial Model Agreement: they are for non-commercial use
only, whoever passes them on passes on its terms, and changing how the numbers are stored changes
none of them. The Apache-2.0 licence of dit8 covers its code, not these weights.

The base repository is gated. Text encoder, tokenizer and VAE come from there and are not in this
folder: access must be asked for, and the licence agreed to, at
{IDEOGRAM4_PAGE}

This is a notice, not the licence; where the two differ, the licence counts.""",
    companions="Text encoder, tokenizer, scheduler and VAE come from the gated base repository "
    f"{IDEOGRAM4_REPOSITORY}, for which access must be asked for "
    "(`python scripts/download.py`).",
    folder="checkpoints/models/ideogram4",
    dtype="bfloat16",
    device="cuda",
    call="height=1024, width=1024",
)

MINI = Base(
    title="the dit8 mini",
    repository=None,
    licence={"license": "apache-2.0"},
    tags=("text-to-image", "diffusion", "flow-matching", "quantization"),
    notice="""\
Apache-2.0. These weights are derived from the dit8 mini, a small model trained from nothing on
generated posters that comes with dit8. It is not Ideogram 4, shares no weight with it, and nothing
about Ideogram 4 follows from it. No access has to be asked for.""",
    companions="Text encoder, tokenizer, scheduler and VAE are those of the mini in dit8's own "
    "repository.",
    folder="models/mini",
    dtype="float32",
    device="cpu",
    call="height=256, width=256, guidance_schedule=[3.0] * 48, max_sequence_length=128",
    # both branches in fp32 are 62 MB; a larger file is no mini, and not Apache-2.0
    largest_bytes=100_000_000,
)

PLANTED = Base(
    title="the dit8 mini with planted outlier channels",
    repository=None,
    licence=MINI.licence,
    tags=MINI.tags,
    notice=MINI.notice + " Outlier channels were planted in it as a test-bed.",
    companions=MINI.companions,
    folder="checkpoints/models/mini_planted",
    dtype=MINI.dtype,
    device=MINI.device,
    call=MINI.call,
    largest_bytes=MINI.largest_bytes,
)

BASES = {"ideogram4": IDEOGRAM4, "mini": MINI, "mini_planted": PLANTED}


def base_of(model: str) -> Base:
    """Look up what is known of a model, by the name of its configuration.

    Raises:
        UserError: nothing is known of its licence, so nothing of it can be released.
    """
    if model not in BASES:
        raise UserError(
            f"release: the licence of model {model!r} is not known, expected one of "
            f"{', '.join(BASES)}; add it to quant/release.py"
        )
    return BASES[model]


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
