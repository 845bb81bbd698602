import csv
import json
import sys
import types

import pytest

from dit8.conf.paths import ROOT
from dit8.scripts import reproduce


@pytest.fixture
def results(tmp_path):
    """The committed rows in a folder that may be written."""
    for name in ("bench", "convert", "limits", "runs", "runs.csv", "scores.csv"):
        (tmp_path / name).symlink_to(ROOT / "results" / name)
    return tmp_path


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["reproduce.py", *map(str, words)])
    reproduce.main()


def test_one_table_in_three_forms(results, monkeypatch, capsys):
    run(monkeypatch, "--table", 5, f"results={results}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("table 5, fidelity to the reference's pictures: ")
    document = json.loads(lines[-1])
    names = sorted(path.name for path in (results / "tables").iterdir())
    assert names == ["table5_fidelity.csv", "table5_fidelity.md", "table5_fidelity.tex"]
    assert [name.rsplit("/", 1)[1] for name in sorted(document["files"])] == names
    assert document["cells"]["measured"] > 0 and document["cells"]["reported"] == 2
    for name in names:
        made = (results / "tables" / name).read_text(encoding="utf-8")
        committed = (ROOT / "results" / "tables" / name).read_text(encoding="utf-8")
        # a page's last line says how it was made
        assert made.partition("\nMade by")[0] == committed.partition("\nMade by")[0]
    page = (results / "tables" / "table5_fidelity.md").read_text(encoding="utf-8")
    assert f"--table 5 results={results}` from `{results}/scores.csv`" in page
    assert "and `results/paper/fidelity.csv`" in page


def test_own_rows_are_shown_and_nothing_else_is_written(tmp_path, monkeypatch, capsys):
    """A ledger of few rows, from a CPU, without benchmarks or the papers' figures."""
    for name in ("runs", "runs.csv", "scores.csv"):
        (tmp_path / name).symlink_to(ROOT / "results" / "demo" / name)

    def state():
        files = (path for path in (ROOT / "results").rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files}

    before = state()
    run(monkeypatch, f"results={tmp_path}")
    cells = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    assert state() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "runs",
        "runs.csv",
        "scores.csv",
        "tables",
    }
    assert len(list((tmp_path / "tables").iterdir())) == 9 * 3
    assert cells["measured"] > 20 and cells["reported"] > 50 and cells["predicted"] == 0
    with (tmp_path / "tables" / "table5_fidelity.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["column"] == "PSNR ↑" and row["value"]]
    assert [row["row"] for row in rows] == ["variant=int8", "variant=fused_int8"]
    page = (tmp_path / "tables" / "table5_fidelity.md").read_text(encoding="utf-8")
    assert "prompts mini_medium" in page and "backend torch-cpu or cpu-reference" in page


def test_a_folder_without_rows_is_one_sentence(tmp_path, monkeypatch, capsys):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, f"results={folder}")
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(folder) in line and "scripts/evaluate.py" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_table_is_one_sentence(results, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--table", 10, f"results={results}")
    assert ended.value.code == 2
    assert "reproduce: reproduce: " not in (text := capsys.readouterr().err)
    assert "table must be one of 1, 2, 3, 4, 5, 6, 7, 8, 9, got 10; correct it" in text


def test_run_hands_its_words_on(monkeypatch, capsys):
    module = types.ModuleType("dit8.scripts.table_runs")
    module.run_table = lambda words: {"words": words}
    monkeypatch.setitem(sys.modules, "dit8.scripts.table_runs", module)
    run(monkeypatch, "--run", "table=5", "model=mini")
    assert json.loads(capsys.readouterr().out) == {"words": ["table=5", "model=mini"]}


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("--table", 3, "--run", "table=5"), "--run must have its table as a word, got --table 3"),
        (("table=3",), "the one word must be results=FOLDER, got table=3"),
        (("results=",), "the one word must be results=FOLDER, got results="),
        (("results=a", "n=3"), "the one word must be results=FOLDER, got results=a n=3"),
    ],
)
def test_words_that_do_not_go_together_are_one_sentence(words, pattern, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *words)
    assert ended.value.code == 2
    assert pattern in capsys.readouterr().err
