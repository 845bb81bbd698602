"""The script as a user starts it, and that the committed map holds what the project promises."""

import csv
import math
from pathlib import Path

import pytest

from dit8.eval.coverage import simulate
from dit8.eval.coverage_cases import INTERVAL, TOST, Case, cases
from dit8.eval.coverage_table import PLAIN, render_csv

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "results" / "tables"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (TABLES / "coverage_map.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_committed_map_has_every_case_with_ten_thousand_experiments(rows):
    named = {(r["question"], r["data"], int(r["n"])) for r in rows}
    assert named == {(case.question, case.data, case.n) for case in cases()}
    assert sum(r["used"] == "yes" for r in rows) == len(cases())
    assert all(int(r["experiments"]) >= 10_000 for r in rows)


def test_plain_scores_are_covered_in_94_to_96_percent(rows):
    rates = {
        r["data"]: float(r["rate"])
        for r in rows
        if (r["question"], r["n"], r["used"]) == (INTERVAL, "300", "yes") and r["data"] in PLAIN
    }
    assert set(rates) == set(PLAIN)
    assert all(0.94 <= rate <= 0.96 for rate in rates.values()), rates


def test_equivalence_errs_in_5_percent_and_two_standard_errors_at_most(rows):
    """Everywhere but for strongly skewed scores, of which the map says how far."""
    for r in rows:
        beyond = r["data"].startswith(("skewed", "very", "extremely"))
        if r["question"] == TOST and r["used"] == "yes" and not beyond:
            allowed = 0.05 + 2 * math.sqrt(0.05 * 0.95 / int(r["experiments"]))
            assert float(r["rate"]) <= allowed, r


def test_a_case_simulated_again_gives_the_committed_rows(rows):
    case = Case(INTERVAL, "thirds", 50, 5, 0.75)
    experiments = int(rows[0]["experiments"])
    again = csv.DictReader(render_csv(simulate(case, experiments, 0)).splitlines())
    key = (INTERVAL, "thirds", "50", "5", "0.75")
    columns = ("question", "data", "n", "changed", "upward")
    assert list(again) == [r for r in rows if tuple(r[c] for c in columns) == key]


def test_the_number_of_processes_does_not_change_a_byte(run_here, tmp_path):
    def draw(processes: int) -> tuple[str, dict[str, bytes]]:
        results = tmp_path / str(processes)
        options = ["--experiments", "3", "--processes", str(processes), "--results", str(results)]
        ended = run_here("coverage_map", *options)
        assert ended.code == 0 and ended.document["experiments"] == 3, ended.stderr
        return ended.stdout, {
            path.name: path.read_bytes() for path in (results / "tables").iterdir()
        }

    out, tables = draw(1)
    assert set(tables) == {"coverage_map.csv", "coverage_map.md"}
    assert tables["coverage_map.md"].decode() in out
    assert draw(2)[1] == tables


@pytest.mark.parametrize(
    ("option", "value", "least"), [("experiments", 0, 1), ("processes", 0, 1), ("seed", -1, 0)]
)
def test_impossible_numbers_are_refused(run_here, one_sentence, option, value, least):
    ended = run_here("coverage_map", f"--{option}", str(value))
    one_sentence(ended, "coverage_map", f"{option} must be at least {least}, got {value}; correct")
