import math

import pytest

from dit8.eval.reproduce.table import (
    KEY,
    MEASURED,
    REFERENCE,
    REPORTED,
    Cell,
    Column,
    Table,
    empty,
    estimate,
    figure,
    keys,
    remarks,
    tally,
    words,
)
from dit8.eval.run import Interval

COLUMNS = (Column("variant"), Column("s", MEASURED, "here"), Column("s", REPORTED, "there"))


def table(*rows, columns=COLUMNS):
    return Table(1, "toy", "a toy", columns, rows, ("A note.",), ("a.csv",))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "words, a figure or a reason, one of them"),
        ({"text": "x", "value": 1.0}, "one of them"),
        ({"value": 1.0, "reason": "why"}, "one of them"),
        ({"value": 1.0, "low": 0.5}, "both ends"),
        ({"value": math.nan}, "finite"),
        ({"text": "x", "command": "python"}, "commands need a reason"),
    ],
    ids=["nothing", "two", "figure and reason", "half", "nan", "command"],
)
def test_a_cell_is_one_thing(options, match):
    with pytest.raises(ValueError, match=match):
        Cell(**options)


@pytest.mark.parametrize("arguments", [("s", "guessed", "x"), ("s", MEASURED), ("s", KEY, "x")])
def test_a_column_has_one_kind_and_figures_a_place(arguments):
    with pytest.raises(ValueError, match="Column: kind must be one of key, measured"):
        Column(*arguments)


def test_a_row_has_as_many_cells_as_columns():
    with pytest.raises(ValueError, match="a row of toy must have 3 cells"):
        table(keys("a"))


def test_keys_are_words_and_unique():
    full = (figure(1.0), figure(2.0))
    with pytest.raises(ValueError, match="variant of toy must be words"):
        table((figure(1.0), *full))
    with pytest.raises(ValueError, match="two rows of toy have the same keys"):
        table((*keys("a"), *full), (*keys("a"), *full))


def test_remarks_get_letters_in_the_order_of_reading():
    cells = [empty(f"r{i}", "python x.py") for i in range(28)]
    rows = [(*keys(f"k{i}"), cells[i], figure(1.0, "noted")) for i in range(28)]
    found = remarks(table(*rows))
    assert list(found)[:3] == ["r0: `python x.py`", "noted", "r1: `python x.py`"]
    assert list(found.values())[:3] == ["a", "b", "c"]
    assert list(found.values())[25:29] == ["z", "aa", "ab", "ac"]


def test_the_tally_counts_figures_by_kind_and_holes():
    interval = Interval(1.0, 0.5, 1.5, 9, "bca")
    rows = (
        (*keys("a"), estimate(interval), empty("not reported")),
        (*keys("b"), REFERENCE, words("about one")),
    )
    found = tally([table(*rows)])
    assert found == {"measured": 1, "predicted": 0, "counted": 0, "reported": 1, "empty": 1}
