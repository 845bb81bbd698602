"""Read what the papers report: results/paper/<slug>.csv, a line a figure with its source.

The figures are quoted, never measured here. A `section` is filled in only where it was seen; an
empty one means that the figure is known to us from the paper without its place, and two ids in
`source` that it stands in one of the two. `gpu` is a key of conf/gpus/peaks.csv, empty where the
figure does not depend on one. A figure in words has neither value nor range and stands in `note`.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from dit8.conf.paths import ROOT
from dit8.eval.reproduce.table import Cell, empty
from dit8.quant.errors import UserError

FOLDER = ROOT / "results" / "paper"
UNREPORTED = "not reported"


@dataclass(frozen=True)
class Reported:
    """Hold one line; value, low and high are None where the cell is empty."""

    table: str
    source: str
    section: str
    gpu: str
    variant: str
    quantity: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    note: str


COLUMNS = tuple(field.name for field in fields(Reported))


def load_reported(slug: str, folder: Path = FOLDER) -> tuple[Reported, ...]:
    """Read the figures that belong to a table: the papers', whosever rows stand beside them.

    Raises:
        UserError: no such file, other columns, a line of another table, without a source, with a
            number that is none, with half a range, or with nothing to show; a figure twice.
    """
    path = folder / f"{slug}.csv"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} must be a readable CSV, got {type(error).__name__}; restore it "
            "from version control"
        ) from error
    if tuple(frame.columns) != COLUMNS:
        raise UserError(
            f"{path} must have the columns {', '.join(COLUMNS)}, got "
            f"{', '.join(frame.columns)}; restore it from version control"
        )
    rows = tuple(_row(cells, path, slug) for cells in frame.to_dict("records"))
    keys = [(row.gpu, row.variant, row.quantity) for row in rows]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise UserError(
            f"{path} must have a figure once, got {' '.join(twice[0])} "
            f"{keys.count(twice[0])} times; keep one line"
        )
    return rows


def reported_cell(
    rows: tuple[Reported, ...], variant: str, quantity: str, gpu: str | None = None
) -> Cell:
    """Return the cell of one figure; an empty one where no paper reports it.

    Args:
        gpu: key of conf/gpus/peaks.csv; None: whatever it was.
    """
    for row in rows:
        if (row.variant, row.quantity) == (variant, quantity) and gpu in (None, row.gpu):
            if row.value is None and row.low is None:
                return Cell(text=row.note)
            return Cell(value=row.value, low=row.low, high=row.high, note=row.note)
    return empty(UNREPORTED)


def sources_note(rows: tuple[Reported, ...]) -> str:
    """Say which documents the reported figures are from."""
    names = dict.fromkeys(
        f"arXiv {name}" if name[0].isdigit() else name
        for row in rows
        for name in row.source.split(", ")
    )
    return f"Reported figures: {', '.join(sorted(names))}; quoted, not measured here."


def _row(cells: dict[str, str], path: Path, slug: str) -> Reported:
    numbers = {name: _number(cells[name]) for name in ("value", "low", "high")}
    row = Reported(**(cells | numbers))
    given = [number for number in numbers.values() if number is not None]
    whole = (row.low is None) == (row.high is None)
    shown = given or row.note
    if row.table != slug or not row.source or not whole or not shown or any(map(math.isnan, given)):
        raise UserError(
            f"{path} must have table {slug}, a source, and a figure, a whole range or a "
            f"note in every line, got {row.variant} {row.quantity} {cells}; correct it"
        )
    return row


def _number(text: str) -> float | None:
    """Return None for an empty cell, nan for what is no finite number."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
