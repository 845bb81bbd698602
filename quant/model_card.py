"""Fill the model card of a release: what the run says, what the files are, and the model's terms.

What nobody measured is called "not measured"; equal arguments give equal text. The terms of every
known base model, access to it and how to load it stand here as data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from dit8.quant.errors import UserError

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
            f"{', '.join(BASES)}; add it to quant/model_card.py"
        )
    return BASES[model]


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
        base: what it was made from, see `quant.model_card`.
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
from dit8.quant.checkpoint.load import load_quantized

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
