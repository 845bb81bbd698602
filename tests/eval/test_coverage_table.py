"""The page of the coverage map: what counts as off, and the words that follow from the cells."""

import csv
import io
import math

import pytest

from dit8.eval.coverage import Cell
from dit8.eval.coverage_cases import INTERVAL, TOST, Case, cases
from dit8.eval.coverage_table import COLUMNS, findings, is_off, off, plain_rates, render_csv
from dit8.eval.coverage_table import render_markdown as render

METHODS = {
    (INTERVAL, "exact match"): ("bca", "conditional", "newcombe", "newcombe below 20, then bca"),
    (TOST, "exact match"): ("t", "score"),
}


def cell(case: Case, method: str = "bca", rate: float = 0.95, used: bool = True) -> Cell:
    ends = (0.02, 0.03, 0.1234567) if case.question == INTERVAL else (math.nan,) * 3
    return Cell(case, method, used, 10_000, rate, *ends)


@pytest.fixture
def cells() -> list[Cell]:
    """Every case with its methods, all as promised."""
    found = []
    for case in cases():
        rate = 0.95 if case.question == INTERVAL else 0.05
        methods = METHODS.get((case.question, case.data))
        if methods is None and case.question == TOST:
            methods = ("t", "t and Hall" if not case.changed else "t with a worst case")
        elif methods is None and case.changed:
            methods = ("bca", "adjusted wald", "adjusted wald below 60, then bca")
        elif methods is None:
            methods = ("bca over pictures" if "seeds" in case.data else "t", "bca")
        found += [cell(case, m, rate, m == methods[-1]) for m in methods]
    return found


def test_a_rate_is_off_beyond_two_standard_errors_on_the_bad_side():
    interval, test = Case(INTERVAL, "normal", 300), Case(TOST, "normal", 300, margin=0.1)
    assert [cell(interval).error, cell(test).error] == pytest.approx([0.002179] * 2, abs=1e-6)
    assert off(cell(interval, rate=0.93)) == pytest.approx(0.02)
    assert off(cell(test, rate=0.07)) == pytest.approx(0.02)
    for case, inside, outside, good in (
        (interval, 0.9457, 0.9456, 0.999),
        (test, 0.0543, 0.0544, 0.001),
    ):
        assert not is_off(cell(case, rate=inside)) and is_off(cell(case, rate=outside))
        assert not is_off(cell(case, rate=good))


def test_the_csv_has_every_cell(cells):
    rows = list(csv.DictReader(io.StringIO(render_csv(cells))))
    assert len(rows) == len(cells) and tuple(rows[0]) == COLUMNS
    first, last = rows[0], rows[-1]
    assert (first["rate"], first["error"], first["off"]) == ("0.9500", "0.0022", "0.0000")
    assert (first["changed"], first["width"], first["used"]) == ("", "0.1235", "no")
    assert (last["question"], last["width"], last["too_low"], last["used"]) == (
        "tost",
        "",
        "",
        "yes",
    )


def test_without_faults_none_is_found(cells):
    lines = findings(cells)
    assert lines[0] == "Normal and mildly skewed scores, n = 300: BCa covers 95.0 to 95.0 %."
    assert not [line for line in lines if "miss" in line]
    assert "(" not in "".join(line for line in render(cells, "T").splitlines() if "| 300" in line)


def test_a_fault_is_marked_and_told(cells):
    case = Case(INTERVAL, "exact match", 300, 2, 1.0)
    rate = {"bca": 0.861, "conditional": 0.5, "newcombe below 20, then bca": 0.90}
    cells = [
        cell(c.case, c.method, rate.get(c.method, c.rate), c.used) if c.case == case else c
        for c in cells
    ]
    text = render(cells, "T")
    assert "86.1 (-8.9)" in text and "90.0 (-5.0)" in text
    assert (
        "- Exact match, BCa alone: 1 of 48 cases miss the promise, most at n = 300, changes "
        "expected: 2, all one way: 86.1 %, off by 8.9 points.\n"
    ) in text
    assert "Exact interval of the discordant pairs, not in use: 1 of 48 cases miss" in text
    case = Case(TOST, "normal", 300, margin=cases()[-1].margin)
    wrong = [
        cell(c.case, c.method, 0.08, c.used)
        if c.used and (c.case.question, c.case.data, c.case.n) == (TOST, "normal", 300)
        else c
        for c in cells
    ]
    text = render(wrong, "T")
    assert "8.0 (+3.0)" in text
    assert "Equivalence, every prompt differs, t and Hall: 1 of 21 cases miss" in text
    assert text.startswith("# T\n") and text.endswith("|\n")


def test_the_plain_scores_are_the_used_cells_at_most_prompts(cells):
    assert plain_rates(cells) == {"normal": 0.95, "mildly skewed (gamma, skewness 1)": 0.95}
