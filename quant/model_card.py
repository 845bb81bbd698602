"""Fill the model card of a release: what the run says, and what the files are.

What nobody measured is called "not measured"; equal arguments give equal text.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from dit8.quant.release import Base

TEMPLATE = Path(__file__).with_name("model_card.md")


@dataclass(frozen=True)
class EvaluationRow:
    """One line of the card's evaluation: a mean over prompts with its interval."""

    scorer: str
    unit: str
    prompts: str  # name of the prompt set
    n: int
    mean: float
    low: float | None = None  # of the 95 % interval; None: not measured
    high: float | None = None


@dataclass(frozen=True)
class ReleaseCard:
    """What the run says about a checkpoint; sizes and hashes are read off the files.

    Args:
        name: of the release, also the title.
        format: as in `format=`.
        recipe: its name; None for weight-only formats.
        base: what it was made from, see `quant.release`.
        source_sha256: of the base model's branches.
        quantized: linears, in published names, both branches counted.
        protected: linears kept unquantized for their damage.
        commit: of dit8; None if not known.
        dirty: the commit had uncommitted changes on top.
        versions: package -> version or None.
        lora: what was merged into the weights before quantizing; None: nothing.
        evaluation: scores of this very checkpoint, if there are any.
        licence_text: the base model's licence, word for word; None if it is not at hand.
    """

    name: str
    format: str
    recipe: str | None
    base: Base
    source_sha256: str
    quantized: int
    protected: int
    commit: str | None = None
    dirty: bool = False
    versions: Mapping[str, str | None] = field(default_factory=dict)
    lora: str | None = None
    evaluation: tuple[EvaluationRow, ...] = ()
    licence_text: str | None = None

    def __post_init__(self) -> None:
        for name in ("name", "format", "recipe", "source_sha256"):
            text = getattr(self, name)
            if text is None and name == "recipe":
                continue
            if not text or not text.isprintable():
                raise ValueError(f"ReleaseCard: {name} must be one line of text, got {text!r}")


@dataclass(frozen=True)
class ReleasedFile:
    """A weight file of the release."""

    path: str  # relative to the folder
    size: int  # bytes
    sha256: str


def render_card(card: ReleaseCard, folder_name: str, files: tuple[ReleasedFile, ...]) -> str:
    """Fill the template of the model card.

    Args:
        card: what the run knows.
        folder_name: of the release, for the lines of usage.
        files: the weights.

    Returns:
        Markdown with YAML front matter; equal arguments give equal text.
    """
    base, size = card.base, sum(file.size for file in files)
    changes = " with uncommitted changes" if card.dirty else ""
    packages = [f"{name} {version}" for name, version in card.versions.items() if version]
    commit = f"dit8 at commit {card.commit}{changes}" if card.commit else "dit8, commit not known"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        front=_front_matter(card),
        name=card.name,
        summary=f"The two transformers of {base.title} in {card.format}, made by dit8.",
        format=card.format,
        recipe=card.recipe or "none: the format stores weights and no recipe decides about them",
        recipe_file="names the format, which has no recipe"
        if card.recipe is None
        else "says what became of every linear and why",
        quantized=card.quantized,
        protected=card.protected,
        size=f"{size / 1e9:.2f} GB ({size:,} bytes)" if size >= 1e7 else f"{size:,} bytes",
        base=base.repository or base.title,
        lora=card.lora or "none",
        source=card.source_sha256,
        made=", ".join([commit, *packages]),
        base_folder=base.folder,
        usage=_usage(base, folder_name),
        companions=base.companions,
        files="\n".join(f"| {file.path} | {file.size} | `{file.sha256}` |" for file in files),
        evaluation=_evaluation(card.evaluation),
        notice=base.notice,
    )


def _front_matter(card: ReleaseCard) -> str:
    """Write YAML; every value is a JSON string, which is YAML that needs no other quoting."""
    values = {**card.base.licence, "library_name": "dit8", "pipeline_tag": "text-to-image"}
    if card.base.repository is not None:
        values |= {"base_model": card.base.repository, "base_model_relation": "quantized"}
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    tags = [f"- {json.dumps(tag)}" for tag in (*card.base.tags, card.format)]
    return "\n".join([*lines, "tags:", *tags]) + "\n"


def _usage(base: Base, folder_name: str) -> str:
    """Write the three lines; the base's own transformers are never in memory."""
    return f"""\
from pathlib import Path

import torch

from dit8.models.pipeline import load_pipeline
from dit8.quant.load import load_quantized

caption = Path("caption.json").read_text()  # a JSON caption, such as those of prompts/
folder, device = Path("{base.folder}"), torch.device("{base.device}")
pipeline = load_pipeline(folder, "{base.dtype}", "{base.dtype}", device, branches=False)
load_quantized(pipeline, {json.dumps(folder_name)}, device=device)
image = pipeline(caption, {base.call}).images[0]
image.save("picture.png")"""


def _evaluation(rows: tuple[EvaluationRow, ...]) -> str:
    if not rows:
        return "Not measured."
    lines = ["| scorer | unit | prompts | n | mean | 95 % interval |", "|" + " --- |" * 6]
    for row in rows:
        known = row.low is not None and row.high is not None
        interval = f"[{row.low:.4g}, {row.high:.4g}]" if known else "not measured"
        lines.append(
            f"| {row.scorer} | {row.unit} | {row.prompts} | {row.n} | {row.mean:.4g} | {interval} |"
        )
    return "\n".join(lines)
