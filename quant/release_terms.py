"""What a release must say about the model it was made from: terms, access, how to load it."""

from dataclasses import dataclass

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
            f"{', '.join(BASES)}; add it to quant/release_terms.py"
        )
    return BASES[model]
