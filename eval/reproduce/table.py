"""What a table of the papers is made of: cells that are a figure, words, or empty with a reason.

A column has one kind, so that measured and reported figures cannot share one, and says where its
figures come from. An empty cell says why and what would fill it: a table that hides its holes looks
finished. `eval.reproduce.render` writes tables down.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dit8.eval.run import Interval

KEY, MEASURED, PREDICTED, COUNTED, REPORTED = "key", "measured", "predicted", "counted", "reported"
KINDS = (KEY, MEASURED, PREDICTED, COUNTED, REPORTED)
BCA, STUDENT, RANGE = "bca", "student", "range of runs"  # how brackets are made


@dataclass(frozen=True)
class Column:
    """Head one column.

    Args:
        label: what its cells are.
        kind: one of KINDS.
        where: what the figures are of, such as "mini (not Ideogram 4)"; "" for a key.
        unit: of the figures; "" for words and pure numbers.
        spec: format of the figures.
        method: how its brackets are made; a cell made otherwise says so.
    """

    label: str
    kind: str = KEY
    where: str = ""
    unit: str = ""
    spec: str = ".4g"
    method: str = BCA

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.kind == KEY) == bool(self.where):
            raise ValueError(
                f"Column: kind must be one of {', '.join(KINDS)}, with a place unless it is a key; "
                f"got {self.kind!r} and {self.where!r}"
            )


@dataclass(frozen=True)
class Cell:
    """Hold one cell: words, a figure, a range, or the reason why there is neither.

    Args:
        text: words; of a key or of what is no number.
        value: a figure in its column's unit, None for a range.
        low, high: its interval, or the range.
        method: how the interval was made.
        note: what a reader must know of this figure.
        reason: why the cell is empty.
        command: what fills the empty cell; "" where nothing does.
        spec: format that goes before the column's; "" for none.
    """

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = BCA
    note: str = ""
    reason: str = ""
    command: str = ""
    spec: str = ""

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        figure = any(number is not None for number in (self.value, *ends))
        if (bool(self.text) + figure + bool(self.reason)) != 1:
            raise ValueError(
                f"Cell: must have words, a figure or a reason, one of them; got {self}"
            )
        if (None in ends) and ends != (None, None):
            raise ValueError(f"Cell: an interval must have both ends, got {ends}")
        numbers = [number for number in (self.value, *ends) if number is not None]
        if not all(map(math.isfinite, numbers)) or (self.command and not self.reason):
            raise ValueError(f"Cell: figures must be finite, commands need a reason; got {self}")

    @property
    def is_empty(self) -> bool:
        return bool(self.reason)

    @property
    def remark(self) -> str:
        """What its footnote says; "" for none."""
        if not self.is_empty:
            return self.note
        return f"{self.reason}: `{self.command}`" if self.command else self.reason


@dataclass(frozen=True)
class Table:
    """Hold one table.

    Args:
        number: 1 to 9, as scripts/reproduce.py counts.
        slug: short name, part of the file's.
        title: one line without a full stop.
        notes: sentences below the table.
        sources: the files that it was made of, from the repository's root.
        results: folder of the rows among them.
    """

    number: int
    slug: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    results: str = "results"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                count = len(self.columns)
                raise ValueError(f"Table: a row of {self.slug} must have {count} cells: {row}")
            for column, cell in zip(self.columns, row, strict=True):
                if column.kind == KEY and not cell.text:
                    raise ValueError(f"Table: {column.label} of {self.slug} must be words: {cell}")
        keys = [self.key(row) for row in self.rows]
        if len(set(keys)) < len(keys):
            raise ValueError(f"Table: two rows of {self.slug} have the same keys")

    @property
    def stem(self) -> str:
        """Name of its files, without the suffix."""
        return f"table{self.number}_{self.slug}"

    def key(self, row: tuple[Cell, ...]) -> str:
        """Name a row by its keys."""
        cells = zip(self.columns, row, strict=True)
        return "; ".join(f"{c.label}={cell.text}" for c, cell in cells if c.kind == KEY)


def words(text: str, note: str = "") -> Cell:
    """Make a cell of words."""
    return Cell(text=text, note=note)


REFERENCE = words("reference")  # what others are compared with has nothing to compare


def keys(*texts: str) -> tuple[Cell, ...]:
    """Make the first cells of a row."""
    return tuple(map(words, texts))


def figure(value: float, note: str = "") -> Cell:
    """Make a cell of one number."""
    return Cell(value=value, note=note)


def estimate(interval: Interval, *, spec: str = "") -> Cell:
    """Make a cell of an estimate and its interval."""
    ends = {"low": interval.low, "high": interval.high}
    return Cell(value=interval.estimate, method=interval.method, spec=spec, **ends)


def empty(reason: str, command: str = "") -> Cell:
    """Make an empty cell that says why it is, and what would fill it."""
    return Cell(reason=reason, command=command)


def remarks(table: Table) -> dict[str, str]:
    """Give every remark of the cells a letter, in the order of reading: remark -> a, b, ... aa."""
    found = dict.fromkeys(cell.remark for row in table.rows for cell in row if cell.remark)
    return {remark: _letter(index) for index, remark in enumerate(found)}


def tally(tables: Iterable[Table]) -> dict[str, int]:
    """Count the figures by the kind of their column, and the empty cells."""
    counts = dict.fromkeys((*KINDS[1:], "empty"), 0)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row, strict=True):
                if column.kind != KEY and cell != REFERENCE:
                    counts["empty" if cell.is_empty else column.kind] += 1
    return counts


def _letter(index: int) -> str:
    first, last = divmod(index, 26)
    return (chr(ord("a") + first - 1) if first else "") + chr(ord("a") + last)
