"""scripts/check_caption.py lists deviations of files, prompt sets and standard input."""

import io
import json
import sys

VALID = '{"compositional_deconstruction":{"background":"b","elements":[]}}'


def test_valid_captions_end_well(tmp_path, run_here, request):
    path = tmp_path / "caption.json"
    path.write_text(VALID + "\n")
    mini = request.config.rootpath / "prompts" / "mini_hard.jsonl"
    ended = run_here("check_caption", str(path), str(mini))
    assert ended.code == 0, ended.stdout
    assert ended.document == {"captions": 201, "deviations": 0}
    assert len(ended.stdout.splitlines()) == 1


def test_every_deviation_is_a_line_with_file_and_path(tmp_path, run_here):
    bad, rows = tmp_path / "bad.json", tmp_path / "set.jsonl"
    bad.write_text(VALID.replace('"b"', " 3"))
    caption = {"mood": 1} | json.loads(VALID)
    rows.write_text(json.dumps({"id": "a", "caption": caption, "texts": [], "seed": 0}))
    ended = run_here("check_caption", str(bad), str(rows))
    assert ended.code == 1
    assert ended.stdout.splitlines()[:-1] == [
        f"{bad}: compositional_deconstruction.background: must be a string, got 3",
        f"{bad}: caption: must be minified, got 1 characters of white space",
        f"{rows} a: mood: is no key of the schema here",
    ]
    assert ended.document == {"captions": 2, "deviations": 3}


def test_standard_input(run_here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}\n"))
    ended = run_here("check_caption", "-")
    assert ended.code == 1
    assert ended.stdout.startswith("stdin: compositional_deconstruction: is missing\n")


def test_a_file_that_is_not_there_is_one_sentence(tmp_path, run_here, one_sentence):
    ended = run_here("check_caption", str(tmp_path / "no.json"))
    one_sentence(ended, "check_caption", r"no.json must be a UTF-8 file .*No such file")
