"""Keep the results: two long-form CSVs and one JSON record per run.

Writers never append. Under an exclusive lock the file is read, the new rows are merged by key
and the whole is replaced at once, sorted, so that a reader sees the old file or the new one,
two writers lose nothing, and equal rows give equal bytes. Floats are stored by `repr`, which
reads back to the same float64.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dit8.eval.records import RunKey
from dit8.models.types import Sample
from dit8.quant.errors import UserError
from dit8.quant.files import locked, write_atomically

_RUN_COLUMNS = tuple(RunKey.__dataclass_fields__)


@dataclass(frozen=True)
class Layout:
    """Hold the columns of one CSV: the key, then the values; `types` of those not text."""

    key: tuple[str, ...]
    values: tuple[str, ...]
    types: Mapping[str, type]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.key + self.values


SCORES = Layout(
    key=(*_RUN_COLUMNS, "prompt_id", "seed", "scorer"),
    values=("value",),
    types={"seed": int, "value": float},
)
LATENCY = Layout(
    key=(*_RUN_COLUMNS, "stage"),
    values=("n", "p20_ms", "p50_ms", "p80_ms"),
    types={"n": int, "p20_ms": float, "p50_ms": float, "p80_ms": float},
)


def read_table(path: Path | str, layout: Layout) -> pd.DataFrame:
    """Read one of the CSVs; a file that does not exist yet is an empty table.

    Args:
        path: results/scores.csv or results/latency.csv.
        layout: SCORES or LATENCY.

    Returns:
        Text columns as str (an id "NA" stays text), seed and n int64, values float64.

    Raises:
        UserError: the columns are others, a cell does not parse, or a key occurs twice.
    """
    rows = _load(Path(path), layout)
    frame = pd.DataFrame([key + rest for key, rest in rows.items()], columns=list(layout.columns))
    dtypes = {int: "int64", float: "float64"}
    return frame.astype({name: dtypes[kind] for name, kind in layout.types.items()})


def upsert(
    path: Path | str,
    layout: Layout,
    rows: Iterable[Mapping[str, Any]],
    *,
    overwrite: bool = False,
) -> int:
    """Insert rows by key; rows already there with the same values are left alone.

    Args:
        path: the CSV; made, with its folder, when missing.
        layout: SCORES or LATENCY.
        rows: mappings with exactly the columns of the layout.
        overwrite: replace rows whose values differ, instead of refusing.

    Returns:
        How many rows were inserted or replaced; 0 leaves the file untouched.

    Raises:
        UserError: a differing value without overwrite, an unreadable file, no write permission.
        ValueError: a row with other columns, types, or a non-finite value.
    """
    path = Path(path)
    incoming: dict[tuple, tuple] = {}
    for row in rows:
        key, values = _checked(row, layout)
        if incoming.setdefault(key, values) != values:
            raise ValueError(f"ledger: two rows given for {_describe(key, layout)} differ")
    with locked(path):
        stored = _load(path, layout)
        changed = {k: v for k, v in incoming.items() if stored.get(k) != v}
        differing = [key for key in changed if key in stored]
        if differing and not overwrite:
            first = differing[0]
            raise UserError(
                f"ledger: {path} has other values for {len(differing)} rows, first"
                f" {_describe(first, layout)}: stored {stored[first]}, got {changed[first]};"
                " pass overwrite to replace them"
            )
        if changed:
            _write_rows(path, layout, stored | changed)
    return len(changed)


def score_rows(
    run: RunKey, samples: Sequence[Sample], scorer: str, values: Iterable[float]
) -> list[dict[str, Any]]:
    """Return the rows of results/scores.csv for one scorer's values, one per sample."""
    return [
        asdict(run)
        | {"prompt_id": s.prompt.id, "seed": s.prompt.seed, "scorer": scorer, "value": float(v)}
        for s, v in zip(samples, values, strict=True)
    ]


def write_run(folder: Path | str, run_id: str, record: Mapping[str, Any]) -> Path:
    """Write `folder`/<run_id>.json (sorted keys, trailing newline), replacing it at once.

    Raises:
        ValueError: run_id is not 12 hex digits, or the record is no strict JSON.
        UserError: no write permission.
    """
    if not re.fullmatch(r"[0-9a-f]{12}", run_id):
        raise ValueError(f"write_run: run_id must be 12 hexadecimal digits, got {run_id!r}")
    try:
        text = json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"write_run: the record of {run_id} is no strict JSON: {error}") from error
    path = Path(folder) / f"{run_id}.json"
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return path


def _load(path: Path, layout: Layout) -> dict[tuple, tuple]:
    if not path.exists():
        return {}
    advice = "restore it from version control or move it away"
    rows: dict[tuple, tuple] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header) != layout.columns:
            raise UserError(
                f"ledger: {path} has columns {header}, expected {list(layout.columns)}; {advice}"
            )
        kinds = [layout.types.get(name, str) for name in layout.columns]
        for cells in reader:
            where = f"ledger: {path}:{reader.line_num}"
            try:
                parsed = tuple(kind(c) for kind, c in zip(kinds, cells, strict=True))
            except ValueError as error:
                raise UserError(
                    f"{where} does not parse ({error}), expected {len(kinds)} cells; {advice}"
                ) from error
            key, values = parsed[: len(layout.key)], parsed[len(layout.key) :]
            if key in rows:
                raise UserError(f"{where} repeats {_describe(key, layout)}; {advice}")
            rows[key] = values
    return rows


def _write_rows(path: Path, layout: Layout, rows: Mapping[tuple, tuple]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(layout.columns)
            writer.writerows([*key, *rows[key]] for key in sorted(rows))

    write_atomically(path, write)


def _checked(row: Mapping[str, Any], layout: Layout) -> tuple[tuple, tuple]:
    """Return (key, values) of a row with the layout's own types, so that equal cells are equal."""
    if set(row) != set(layout.columns):
        raise ValueError(f"ledger: row has {sorted(row)}, expected {list(layout.columns)}")
    cells = []
    for name in layout.columns:
        kind, cell = layout.types.get(name, str), row[name]
        if kind is str:
            # one printable line per cell: nothing to quote differently, nothing invisible
            valid = isinstance(cell, str) and cell != "" and cell.isprintable()
        elif kind is int:
            valid = hasattr(cell, "__index__") and not isinstance(cell, bool)
        else:
            valid = hasattr(cell, "__float__") and math.isfinite(cell)
        if not valid:
            raise ValueError(f"ledger: {name} must be a valid {kind.__name__}, got {cell!r}")
        cells.append(kind(cell))
    return tuple(cells[: len(layout.key)]), tuple(cells[len(layout.key) :])


def _describe(key: tuple, layout: Layout) -> str:
    return ", ".join(f"{name}={cell}" for name, cell in zip(layout.key, key, strict=True))
