"""Peaks of GPUs by their datasheets and whitepapers, and what others report about them.

`conf/gpus/peaks.csv` is dense arithmetic with fp32 (int32) accumulation, decimal units; every row
names its document, and a cell that no document fills stays empty. The tables lie in `conf`, as
inputs: nothing in them was measured here.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from dit8.quant.errors import UserError

# Integer matrix instructions that Triton 3.6 and 3.7 emit for an int8 dot, on any card.
EMITTED = ("mma.sync", "wgmma")


@dataclass(frozen=True)
class Gpu:
    """One row of the table of peaks; None where no document gives the figure."""

    gpu: str
    name: str
    sm: int  # compute capability x 10
    sms: int | None
    int8_instruction: str  # the one that reaches int8_tops
    bf16_tflops: float  # fp32 accumulation
    int8_tops: float
    fp8_tflops: float | None  # fp32 accumulation
    memory_gb_s: float
    memory_gb: float
    l2_mb: float | None
    source: str
    note: str | None

    @property
    def reachable(self) -> bool:
        """Whether kernels written in Triton can use the units that int8_tops is stated for."""
        return self.int8_instruction in EMITTED


REPORTED = ("gpu", "variant", "resolution", "figure", "source")
_OPTIONAL = ("sms", "fp8_tflops", "l2_mb", "note")
_TEXTS = ("gpu", "name", "int8_instruction", "source", "note")
_INTEGERS = ("sm", "sms")


def load_peaks(path: str | Path) -> tuple[Gpu, ...]:
    """Read the table of peaks.

    Raises:
        UserError: no such file, other columns, a missing or impossible figure, a GPU twice.
    """
    frame = _read("load_peaks", path, tuple(field.name for field in fields(Gpu)))
    rows = tuple(_gpu(cells, path) for cells in frame.to_dict("records"))
    names = [row.gpu for row in rows]
    if not rows or len(set(names)) < len(names):
        raise UserError(
            f"load_peaks: {path} must have one row for each GPU, got {', '.join(names) or 'none'}; "
            "correct the column gpu"
        )
    return rows


def load_reported(path: str | Path) -> dict[tuple[str, str, int], tuple[str, str]]:
    """Read what papers report: (gpu, variant, resolution) -> (figure in their words, source).

    Raises:
        UserError: no such file, other columns, or a resolution that is no number.
    """
    found = {}
    for cells in _read("load_reported", path, REPORTED).to_dict("records"):
        if not cells["resolution"].isdigit() or not cells["source"]:
            raise UserError(
                f"load_reported: {path} must have a resolution and a source in every row, got "
                f"{cells}; correct it"
            )
        key = (cells["gpu"], cells["variant"], int(cells["resolution"]))
        found[key] = (cells["figure"], cells["source"])
    return found


def _read(caller: str, path: str | Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{caller}: {path} must be a readable CSV, got {type(error).__name__}; restore it"
        ) from error
    if tuple(frame.columns) != columns:
        raise UserError(
            f"{caller}: {path} must have the columns {', '.join(columns)}, got "
            f"{', '.join(frame.columns)}; correct the first line"
        )
    return frame


def _gpu(cells: dict[str, str], path: str | Path) -> Gpu:
    values = {}
    for name, text in cells.items():
        if name in _OPTIONAL and not text:
            values[name] = None
        elif name in _TEXTS:
            values[name] = text
        else:
            values[name] = _number(name, text)
    wrong = [name for name, value in values.items() if value == "" or value != value]
    if wrong:
        raise UserError(
            f"load_peaks: {path} must have a positive figure or a text in {', '.join(wrong)} of "
            f"{cells['gpu'] or 'every row'}, got {cells[wrong[0]]!r}; take it from the document"
        )
    return Gpu(**values)


def _number(name: str, text: str) -> float:
    """Return a positive finite number, or nan for what is none."""
    try:
        value = int(text) if name in _INTEGERS else float(text)
    except ValueError:
        return math.nan
    return value if 0 < value < math.inf else math.nan
