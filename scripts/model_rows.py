"""What is measured of a whole model, and the rows it becomes: results/bench/model.csv.

A quantity is "cfg_step_ms" (both branches, guidance and Euler step), "image_s" (48 of those, the
text projection and the tables; no text encoder, no VAE), "peak_bytes" (what the card must have
beside CUDA's context), "peak_bytes_capped" (the same with the context, of a whole generation under
a cap), or "ms_<component>": kernel time per CFG step, see scripts/kernel_components.py.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import scipy

from dit8.eval.ledger import Layout
from dit8.scripts.model_paths import Drawing

LEVEL = 0.95
FULL_STEPS = 48
MODEL = Layout(
    key=("run_id", "gpu", "variant", "engine", "resolution", "text_tokens", "quantity"),
    values=("value", "low", "high", "unit", "versions", "commit"),
    types={
        **dict.fromkeys(("resolution", "text_tokens"), int),
        **dict.fromkeys(("value", "low", "high"), float),
    },
)


def t_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and Student's 95 % interval of it.

    Images of one path differ by noise alone, so a handful of them is near to normal; a bootstrap
    of five would give an interval that is too narrow.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"t_interval: need at least two samples, got {len(samples)}")
    mean = statistics.fmean(samples)
    error = statistics.stdev(samples) / len(samples) ** 0.5
    half = error * float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(samples) - 1))
    return mean, mean - half, mean + half


def make_row(
    shared: Mapping[str, Any], quantity: str, unit: str, interval: tuple[float, float, float]
) -> dict[str, Any]:
    """Make one row.

    Args:
        shared: every other column.
        interval: value, low, high; three times the same where nothing was repeated.
    """
    value, low, high = interval
    return {**shared, "quantity": quantity, "value": value, "low": low, "high": high, "unit": unit}


def time_rows(
    shared: Mapping[str, Any], drawings: Sequence[Drawing], steps: int
) -> list[dict[str, Any]]:
    """Make the rows of a path's times; none before there are two images.

    An image counts once: with the median of its steps for cfg_step_ms, whose first step, which
    may capture graphs or compile, is left out. image_s is of images of 48 steps only.
    """
    if len(drawings) < 2:
        return []
    medians = [statistics.median(drawing.step_ms) for drawing in drawings]
    rows = [make_row(shared, "cfg_step_ms", "ms", t_interval(medians))]
    if steps == FULL_STEPS:
        seconds = t_interval([drawing.seconds for drawing in drawings])
        rows.append(make_row(shared, "image_s", "s", seconds))
    return rows


def component_rows(
    shared: Mapping[str, Any], steps: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Make a row a component from the ms of several steps."""
    return [
        make_row(shared, f"ms_{name}", "ms", t_interval([step[name] for step in steps]))
        for name in steps[0]
    ]


def bytes_row(shared: Mapping[str, Any], quantity: str, count: int) -> dict[str, Any]:
    """Make the row of a peak, which was measured once."""
    return make_row(shared, quantity, "B", (float(count),) * 3)
