import csv
import io
import re

import pytest

from dit8.eval.reproduce.render import LATEX, escape, render_csv, render_latex, render_markdown
from dit8.eval.reproduce.table import (
    MEASURED,
    REPORTED,
    Cell,
    Column,
    Table,
    empty,
    estimate,
    figure,
    keys,
)
from dit8.eval.run import Interval

MINI = "mini (not Ideogram 4)"
LACKING = empty("needs weights", "python x.py a_b=1")
TABLE = Table(
    3,
    "toy",
    "a toy & 50 % of it",
    (
        Column("variant"),
        Column("PSNR ↑", MEASURED, MINI, "dB", ".1f"),
        Column("Δ", MEASURED, MINI, spec="+.2g"),
        Column("mean", MEASURED, "Ideogram 4"),
        Column("Δ", MEASURED, "Ideogram 4"),
        Column("PSNR", REPORTED, "papers", "dB", ".2f"),
    ),
    (
        (
            *keys("q4_k"),
            estimate(Interval(42.04, 41.0, 43.96, 9, "bca")),
            estimate(Interval(0.5, 0.25, 0.75, 9, "newcombe")),
            *(LACKING,) * 2,
            figure(20.0, "about"),
        ),
        (*keys("a|b"), figure(1 / 3), LACKING, LACKING, LACKING, Cell(low=1.0, high=2.0)),
    ),
    ("First `a_b` note.",),
    ("a.csv", "b.csv", "c.csv"),
)


def test_markdown():
    lines = render_markdown(TABLE).splitlines()
    assert lines[0] == "# Table 3: A toy & 50 % of it"
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:6]]
    assert cells[0] == [
        "variant",
        f"PSNR ↑, dB [measured: {MINI}]",
        f"Δ [measured: {MINI}]",
        "mean, Δ [measured: Ideogram 4]",
        "PSNR, dB [reported: papers]",
    ]
    assert cells[2] == ["q4_k", "42.0 [41.0, 44.0]", "+0.5 [+0.25, +0.75] (newcombe)", "– (a)"] + [
        "20.00 (b)"
    ]
    assert cells[3] == [r"a\|b", "0.3", "– (a)", "– (a)", "1.00–2.00"]
    assert lines[7:9] == ["- (a) needs weights: `python x.py a_b=1`", "- (b) about"]
    assert lines[-1] == (
        "Made by `python scripts/reproduce.py --table 3` from `a.csv`, `b.csv` and `c.csv`."
    )


def test_columns_that_are_empty_alike_fold_only_within_their_place():
    columns = [Column("variant")]
    columns += [Column(name, MEASURED, place) for place in ("here", "there") for name in "xy"]
    row = (*keys("a"), *(LACKING,) * 4)
    table = Table(1, "toy", "toy", tuple(columns), (row,), (), ("a.csv",))
    head = render_markdown(table).splitlines()[2]
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "variant",
        "x, y [measured: here]",
        "x, y [measured: there]",
    ]


def test_a_column_says_once_how_its_brackets_are_made():
    column = Column("s", MEASURED, "here", spec=".0f", method="student")
    cells = [Cell(value=2.0, low=1.0, high=3.0, method=name) for name in ("student", "newcombe")]
    rows = tuple((*keys(name), cell) for name, cell in zip("ab", cells, strict=True))
    table = Table(1, "toy", "toy", (Column("k"), column), rows, (), ("a.csv",))
    lines = render_markdown(table).splitlines()
    assert lines[4].rstrip(" |").endswith("| 2 [1, 3]")
    assert "2 [1, 3] (newcombe)" in lines[5]


def test_csv_has_every_cell_and_six_digits():
    rows = list(csv.DictReader(io.StringIO(render_csv(TABLE))))
    assert len(rows) == 2 * 5
    first, delta, mean = rows[:3]
    assert (first["value"], first["low"], first["high"]) == ("42.04", "41", "43.96")
    assert (first["row"], first["kind"], first["unit"]) == ("variant=q4_k", "measured", "dB")
    assert delta["method"] == "newcombe" and first["method"] == "bca"
    assert (mean["reason"], mean["command"]) == ("needs weights", "python x.py a_b=1")
    assert rows[4]["note"] == "about" and rows[4]["method"] == ""
    assert rows[5]["value"] == "0.333333"
    assert (rows[9]["value"], rows[9]["low"], rows[9]["high"]) == ("", "1", "2")


def test_latex_compiles_as_far_as_a_small_parser_can_tell(check_latex):
    text = render_latex(TABLE)
    check_latex(text)
    assert r"\caption{A toy \& 50 \% of it}" in text
    assert r"\multicolumn{2}{c}{measured: mini (not Ideogram 4)}" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-4} \cmidrule(lr){5-5}" in text
    assert r"q4\_k & 42.0 [41.0, 44.0] & +0.5 [+0.25, +0.75] (newcombe) & -- (a) & 20.00" in text
    assert r"(a) needs weights: \texttt{python x.py a\_b=1}. (b) about." in text
    assert text.splitlines()[-2].endswith(r"First \texttt{a\_b} note.")


@pytest.mark.parametrize("character", list(LATEX))
def test_every_character_with_a_command_becomes_valid_latex(character, check_characters):
    found = escape(f"a{character}b")
    assert found.isascii() and found != f"a{character}b"
    check_characters(found)


def test_a_character_without_a_command_is_named():
    with pytest.raises(ValueError, match="escape: no LaTeX is known for '☃', add it to LATEX"):
        escape("a ☃")
