"""Lay out the deployment map: what each variant would take on each GPU, and what is known of it.

Four kinds of figure that never share a column: the roofline (counted work at the stated peaks), the
prediction (at the fractions one card reached), the measurement, and what papers report. Pure: the
same tables give the same cells.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dit8.eval.gpus import Gpu
from dit8.eval.roofline import ROOF, break_even, time_ms
from dit8.models.flops import VARIANTS, Execution, image_work, needed_bytes, step_work

RESOLUTIONS = (1024, 768)
TEXT_TOKENS = 300
STEPS = 48
PATCH = 16  # pixels of an image token's side
BASE, BEST = "bf16", "fused_int8"  # int8 wins where it beats the same engine in bf16

Key = tuple[str, str, int]  # gpu, variant, resolution


@dataclass(frozen=True)
class Times:
    """Of one variant on one card; None: not known.

    Attributes:
        step_ms: a CFG step, both branches.
        image_s: STEPS of them and the text projection; no text encoder, no VAE.
    """

    step_ms: float | None = None
    image_s: float | None = None


UNKNOWN = Times()


@dataclass(frozen=True)
class Measured:
    """What was measured of one variant on one card; None: it was not.

    Attributes:
        times: as predicted.
        peak_gb: what the card must have beside CUDA's context.
    """

    times: Times = UNKNOWN
    peak_gb: float | None = None


@dataclass(frozen=True)
class Cell:
    """One variant at one resolution on one GPU."""

    gpu: str
    variant: str
    resolution: int
    roofline: Times
    predicted: Times
    measured: Measured
    reported: str | None  # in the paper's words
    reported_source: str | None
    needed_gb: float
    fits: bool


@dataclass(frozen=True)
class Gain:
    """What fused int8 brings over bf16 in the same engine on one GPU at one resolution.

    Attributes:
        roofline, predicted, measured: time of an image (measured: of a step) in bf16 over int8.
        break_even: fraction of the int8 peak from which on int8 wins, all else at the fractions
            of the prediction, or of the roofline where there is none.
    """

    gpu: str
    resolution: int
    roofline: float
    predicted: float | None
    measured: float | None
    break_even: float


def image_tokens(resolution: int) -> int:
    """Count the tokens of a square picture."""
    return (resolution // PATCH) ** 2


def times(how: Execution, resolution: int, gpu: Gpu, fractions: Mapping[str, float]) -> Times:
    """Time a step and an image; UNKNOWN if a fraction that they need is missing."""
    step = time_ms(step_work(how, image_tokens(resolution), TEXT_TOKENS), gpu, fractions)
    once = time_ms(image_work(how, TEXT_TOKENS), gpu, fractions)
    if step is None or once is None:
        return UNKNOWN
    return Times(step, (STEPS * step + once) / 1e3)


def lay_out(
    gpus: Sequence[Gpu],
    fractions: Mapping[str, float],
    measured: Mapping[Key, Measured],
    reported: Mapping[Key, tuple[str, str]],
) -> list[Cell]:
    """Fill the map.

    Args:
        gpus: of the table of peaks.
        fractions: unit -> fraction reached on the measured card; units may be missing.
        measured: what was measured.
        reported: (figure in the paper's words, source).

    Returns:
        GPUs in the table's order, in each the resolutions, in those the variants.
    """
    return [
        Cell(
            *key,
            times(how, resolution, gpu, ROOF),
            times(how, resolution, gpu, fractions),
            measured.get(key, Measured()),
            *reported.get(key, (None, None)),
            needed := needed_bytes(how, image_tokens(resolution), TEXT_TOKENS) / 1e9,
            needed <= gpu.memory_gb,
        )
        for gpu in gpus
        for resolution in RESOLUTIONS
        for variant, how in VARIANTS.items()
        for key in [(gpu.gpu, variant, resolution)]
    ]


def gains(
    cells: Sequence[Cell], gpus: Sequence[Gpu], fractions: Mapping[str, float]
) -> Iterator[Gain]:
    """Compare BEST with BASE, one gain per GPU and resolution."""
    found = {(cell.gpu, cell.variant, cell.resolution): cell for cell in cells}
    for gpu in gpus:
        for resolution in RESOLUTIONS:
            base, best = (found[gpu.gpu, name, resolution] for name in (BASE, BEST))
            int8, bf16 = (
                step_work(VARIANTS[name], image_tokens(resolution), TEXT_TOKENS)
                for name in (BEST, BASE)
            )
            level = break_even(int8, bf16, gpu, fractions)
            yield Gain(
                gpu.gpu,
                resolution,
                _ratio(base.roofline.image_s, best.roofline.image_s),
                _ratio(base.predicted.image_s, best.predicted.image_s),
                _ratio(base.measured.times.step_ms, best.measured.times.step_ms),
                break_even(int8, bf16, gpu, ROOF) if level is None else level,
            )


def _ratio(base: float | None, best: float | None) -> float | None:
    return None if base is None or best is None else base / best
