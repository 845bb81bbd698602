"""Say how long a step of a plan takes and what it leaves on disk, from committed measurements only.

    pictures    n x seconds of a picture
                mini        p50 of results/demo/latency.csv (CPU) or results/latency.csv (GPU) for
                            that variant, times steps / 20; a variant without a row counts as the
                            slowest one measured there
                ideogram4   steps x cfg_step_ms of results/bench/model.csv where the card was
                            measured (text encoder and VAE left out), else steps / 48 x the
                            s/image that a paper reports for the card (results/paper/speed.csv)
    calibration 2 weights x tokens x steps x prompts of FLOP at CALIBRATION_TFLOPS, RTX 3090 only
    conversion  seconds and size of results/convert/convert.csv, by weights where fewer blocks
                were converted; a format without a row has its size by bits a weight and no time
    pictures on disk   at most 3 bytes a pixel (PNG) and 4 a latent value

What none of these covers has no estimate. Reading and scoring are not counted.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dit8.eval.gpus import Gpu
from dit8.eval.ledger import LATENCY, read_table
from dit8.models.flops import TEXT_SLOTS, linear_weights
from dit8.quant.errors import UserError

CALIBRATION_TFLOPS = 30.0  # as scripts/calibrate.py plans with, for an RTX 3090
CALIBRATION_PROMPTS, CALIBRATION_STEPS = 64, 20  # conf/model/ideogram4.yaml, conf/calibrate.yaml
REPORTED_STEPS = 48  # of the papers' s/image
DEMO_STEPS = 20  # of the mini's committed pictures
BRANCHES = 2
BITS = {"fp8": 8.0, "nf4": 4.5, "q8_0": 8.5, "q4_k": 4.5, "w8a8": 8.0}  # a weight, scales of blocks
CONTEXT_GB = 0.5  # CUDA's own, beside a measured peak; as models.flops assumes
LATENT_CHANNELS, PATCH_PX = 128, 16

Key = tuple[str, str, str, int]  # gpu, variant, engine, resolution


@dataclass(frozen=True)
class Rate:
    """Hold seconds of one picture at some number of steps, and where they come from."""

    seconds: float
    source: str


@dataclass(frozen=True)
class Measurements:
    """Hold what estimates are made of.

    Args:
        step_ms: (gpu, variant, engine, resolution) -> ms of a CFG step, full size.
        peak_gb: the same -> largest memory of the card, without CUDA's context.
        reported_s: (gpu, variant, resolution) -> s/image of a paper, 48 steps.
        mini_s: (gpu, or "cpu") -> variant -> s/image of the mini at 20 steps.
        convert: target -> (seconds, bytes) of both branches at full size.
    """

    step_ms: Mapping[Key, float]
    peak_gb: Mapping[Key, float]
    reported_s: Mapping[tuple[str, str, int], float]
    mini_s: Mapping[str, Mapping[str, float]]
    convert: Mapping[str, tuple[float, float]]


def gpu_key(name: str, gpus: Iterable[Gpu]) -> str | None:
    """Find the row of the table of peaks for what a driver calls a card; None: no such card.

    Args:
        name: such as "NVIDIA GeForce RTX 3090"; a "3090 Ti" is another card.
    """
    squashed = name.lower().replace("rtx ", "rtx")
    for gpu in gpus:
        if re.search(rf"\b{gpu.gpu}\b(?!\s+(ti|super|d|laptop)\b)", squashed):
            return gpu.gpu
    return None


def load_measurements(results: Path, gpus: Iterable[Gpu]) -> Measurements:
    """Read the committed rows; a table that is not there gives no estimates.

    Raises:
        UserError: a table with other columns.
    """
    cards = tuple(gpus)
    bench = _read(results / "bench" / "model.csv", ("gpu", "variant", "engine", "resolution"))
    step_ms: dict[Key, float] = {}
    peak_gb: dict[Key, float] = {}
    for row in bench.to_dict("records"):
        key = (gpu_key(row["gpu"], cards) or row["gpu"], row["variant"], row["engine"])
        key += (int(row["resolution"]),)
        if row["quantity"] == "cfg_step_ms":
            step_ms[key] = float(row["value"])
        elif row["quantity"] == "peak_bytes":
            peak_gb[key] = float(row["value"]) / 1e9
    return Measurements(
        step_ms, peak_gb, _reported(results), _mini(results, cards), _convert(results)
    )


def picture_rate(
    known: Measurements, model: str, variant: str, engine: str, steps: int, size: int, gpu: str
) -> Rate | None:
    """Estimate the seconds of one picture; None: nothing committed says it.

    Args:
        gpu: key of the table of peaks, or "cpu".
    """
    if model.startswith("mini"):
        rows = known.mini_s.get(gpu, {})
        if not rows:
            return None
        seconds = rows.get(variant, max(rows.values()))
        return Rate(seconds * steps / DEMO_STEPS, f"the mini measured on {gpu}")
    step = known.step_ms.get((gpu, variant, engine, size))
    if step is not None:
        return Rate(steps * step / 1e3, f"measured on {gpu}, without text encoder and VAE")
    reported = known.reported_s.get((gpu, variant, size))
    if reported is not None:
        return Rate(reported * steps / REPORTED_STEPS, f"s/image as the papers report on {gpu}")
    return None


def picture_bytes(size: int) -> int:
    """Bound what one picture takes: the PNG from above by its pixels, the latents in float32."""
    return 3 * size * size + 4 * LATENT_CHANNELS * (size // PATCH_PX) ** 2


def calibration_seconds(gpu: str, size: int = 1024) -> float | None:
    """Estimate a calibration of ideogram4; only for the card that the rate is about."""
    if gpu != "rtx3090":
        return None
    tokens = BRANCHES * (size // PATCH_PX) ** 2 + TEXT_SLOTS
    flop = 2.0 * linear_weights() * tokens * CALIBRATION_STEPS * CALIBRATION_PROMPTS
    return flop / (1e12 * CALIBRATION_TFLOPS)


def conversion(known: Measurements, target: str, format_name: str) -> tuple[float | None, float]:
    """Estimate seconds (None: not measured) and bytes of converting ideogram4.

    Args:
        target: recipe of a w8a8 file, else the format, as in convert.csv.
        format_name: decides the size where there is no row.
    """
    if target in known.convert:
        return known.convert[target]
    if format_name == "w8a8" and "smoothquant" in known.convert:
        return known.convert["smoothquant"]  # the most kept in bf16, so an upper bound of the size
    return None, BRANCHES * linear_weights() * BITS[format_name] / 8


def fits(known: Measurements, variant: str, memory_gb: float) -> float | None:
    """Return the measured peak of a variant in the engine at 1024 px if it exceeds a card.

    None: it fits, or was never measured.
    """
    peaks = [
        peak
        for (_, name, engine, size), peak in known.peak_gb.items()
        if (name, engine, size) == (variant, "dit8", 1024)
    ]
    if peaks and max(peaks) + CONTEXT_GB > memory_gb:
        return max(peaks)
    return None


def _reported(results: Path) -> dict[tuple[str, str, int], float]:
    rows = _read(results / "paper" / "speed.csv", ("gpu", "variant", "quantity", "value", "high"))
    found = {}
    for row in rows.to_dict("records"):
        size = re.fullmatch(r"image_s_(\d+)", row["quantity"])
        figure = row["value"] or row["high"]  # of a range the slower end
        if size and figure:
            found[(row["gpu"], row["variant"], int(size[1]))] = float(figure)
    return found


def _mini(results: Path, gpus: tuple[Gpu, ...]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for path in (results / "demo" / "latency.csv", results / "latency.csv"):
        rows = read_table(path, LATENCY)
        for row in rows[rows["stage"] == "image"].to_dict("records"):
            device = "cpu" if row["backend"] in ("torch-cpu", "cpu-reference") else None
            if device is None:
                name = _card(path.parent / "runs" / f"{row['run_id']}.json")
                device = gpu_key(name, gpus) or name
            times = found.setdefault(device, {})
            # of several runs of one variant the slowest: another engine or a batch of one
            times[row["variant"]] = max(row["p50_ms"] / 1e3, times.get(row["variant"], 0.0))
    return found


def _card(record: Path) -> str:
    """Read which GPU a run was on; "unknown" where the record does not say."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))["hardware"]["gpu"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    return found or "unknown"


def _convert(results: Path) -> dict[str, tuple[float, float]]:
    path = results / "convert" / "convert.csv"
    rows = _read(path, ("target", "branches", "weights", "seconds", "size_bytes"))
    if rows.empty:
        return {}
    whole = max(map(float, rows["weights"]))
    found = {}
    for row in rows.to_dict("records"):
        scale = whole / float(row["weights"])
        found[row["target"]] = (scale * float(row["seconds"]), scale * float(row["size_bytes"]))
    return found


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV as text; a missing one is an empty table."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise UserError(
            f"estimate: {path} must have the columns {', '.join(columns)}, got none called "
            f"{', '.join(absent)}; restore it from version control"
        )
    return frame


def duration(seconds: float | None) -> str:
    """Write seconds as people say them: 40 s, 12 min, 3.2 h; "no estimate" for None."""
    if seconds is None or math.isnan(seconds):
        return "no estimate"
    for limit, unit, size in ((100.0, "s", 1.0), (100.0 * 60, "min", 60.0)):
        if seconds < limit:
            return f"{math.ceil(seconds / size)} {unit}"
    return f"{seconds / 3600:.1f} h"
