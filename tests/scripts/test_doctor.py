import json
import time

from dit8.eval import doctor
from dit8.eval.doctor import Row


def test_doctor_ends_with_one_json_document(run_script, tmp_path):
    start = time.monotonic()
    ended = run_script("doctor", cwd=tmp_path)
    # 2 s on two idle cores; the bound allows for three other processes on each of them
    assert time.monotonic() - start < 20
    assert ended.code == 0
    assert ended.stderr == ""
    document = ended.document
    assert {"machine", "packages", "extras", "weights", "variants", "scorers"} == set(document)
    assert document["weights"]["mini"]["ok"]
    table = ended.stdout.splitlines()[:-1]
    for words in ("fused_int8", "latent_error", "mini_planted", "torch"):
        assert any(words in line for line in table), words


def test_json_alone(run_here):
    ended = run_here("doctor", "--json")
    assert ended.code == 0
    assert len(ended.stdout.splitlines()) == 1
    assert ended.document["packages"]["torch"]["ok"]


def test_brackets_survive_the_table_and_all_marks_are_shown(run_here, monkeypatch):
    rows = [
        Row("a", "good", True, "fine"),
        Row("a", "bad", False, "pip install -e '.[ocr]'"),
        Row("b", "fact", None, "[bold]"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda root: rows)
    lines = run_here("doctor").stdout.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert cells == [
        ["a", "good", "yes", "fine"],
        ["", "bad", "no", "pip install -e '.[ocr]'"],
        ["b", "fact", "", "[bold]"],
    ]


def test_without_rich_the_rows_are_plain_lines(run_here, monkeypatch):
    import importlib.util

    rows = [Row("section", "name", False, "detail")]
    monkeypatch.setattr(doctor, "examine", lambda root: rows)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lines = run_here("doctor").stdout.splitlines()
    assert lines[0].split() == ["section", "name", "no", "detail"]
    assert json.loads(lines[1]) == {"section": {"name": {"ok": False, "detail": "detail"}}}
