"""Keep the results: three CSVs, one row an image, a stage or a run, and one JSON record per run.

    runs.csv      run_id | what the run is: model ... prompt_set, sampler ... n, started, gpu, ...
    scores.csv    run_id, prompt_id, seed | one column a scorer; empty where it gave no value
    latency.csv   run_id, stage | n, p20_ms, p50_ms, p80_ms

`read_table` joins the columns of a run to its rows and gives one row a value, so that a reader
needs one file; it also reads the files of older versions, which repeated a run's columns in every
row, and the next `upsert` writes them anew. Writers never append. Under an exclusive lock the file
is read, the new rows are merged by key and the whole is replaced at once, sorted, so that a reader
sees the old file or the new one, two writers lose nothing, and equal rows give equal bytes. Floats
are stored by `repr`, which reads back to the same float64.
"""

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dit8.eval.run import RunKey
from dit8.models.types import Sample
from dit8.quant.errors import UserError
from dit8.quant.files import locked, write_atomically

# in indented JSON, where a line break is never inside a string
PLAIN_LIST = re.compile(r"\[\n[^][{}]*\n\s*\]")
SCORERS = "scorers"  # in a run's record: what its scores are, see eval/score.py

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


# A run in runs.csv: what its rows share, and what else makes its configuration; all text, and empty
# where a run has no record. `n`: images. `commit` and `checkpoint`: first digits of their hashes.
RUNS = Layout(
    key=("run_id",),
    values=(
        *_RUN_COLUMNS[1:],
        *("sampler", "steps", "guidance", "size_px", "n"),
        *("started", "gpu", "commit", "checkpoint"),
    ),
    types={},
)
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


LEDGER = (SCORES, LATENCY)  # stored without the columns that runs.csv has
ADVICE = "restore it from version control or move it away"


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
            if layout in LEDGER:
                # before the rows: whoever reads these finds their runs
                _keep_runs(path.parent, {k[: len(_RUN_COLUMNS)] for k in stored | changed})
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


def read_record(path: Path) -> dict[str, Any]:
    """Read a run's record, <results>/runs/<run_id>.json; empty where there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        run_row(record)
        return record
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"ledger: {path} must be the record of a run, got {type(error).__name__}: {error}; "
            "restore it from version control, or remove the run's rows"
        ) from error


def was_only_scored(record: Mapping[str, Any]) -> bool:
    """Tell whether a record says nothing of how the run was drawn: elsewhere, or not yet."""
    return record.keys() <= {SCORERS}


def change_record(
    folder: Path | str, run_id: str, change: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> Path:
    """Replace `folder`/<run_id>.json (sorted keys, trailing newline) at once, under its lock.

    Args:
        folder: <results>/runs.
        run_id: of the run.
        change: gets the record as it is, empty where there is none, and returns it as it should be.

    Raises:
        ValueError: run_id is not 12 hex digits, or the record is no strict JSON.
        UserError: no write permission, or the file is damaged.
    """
    if not re.fullmatch(r"[0-9a-f]{12}", run_id):
        raise ValueError(f"run_id must be 12 hexadecimal digits, got {run_id!r}")
    path = Path(folder) / f"{run_id}.json"
    with locked(path):
        before = read_record(path)
        after = dict(change(before))
        try:
            text = json.dumps(after, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the record of {run_id} is no strict JSON: {error}") from error
        # lists of plain values on one line each, such as a prompt and its seed: half the bytes
        text = PLAIN_LIST.sub(
            lambda found: re.sub(r"\n\s*", "", re.sub(r",\n\s*", ", ", found[0])), text
        )
        if after != before or not path.exists():
            write_atomically(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))
    return path


def write_run(folder: Path | str, run_id: str, record: Mapping[str, Any]) -> Path:
    """Write what a run is into its record and into runs.csv; what scored it stays.

    Raises:
        ValueError, UserError: as `change_record`; another run has the name already.
    """

    def keep_scorers(before: dict[str, Any]) -> dict[str, Any]:
        return {key: before[key] for key in before.keys() & {SCORERS}} | record

    path = change_record(folder, run_id, keep_scorers)
    if "run" in record:
        _keep_runs(path.parents[1], {astuple(RunKey(**record["run"]))}, record)
    return path


def run_row(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the row of runs.csv that a run's record says; what it does not say stays empty."""
    sampler = record.get("identity", {}).get("sampler", {})
    gpu = record.get("hardware", {}).get("gpu")
    commit = record.get("git", {}).get("commit")
    found = {
        **record.get("run", {}),
        **{"sampler": sampler.get("name"), "steps": sampler.get("steps")},
        **{"guidance": sampler.get("guidance"), "size_px": sampler.get("size_px")},
        "n": len(record["prompts"]) if "prompts" in record else None,
        **{"started": record.get("started"), "gpu": gpu},
        "commit": commit and commit[:12],
        "checkpoint": (record.get("checkpoint_sha256") or "")[:12],
    }
    return {name: "" if value is None else str(value) for name, value in found.items()}


