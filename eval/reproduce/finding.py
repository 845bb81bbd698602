"""A claim of the papers and what is found of it: the parts that every claim shares.

Nothing is measured here: every figure is a cell of a table, or comes from rows that a table was
made of, so a finding cannot say what the tables do not. The outcome follows from a condition on
those figures, and a claim whose figures are not there is untested, whatever its condition.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit8.eval.exact_match import delta_interval
from dit8.eval.reproduce.runs import MINI, Place, Run, choose_recipes, choose_runs
from dit8.eval.reproduce.table import BCA, KEY, MEASURED, STUDENT, Cell, Table
from dit8.eval.run import Interval
from dit8.eval.scorers import get_scorer
from dit8.eval.table import format_interval

HOLDS, PARTLY, FAILS = "Holds here", "Holds in part", "Does not hold here"
UNDECIDED, UNTESTED = "Not decided here", "Cannot be tested here"
OUTCOMES = (HOLDS, PARTLY, FAILS, UNDECIDED, UNTESTED)
BELOW, PARITY, ABOVE = "below", "at parity with", "above"  # where a difference puts a variant

Tables = Mapping[int, Table]
Judge = Callable[[Tables, Path], tuple[str, str]]  # all nine, folder of rows -> outcome, figures


class Lacking(Exception):
    """A figure that a claim needs was not measured."""


@dataclass(frozen=True)
class Claim:
    """Hold one claim.

    Args:
        text: what the papers say, with their figures, and which of them says it.
        judge: returns the outcome and the figures here, or raises Lacking.
        commands: make the figures; none where nothing here would test the claim.
    """

    text: str
    judge: Judge
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """Hold what is found of one claim; `outcome` is one of OUTCOMES."""

    claim: Claim
    outcome: str
    found: str

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"Finding: outcome must be one of {OUTCOMES}, got {self.outcome!r}")


def find(claims: Sequence[Claim], tables: Tables, results: Path) -> tuple[Finding, ...]:
    """Judge every claim; one that lacks a figure is untested and says which."""
    found = []
    for claim in claims:
        try:
            outcome, text = claim.judge(tables, results)
        except Lacking as lacking:
            outcome, text = UNTESTED, f"Not measured: {lacking}."
        found.append(Finding(claim, outcome, text))
    return tuple(found)


def outcome_of(conditions: Sequence[bool]) -> str:
    """Return HOLDS if all of a claim's parts hold, FAILS if none does, else PARTLY."""
    return HOLDS if all(conditions) else PARTLY if any(conditions) else FAILS


def pick(
    table: Table,
    row: tuple[str, ...],
    label: str,
    *,
    unit: str | None = None,
    kind: str = MEASURED,
    where: str = "",
) -> Cell:
    """Return the cell of a row in the first column of this label and kind.

    Args:
        row: the first words of the row.
        unit: of the column, where its label occurs with several.
        where: a part of what the column says its figures are of.

    Raises:
        Lacking: the cell is empty.
        ValueError: no such row or column.
    """
    for index, column in enumerate(table.columns):
        wanted = (column.label, column.kind) == (label, kind) and where in column.where
        if not wanted or unit not in (None, column.unit):
            continue
        for cells in table.rows:
            names = [c.text for k, c in zip(table.columns, cells, strict=True) if k.kind == KEY]
            if tuple(names[: len(row)]) == row:
                if cells[index].value is None:
                    raise Lacking(f"{label} of {', '.join(row)} in table {table.number}")
                return cells[index]
    raise ValueError(f"finding: table {table.number} has no {label} of {', '.join(row)}")


def bounds_of(cell: Cell) -> tuple[float, float]:
    """Return both ends of a cell's interval; Lacking where it has none."""
    if cell.low is None or cell.high is None:
        raise Lacking("an interval of a figure that stands alone")
    return cell.low, cell.high


def stands(difference: Cell) -> str:
    """Say where a variant stands to another; PARITY: the interval of the difference holds 0."""
    low, high = bounds_of(difference)
    return ABOVE if low > 0 else BELOW if high < 0 else PARITY


def shown(figure: Cell | Interval, spec: str) -> str:
    """Write a figure with its interval, and the method where it is not one of the usual two."""
    if isinstance(figure, Interval):
        return format_interval(figure, spec)
    text = format(figure.value, spec)
    if figure.low is not None:
        text += f" [{figure.low:{spec}}, {figure.high:{spec}}]"
    return text if figure.method in (BCA, STUDENT) else f"{text} ({figure.method})"


def between(variant: str, other: str, scorer: str, results: Path) -> Interval:
    """Return the paired difference of two variants of the mini; Lacking where one has no score."""
    return _paired(choose_runs(results, MINI, (scorer,)), variant, other, scorer, MINI)


def between_recipes(
    recipe: str, other: str, scorer: str, results: Path, place: Place = MINI
) -> Interval:
    """Return the paired difference of int8 under two recipes; Lacking where one has no score."""
    found = choose_recipes(results, place, (scorer,), (recipe, other))
    return _paired(found, recipe, other, scorer, place)


def _paired(runs: Mapping[str, Run], name: str, other: str, scorer: str, place: Place) -> Interval:
    for each in (name, other):
        if each not in runs:
            raise Lacking(f"{scorer} of {each} on {place.model}")
    values = (runs[each].values[scorer] for each in (name, other))
    return delta_interval(get_scorer(scorer).bounds, *values)
