"""Hold what a report says, ready to be shown: the records between statistics and template."""

from collections.abc import Mapping
from dataclasses import dataclass

from dit8.eval.categories import CategoryRow
from dit8.eval.noise_floor import NoiseFloor
from dit8.eval.run import Interval
from dit8.models.types import SampleKey


@dataclass(frozen=True)
class Measure:
    """Hold what a score is.

    Args:
        bounds: lowest and highest value possible.
        is_relative: compares with the reference's picture, so that the reference has none.
        margin: largest difference that does not matter, in the unit of the score; None where
            none was declared, and then nothing is judged by this score.
        reason: for the margin.
        identity: what else the values depend on, one line.
        floor: None where no harmless run was given.
    """

    name: str
    unit: str
    higher_is_better: bool
    bounds: tuple[float, float]
    preprocessing: str
    is_relative: bool
    margin: float | None = None
    reason: str = ""
    identity: str = ""
    floor: NoiseFloor | None = None

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True)
class Outcome:
    """Hold what one variant scored.

    Args:
        delta: variant - reference, paired; None for the reference and for relative scores.
        p_value: of the test of equivalence, after Holm over the scores of the variant.
        kind: of `eval.verdict`; None where nothing is judged.
    """

    label: str
    mean: Interval
    delta: Interval | None = None
    p_value: float | None = None
    kind: str | None = None


@dataclass(frozen=True)
class ScoreTable:
    """Hold one score over all variants, the reference first where it has a value."""

    measure: Measure
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class VariantVerdict:
    """Hold the one sentence on a variant, and one on each of its scores."""

    label: str
    kind: str
    sentence: str
    by_score: tuple[str, ...]


@dataclass(frozen=True)
class Speed:
    """Hold the latency of one stage of one variant in ms, and its median over the reference's."""

    label: str
    stage: str
    n: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    ratio: float | None


@dataclass(frozen=True)
class Picture:
    """Hold one variant's picture of a prompt.

    Args:
        image, difference: data URIs; difference is None for the reference.
        scores: scorer -> value.
        changes: scorer -> size of the change from the reference's picture, not negative.
        lines: texts read; None where nothing was read.
        found: per expected text.
    """

    label: str
    image: str
    difference: str | None
    width_px: int
    height_px: int
    scores: Mapping[str, float]
    changes: Mapping[str, float]
    lines: tuple[str, ...] | None = None
    found: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Exhibit:
    """Hold one prompt of the gallery with all its pictures, the reference's first.

    Args:
        caption: indented JSON.
        change: largest change over the variants, by `Page.ranked_by`; not negative.
    """

    key: SampleKey
    category: str
    idea: str
    caption: str
    texts: tuple[str, ...]
    pictures: tuple[Picture, ...]
    change: float


@dataclass(frozen=True)
class Origin:
    """Hold where one run comes from: short facts, and the whole record as indented JSON."""

    label: str
    facts: tuple[tuple[str, str], ...]
    record: str


@dataclass(frozen=True)
class Page:
    """Hold everything on the page, in its order.

    Args:
        caveat: what scores of this model cannot say; "" where there is none.
        notes: what is missing and how to get it, one sentence each.
        sizes: label -> bytes of both branches' weights as stored; only what is known.
        gallery_note: how pictures were made small.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    caveat: str
    reference: str
    verdicts: tuple[VariantVerdict, ...]
    tables: tuple[ScoreTable, ...]
    categories: tuple[CategoryRow, ...]
    speeds: tuple[Speed, ...]
    sizes: Mapping[str, int]
    exhibits: tuple[Exhibit, ...]
    ranked_by: str
    gallery_note: str
    origins: tuple[Origin, ...]
    notes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
