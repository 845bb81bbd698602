"""Frozen records that cross the stages of an evaluation: prompt, sample, run, interval."""

from dataclasses import dataclass
from pathlib import Path

SampleKey = tuple[str, int]  # (prompt id, seed): what two variants of a picture have in common


@dataclass(frozen=True)
class Prompt:
    """Hold one caption to draw and the texts a reader should find in the picture.

    Args:
        id: unique in its prompt set.
        caption: minified JSON object, non-ASCII characters literal.
        texts: texts expected in the picture; empty when reading is not judged.
        seed: seeds the noise together with `id`.
        idea: the short idea that the caption was expanded from; "" where there is none.
        category: kind of content, such as "signage"; "" where a set has no categories.
    """

    id: str
    caption: str
    texts: tuple[str, ...]
    seed: int
    idea: str = ""
    category: str = ""


@dataclass(frozen=True)
class Sample:
    """Hold one generated picture: which prompt and seed it came from and where it lies.

    Args:
        prompt_id, seed: the pairing key; noise is a function of these two alone.
        texts: the texts expected in the picture, copied from the prompt.
        image_path: lossless RGB image.
        latents_path: safetensors file with a tensor "latents", or None when not kept.
        seconds: wall-clock time this picture took, its share of the batch.
        caption, idea, category: copied from the prompt.
    """

    prompt_id: str
    seed: int
    texts: tuple[str, ...]
    image_path: Path
    latents_path: Path | None
    seconds: float
    caption: str = ""
    idea: str = ""
    category: str = ""

    @property
    def key(self) -> SampleKey:
        """Return (prompt_id, seed)."""
        return (self.prompt_id, self.seed)


@dataclass(frozen=True)
class RunKey:
    """Hold the columns every ledger row of one run shares; no field may be empty.

    Args:
        run_id: 12 hexadecimal digits, see `eval.provenance.run_id`.
        recipe: name of the quantization recipe, "none" for an unquantized variant.
        dtype: compute dtype, such as "float32".
        backend: what ran the int8 product, such as "triton" or "cpu-reference".
    """

    run_id: str
    model: str
    variant: str
    recipe: str
    engine: str
    dtype: str
    backend: str
    prompt_set: str


@dataclass(frozen=True)
class Interval:
    """Hold an estimate and its confidence interval.

    Args:
        estimate, low, high: in the unit of the score.
        n: number of resampled units (prompts), or of trials for "wilson".
        method: "bca", "percentile", "degenerate" or "wilson", see `eval.stats`; "newcombe" or
            "adjusted wald", see `eval.exact_match`.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str
