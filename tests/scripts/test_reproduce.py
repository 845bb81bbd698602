import json
import sys
import types

import pytest

from scripts import reproduce
from scripts.cli import ROOT


@pytest.fixture
def results(tmp_path):
    """The committed rows in a folder that may be written."""
    for name in ("bench", "convert", "limits", "paper", "runs", "scores.csv"):
        (tmp_path / name).symlink_to(ROOT / "results" / name)
    return tmp_path


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["reproduce.py", *map(str, words)])
    reproduce.main()


def test_one_table_in_three_forms(results, monkeypatch, capsys):
    run(monkeypatch, "--table", 5, "--results", results)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("table 5, fidelity to the reference's pictures: ")
    document = json.loads(lines[-1])
    names = sorted(path.name for path in (results / "tables").iterdir())
    assert names == ["table5_fidelity.csv", "table5_fidelity.md", "table5_fidelity.tex"]
    assert [name.rsplit("/", 1)[1] for name in sorted(document["files"])] == names
    assert document["cells"]["measured"] > 0 and document["cells"]["reported"] == 2
    for name in names:
        committed = ROOT / "results" / "tables" / name
        assert (results / "tables" / name).read_bytes() == committed.read_bytes()


def test_all_tables_the_findings_and_what_the_readme_shows(results, monkeypatch, capsys):
    run(monkeypatch, "--results", results)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    briefs = [f"tables/brief_{name}.md" for name in ("speed", "gemm", "frontier")]
    pages = ("FINDINGS.md", "tables/headline.md", "tables/verdict_line.md", *briefs)
    pages += ("tables/short.md", "readme/chart.svg")
    assert len(document["files"]) == 9 * 3 + len(pages)
    for name in pages:
        assert (results / name).read_bytes() == (ROOT / "results" / name).read_bytes(), name
    run(monkeypatch, "--results", results)
    for name in pages:
        assert (results / name).read_bytes() == (ROOT / "results" / name).read_bytes(), name


def test_an_unknown_table_is_one_sentence(results, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--table", 10, "--results", results)
    assert ended.value.code == 2
    assert "reproduce: reproduce: " not in (text := capsys.readouterr().err)
    assert "table must be one of 1, 2, 3, 4, 5, 6, 7, 8, 9, got 10; correct it" in text


def test_run_hands_its_words_on(monkeypatch, capsys):
    module = types.ModuleType("scripts.table_runs")
    module.run_table = lambda words: {"words": words}
    monkeypatch.setitem(sys.modules, "scripts.table_runs", module)
    run(monkeypatch, "--run", "table=5", "model=mini")
    assert json.loads(capsys.readouterr().out) == {"words": ["table=5", "model=mini"]}


@pytest.mark.parametrize("flag", [("--table", 3), ("--results", "results")])
def test_a_table_beside_run_is_one_sentence(flag, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *flag, "--run", "table=5")
    assert ended.value.code == 2
    assert "--run must have its table and results as words, got" in capsys.readouterr().err
