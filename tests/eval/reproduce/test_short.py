"""The five rows and the chart of the README follow from the rows."""

import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from dit8.eval.reproduce import bench, chart, short
from dit8.eval.reproduce.tables import build_tables
from dit8.eval.run import Interval


@pytest.fixture(scope="module")
def tables(built):
    return built


@pytest.fixture(scope="module")
def rows(tables, committed):
    text = short.build(committed, tables[7])
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    head, _, *body = ([cell.strip() for cell in line] for line in lines)
    assert head == list(short.HEADS)
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}, text


def test_rows_are_those_of_the_nine_tables(rows, tables):
    found, _ = rows
    assert list(found) == list(short.ROWS)
    for table, keys, column, label in (
        (1, ("1024", None, "dit8"), "image on an H200, s", "image"),
        (1, ("1024", None, "dit8"), "times bf16", bench.BESIDE_BF16),
        (1, ("1024", None, "dit8"), "peak, GB", "peak"),
        (7, (None,), "weights, GB", "size"),
    ):
        names = [one.label for one in tables[table].columns]
        for variant, row in found.items():
            wanted = tuple(key or variant for key in keys)
            (line,) = (
                each
                for each in tables[table].rows
                if tuple(cell.text for cell in each[: len(wanted)]) == wanted
            )
            value = line[names.index(label)].value
            assert float(row[column]) == pytest.approx(value, abs=0.051 if "GB" in column else 6e-3)


def test_verdicts_are_those_of_the_committed_page(rows, committed):
    page = (committed / "tables" / "verdicts_mini.md").read_text(encoding="utf-8")
    for variant, row in rows[0].items():
        if variant == "bf16":
            assert row["mini: verdict"] == "reference"
            continue
        kind = row["mini: verdict"].split(",")[0]
        assert f"- {variant} is {kind} " in page
        points = re.match(r"[+-][\d.]+", row["mini: texts read right, % [95 %]"])[0]
        change = re.search(rf"\| {variant} +\| ocr_exact +\| 200 \| ([+-][\d.]+)", page)[1]
        assert float(points) == pytest.approx(100 * float(change), abs=0.06)


def test_the_line_below_says_what_was_not_measured(rows, ledger):
    said = " ".join(rows[1].split("\n\n")[1].split())
    assert "random weights" in said and "not Ideogram 4" in said and "no RTX 3090" in said
    assert max(map(len, rows[1].split("\n\n")[1].splitlines())) <= 100
    (frontier,) = build_tables(ledger.results, (7,))
    assert "not measured: `python scripts/evaluate.py -m" in short.build(ledger.results, frontier)


def test_ratios_have_the_error_of_both_steps():
    def timed(mean, half):
        return bench.Timed("r", {"cfg_step_ms": Interval(mean, mean - half, mean + half, 5, "t")})

    ratio = short.times_as_fast(timed(200.0, 6.0), timed(100.0, 4.0))
    assert ratio.estimate == 2.0
    assert ratio.high - 2.0 == pytest.approx(2.0 * (0.03**2 + 0.04**2) ** 0.5)


def test_points_are_those_of_the_tables(tables, committed):
    shown = chart.points(committed, tables[5], tables[6])
    assert [point.name for point in shown] == [n for n, e in bench.PATHS if e == "dit8"]
    for point in shown:
        row = chart.OTHER_ROWS.get(point.name)
        page = "table6_ablation" if row else "table5_fidelity"
        cells = pd.read_csv(committed / "tables" / f"{page}.csv")
        one = cells[
            cells["row"].str.fullmatch(f"(row|variant)={row or point.name}")
            & (cells["column"] == chart.PSNR)
            & cells["where"].str.startswith("mini (not")
        ]
        assert point.quality.estimate == pytest.approx(one["value"].item(), rel=1e-5)
        assert point.speed.low <= point.speed.estimate <= point.speed.high
    assert {point.name for point in shown if point.speed.low > 1} == {"fused_int8", "rotated"}


def test_the_committed_chart_is_the_regenerated_one(tables, committed):
    drawn = chart.draw(chart.points(committed, tables[5], tables[6]))
    assert (committed / "readme" / "chart.svg").read_text(encoding="utf-8") == drawn
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_variants_without_rows_are_left_out(tables, ledger):
    fidelity, ablation = build_tables(ledger.results, (5, 6))
    assert chart.points(ledger.results, fidelity, ablation) == ()
