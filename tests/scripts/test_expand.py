"""scripts/expand.py: ideas to captions and prompt sets."""

import json

import pytest

from dit8.eval import expand_endpoint
from dit8.eval.caption_check import deviations
from dit8.models.prompts import load_prompts
from dit8.quant.errors import UserError

CAPTION = (
    '{"compositional_deconstruction":{"background":"é","elements":[{"type":"obj","desc":""}]}}'
)


@pytest.fixture
def endpoint(monkeypatch):
    """An endpoint that answers all ideas but those with "bad" in them; returns what was asked."""
    asked = []

    def ask(endpoint, messages, response_format):
        asked.append(messages[-1]["content"])
        if "bad" in asked[-1]:
            raise UserError("endpoint http://h (model m) answered 500; is it running?")
        return CAPTION

    monkeypatch.setattr(expand_endpoint, "ask", ask)
    monkeypatch.setenv("DIT8_EXPAND_URL", "http://h/v1")
    monkeypatch.setenv("DIT8_EXPAND_MODEL", "m")
    return asked


def test_one_idea_is_printed_and_written(tmp_path, run_here):
    path = tmp_path / "caption.json"
    ended = run_here("expand", 'a tea shop sign "OPEN é"', "--to", str(path))
    assert ended.code == 0, ended.stderr
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    assert deviations(text) == []
    document = ended.document
    assert document["caption"] == json.loads(text)
    assert (document["expander"], document["texts"]) == ("template", ["OPEN é"])
    assert "é" in ended.stdout


def test_a_file_of_ideas_becomes_a_prompt_set(tmp_path, run_here):
    ideas, out = tmp_path / "ideas.txt", tmp_path / "set.jsonl"
    ideas.write_text('a fox\n\n  a sign "AUF"  \n', encoding="utf-8")
    ended = run_here("expand", "--ideas", str(ideas), "--to", str(out), "--seed", "70")
    assert ended.code == 0, ended.stderr
    assert ended.document == {
        "expander": "template",
        "to": str(out),
        "written": 2,
        "failed": [],
    }
    prompts = load_prompts(out)
    assert [(p.id, p.seed, p.idea, p.texts) for p in prompts] == [
        ("idea-0001", 71, "a fox", ()),
        ("idea-0003", 73, 'a sign "AUF"', ("AUF",)),
    ]


def test_a_failed_idea_is_named_and_the_others_go_on_and_are_not_asked_again(
    tmp_path, run_here, endpoint
):
    ideas, out = tmp_path / "ideas.txt", tmp_path / "set.jsonl"
    ideas.write_text("a fox\nbad idea\na cup\n", encoding="utf-8")
    options = ["--with", "endpoint", "--cache", str(tmp_path / "cache")]
    options += ["--ideas", str(ideas), "--to", str(out)]
    ended = run_here("expand", *options)
    assert ended.code == 2
    assert ended.lines == ["line 2: endpoint http://h (model m) answered 500; is it running?"]
    assert ended.document["written"] == 2
    assert [(f["line"], f["idea"]) for f in ended.document["failed"]] == [(2, "bad idea")]
    assert [p.id for p in load_prompts(out)] == ["idea-0001", "idea-0003"]
    assert len(endpoint) == 3

    ideas.write_text("a fox\ngood idea\na cup\n", encoding="utf-8")
    assert run_here("expand", *options).code == 0
    assert endpoint[3:] == ["Idea: good idea"]
    assert [p.id for p in load_prompts(out)] == ["idea-0001", "idea-0002", "idea-0003"]


def test_nothing_is_written_when_every_idea_fails(tmp_path, run_here, endpoint):
    ideas, out = tmp_path / "ideas.txt", tmp_path / "set.jsonl"
    ideas.write_text("bad\nbad too\n")
    ended = run_here(
        *("expand", "--with", "endpoint", "--cache", str(tmp_path / "cache")),
        *("--ideas", str(ideas), "--to", str(out)),
    )
    assert ended.code == 2 and ended.document["written"] == 0
    assert not out.exists()


def test_mistakes_are_one_sentence(tmp_path, run_here, one_sentence, monkeypatch):
    for name in ("DIT8_EXPAND_URL", "DIT8_EXPAND_MODEL"):
        monkeypatch.delenv(name, raising=False)
    empty, out = tmp_path / "empty.txt", str(tmp_path / "set.jsonl")
    empty.write_text("\n \n")
    cases = [
        ((), r"must get one idea, or a file of them with --ideas, and not both"),
        (("a fox", "--ideas", str(empty)), r"and not both"),
        (("--ideas", str(empty)), r"--ideas needs a file to write the prompt set to"),
        (("--ideas", str(empty), "--to", out), r"--ideas must hold one idea a line, got no line"),
        (("--ideas", str(tmp_path / "no"), "--to", out), r"--ideas must be a UTF-8 file .*No such"),
        ((" ",), r"the idea must say something"),
        (("a fox", "--with", "endpoint"), r"endpoint is not available: .*DIT8_EXPAND_URL"),
        (("a fox", "--with", "enhancer", "--model", str(tmp_path)), r"enhancer is not available: "),
        (("a fox", "--to", str(empty / "x.json")), r"cannot write .*x.json"),
    ]
    for arguments, match in cases:
        one_sentence(run_here("expand", *arguments), "expand", match)
