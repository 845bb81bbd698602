"""The script as a user starts it, and that the committed map is what the committed rows give."""

import json
from pathlib import Path

import pytest

from dit8.scripts import deployment_map

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("deployment_map.md", "deployment_map.csv")


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder for the results that reads the committed benchmarks."""
    (tmp_path / "bench").symlink_to(ROOT / "results" / "bench")
    return tmp_path


def draw(monkeypatch, capsys, results: Path, *options: str) -> tuple[str, dict]:
    command = ["deployment_map.py", "--results", str(results), *options]
    monkeypatch.setattr("sys.argv", command)
    deployment_map.main()
    out = capsys.readouterr().out
    return out, json.loads(out.splitlines()[-1])


def test_the_committed_map_is_what_the_rows_say(monkeypatch, capsys, results):
    draw(monkeypatch, capsys, results)
    for name in TABLES:
        made = (results / "tables" / name).read_bytes()
        assert made == (ROOT / "results" / "tables" / name).read_bytes(), name


def test_drawn_again_it_has_the_same_bytes(monkeypatch, capsys, results):
    draw(monkeypatch, capsys, results)
    first = [(results / "tables" / name).read_bytes() for name in TABLES]
    draw(monkeypatch, capsys, results)
    assert [(results / "tables" / name).read_bytes() for name in TABLES] == first


def test_without_rows_the_rooflines_stand_alone(monkeypatch, capsys, tmp_path):
    out, document = draw(monkeypatch, capsys, tmp_path)
    assert (tmp_path / "tables" / TABLES[0]).read_text() in out
    assert set(document["fractions"].values()) == {"not measured"}
    assert set(document["gains_predicted"].values()) == {"not measured"}
    assert document["step_errors"] == {} and document["calibrated_on"] == "h200"
    assert document["gains_roofline"]["rtx3090"] > 2 > document["gains_roofline"]["b300"]


def test_an_unknown_card_is_refused(run_here, one_sentence):
    ended = run_here("deployment_map", "--gpu", "h300")
    one_sentence(ended, "deployment_map", "gpu must be one of rtx3090, .*got 'h300'; correct it")


def test_a_broken_table_is_refused_and_nothing_is_written(run_here, one_sentence, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "model.csv").write_text("run_id,gpu\n")
    ended = run_here("deployment_map", "--results", str(tmp_path))
    one_sentence(ended, "deployment_map", "model.csv must have the columns .*none named variant")
    assert not (tmp_path / "tables").exists()
