"""Modelled time of a group of linears under a scheme, from a table of one GPU.

A table holds one row per (role, scheme): the time of the group's single GEMM (q, k and v stacked,
w1 and w3 stacked) at M rows, row quantization included. What is not in the table is scaled from
the row that is most like it, by multiply-accumulates: it ranks schemes, it predicts no picture's
time. `conf/latency/h200.csv` was not measured by this repository; its column `source` says how
each figure was got. It lies in `conf`, as an input, because `results` holds measurements only.
Its 1.79 TB/s is the rate of the row quantization in the same reference: 5.0 ms a forward for 34
blocks, 4396 rows and 19,968 input channels a block (w2 in half of them), 3 bytes a value.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from dit8.quant.errors import UserError
from dit8.quant.types import Group, Scheme

SCHEMES = ("bf16", "int8", "int8_rotate")


@dataclass(frozen=True)
class GemmTime:
    """One row of a latency table."""

    gpu: str
    role: str
    n: int
    k: int
    scheme: str  # one of SCHEMES
    m: int  # rows the time is for
    ms: float
    source: str


COLUMNS = tuple(field.name for field in fields(GemmTime))


def load_latency(path: str | Path) -> tuple[GemmTime, ...]:
    """Read a latency table.

    Raises:
        UserError: no such file, other columns, or a row that is not one; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"load_latency: {path} must be a latency table, got no such file; "
            "use conf/latency/h200.csv or make one with the same columns"
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            raise UserError(
                f"load_latency: {path} must have the columns {', '.join(COLUMNS)}, got "
                f"{', '.join(header) or 'none'}; correct the first line"
            )
        rows = tuple(_row(cells, f"{path}:{reader.line_num}") for cells in reader)
    if not rows:
        raise UserError(f"load_latency: {path} must have rows, got none; restore it")
    sizes = {row.m for row in rows}, {row.gpu for row in rows}
    if any(len(values) > 1 for values in sizes):
        raise UserError(
            f"load_latency: {path} must be of one GPU and one M, got {sorted(sizes[1])} and "
            f"{sorted(sizes[0])}; split the table"
        )
    return rows


def _row(cells: list[str], where: str) -> GemmTime:
    kinds = [field.type for field in fields(GemmTime)]
    try:
        row = GemmTime(*(kind(cell) for kind, cell in zip(kinds, cells, strict=True)))
    except ValueError as error:
        raise UserError(
            f"load_latency: {where} must have {len(kinds)} cells of the right types, got {cells} "
            f"({error}); correct it"
        ) from error
    positive = row.n > 0 and row.k > 0 and row.m > 0 and row.ms > 0 and math.isfinite(row.ms)
    if row.scheme not in SCHEMES or not positive:
        raise UserError(
            f"load_latency: {where} must have one of the schemes {', '.join(SCHEMES)} and positive "
            f"n, k, m and ms, got {row.scheme} {row.n} {row.k} {row.m} {row.ms}; correct it"
        )
    return row


def role_of(group: Group) -> str:
    """Name what a group does in its block: qkv, up, o, w2, text, adaln or outside.

    The last part of the group's name for those of a block, whatever the architecture.
    """
    if group.role == "text":
        return "text"
    if group.role == "rest":
        return "adaln" if "adaln" in group.name else "outside"
    return group.name.rpartition(".")[2]


def latency_scheme(scheme: Scheme) -> str:
    """Name the row of the table that a scheme is timed by; smoothing costs nothing in it."""
    if not scheme.is_int8:
        return "bf16"
    return "int8_rotate" if scheme.rotation else "int8"


def group_cost(
    table: Sequence[GemmTime],
    group: Group,
    shapes: Mapping[str, tuple[int, int]],
    scheme: str,
) -> float:
    """Model the time of all linears of a group together.

    Where the shape is not in the table, the row of the same role is scaled by multiply-accumulates,
    N K / (N_row K_row); a role that the table lacks takes the row nearest in log N and log K.

    Args:
        table: of one GPU, from `load_latency`.
        group: which linears.
        shapes: linear -> (N, K), at least the group's targets.
        scheme: one of SCHEMES, see `latency_scheme`.

    Returns:
        ms at the table's M rows.

    Raises:
        ValueError: unknown scheme, or one that the table has no row of.
    """
    rows = [row for row in table if row.scheme == scheme]
    if not rows:
        raise ValueError(f"group_cost: the table has no row of scheme {scheme!r}")
    n, k = sum(shapes[target][0] for target in group.targets), shapes[group.targets[0]][1]
    exact = [row for row in rows if (row.n, row.k) == (n, k)]
    alike = [row for row in rows if row.role == role_of(group)]

    def distance(row: GemmTime) -> float:
        return abs(math.log(row.n / n)) + abs(math.log(row.k / k))

    nearest = min(exact or alike or rows, key=distance)
    return nearest.ms * (n * k) / (nearest.n * nearest.k)