def _keep_runs(results: Path, keys: set[tuple], record: Mapping[str, Any] | None = None) -> None:
    """Give every run a row in <results>/runs.csv: of its record, else of its key alone.

    Args:
        results: folder of the ledger.
        keys: of runs, as RunKey has them.
        record: of the one run of `keys`; None: a row that is there stays, one that is not comes
            from <results>/runs/<run_id>.json where that exists.

    Raises:
        UserError: another run has the name already, or a record cannot be read.
    """
    path = results / "runs.csv"
    with locked(path):
        stored = _load(path, RUNS)
        rows = dict(stored)
        for key in keys:
            known = stored.get(key[:1])
            if known is not None and known[: len(key) - 1] != key[1:]:
                raise UserError(
                    f"ledger: run {key[0]} must be one run, got {key[1:]} beside "
                    f"{known[: len(key) - 1]} in {path}; move the files of one of them away"
                )
            if known is None or record is not None:
                said = record or read_record(results / "runs" / f"{key[0]}.json")
                found = dict.fromkeys(RUNS.columns, "") | run_row(said)
                found |= dict(zip(_RUN_COLUMNS, key, strict=True))
                rows[key[:1]] = tuple(found[name] for name in RUNS.values)
        if rows != stored:
            _write_rows(path, RUNS, rows)


def _load(path: Path, layout: Layout) -> dict[tuple, tuple]:
    """Read a file in any of its forms: key -> values, both as the layout has them."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
            raise UserError(f"ledger: {path} ends in the middle of a line; {ADVICE}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, []))
        if header == layout.columns:
            return _parse(path, reader, layout)
        if layout in LEDGER and header[: len(_lean(layout))] == _lean(layout):
            return _parse_lean(path, reader, layout, header[len(_lean(layout)) :])
    expected = [*_lean(layout), *["one column a scorer"] * (layout == SCORES)]
    raise UserError(f"ledger: {path} has columns {list(header)}, expected {expected}; {ADVICE}")


def _lean(layout: Layout) -> tuple[str, ...]:
    """Return the columns as they are stored, those of scorers aside."""
    if layout not in LEDGER:
        return layout.columns
    own = tuple(name for name in layout.columns if name not in _RUN_COLUMNS[1:])
    return own[:-2] if layout == SCORES else own


def _parse(path: Path, reader: Any, layout: Layout) -> dict[tuple, tuple]:
    rows: dict[tuple, tuple] = {}
    kinds = [layout.types.get(name, str) for name in layout.columns]
    for cells in reader:
        parsed = _typed(path, reader, kinds, cells)
        key, values = parsed[: len(layout.key)], parsed[len(layout.key) :]
        if key in rows:
            raise UserError(
                f"ledger: {path}:{reader.line_num} repeats {_describe(key, layout)}; {ADVICE}"
            )
        rows[key] = values
    return rows


def _typed(path: Path, reader: Any, kinds: Sequence[type], cells: Sequence[str]) -> tuple:
    try:
        return tuple(kind(cell) for kind, cell in zip(kinds, cells, strict=True))
    except ValueError as error:
        raise UserError(
            f"ledger: {path}:{reader.line_num} does not parse ({error}), expected {len(kinds)} "
            f"cells; {ADVICE}"
        ) from error


def _parse_lean(
    path: Path, reader: Any, layout: Layout, scorers: tuple[str, ...]
) -> dict[tuple, tuple]:
    runs = {key[0]: key + row for key, row in _load(path.with_name("runs.csv"), RUNS).items()}
    kinds = [layout.types.get(name, str) for name in _lean(layout)]
    kinds += [_value_or_none] * len(scorers)
    rows: dict[tuple, tuple] = {}
    for cells in reader:
        run_id, *rest = _typed(path, reader, kinds, cells)
        where = f"ledger: {path}:{reader.line_num}"
        if run_id not in runs:
            raise UserError(f"{where} is of run {run_id}, which runs.csv beside it lacks; {ADVICE}")
        run = runs[run_id][: len(_RUN_COLUMNS)]
        if layout == SCORES:
            sample, values = rest[:2], rest[2:]
            given = zip(scorers, values, strict=True)
            found = {(*run, *sample, name): (v,) for name, v in given if v is not None}
        else:
            found = {(*run, rest[0]): tuple(rest[1:])}
        if repeated := next((key for key in found if key in rows), None):
            raise UserError(f"{where} repeats {_describe(repeated, layout)}; {ADVICE}")
        rows |= found
    return rows


def _value_or_none(cell: str) -> float | None:
    return float(cell) if cell else None


def _write_rows(path: Path, layout: Layout, rows: Mapping[tuple, tuple]) -> None:
    columns, lines = _lean(layout), ([*key, *rows[key]] for key in sorted(rows))
    if layout in LEDGER:
        lines = ([line[0], *line[len(_RUN_COLUMNS) :]] for line in lines)
    if layout == SCORES:
        scorers = sorted({key[-1] for key in rows})
        images: dict[tuple, dict[str, float]] = {}
        for *image, scorer, value in lines:
            images.setdefault(tuple(image), {})[scorer] = value
        columns = (*columns, *scorers)
        lines = ([*image, *map(found.get, scorers)] for image, found in images.items())

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(lines)

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
