from dataclasses import replace

import pytest

from dit8.eval.reproduce.brief import PICKS, Pick, render_brief
from dit8.eval.reproduce.render import ABSENT
from dit8.eval.reproduce.table import MEASURED, Column, Table, empty, figure, keys

HERE, THERE = PICKS[7][0].where, PICKS[7][1].where


def made(*cells):
    """A table 7 whose columns are those that are picked, in another order, and two more."""
    columns = [Column("variant"), Column("size", "counted", HERE, "GB", ".1f")]
    columns += [Column(p.label, p.kind, p.where, spec=".1f") for p in reversed(PICKS[7])]
    columns += [Column("left out", MEASURED, THERE)]
    row = (*keys("fp8"), figure(9.0), *cells, figure(8.0))
    return Table(7, "frontier", "quality against size", tuple(columns), (row,), ("a note",), ("x",))


CELLS = [empty("not reported"), figure(0.5), figure(0.2), figure(21.0), figure(19.3)]


def test_picked_columns_stand_in_their_order_under_their_own_heads():
    lines = render_brief(made(*CELLS)).splitlines()
    assert lines[0] == "# Quality against size"
    head, row = ([word.strip() for word in lines[n].split("|")[1:-1]] for n in (2, 4))
    assert head == ["variant", *(pick.head for pick in PICKS[7])]
    assert row == ["fp8", "19.3", "21.0", "0.2", "0.5", f"{ABSENT} (a)"]
    assert lines[6:8] == ["- (a) not reported", ""]
    assert " ".join(lines[8:]) == (
        "From [table 7](results/tables/table7_frontier.md), which has every column, says how it "
        "was measured and what fills its empty cells."
    )


def test_every_head_of_reported_figures_says_so():
    for picks in PICKS.values():
        for pick in picks:
            assert ("reported" in pick.head) == (pick.kind == "reported")


def test_a_column_that_is_gone_and_another_table_are_bugs(monkeypatch):
    table = made(*CELLS)
    monkeypatch.setitem(PICKS, 7, (Pick("h", "gone"),))
    with pytest.raises(ValueError, match="table 7 has no column for Pick.head='h', label='gone'"):
        render_brief(table)
    with pytest.raises(KeyError):
        render_brief(replace(table, number=3))
