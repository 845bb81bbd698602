import json
from pathlib import Path

import pytest

from dit8.models.prompts import caption_texts, first_prompts, load_prompts, parse_caption
from dit8.quant.errors import UserError


def caption(*texts: str) -> dict:
    elements = [{"type": "text", "text": text, "desc": "bold"} for text in texts]
    elements.append({"type": "obj", "desc": "a disc"})
    return {"compositional_deconstruction": {"background": "plain", "elements": elements}}


def row(**changes) -> dict:
    return {"id": "a", "caption": caption("CAFÉ 7"), "texts": ["CAFÉ 7"], "seed": 3} | changes


def write(path: Path, *rows: dict | str) -> Path:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_prompts_come_in_file_order_with_minified_captions(tmp_path):
    path = write(tmp_path / "set.jsonl", row(id="b"), "", row(id="a", seed=5))
    prompts = load_prompts(path)
    assert [(p.id, p.seed, p.texts) for p in prompts] == [
        ("b", 3, ("CAFÉ 7",)),
        ("a", 5, ("CAFÉ 7",)),
    ]
    assert prompts[0].caption.startswith('{"compositional_deconstruction":{"background":"plain",')
    assert "CAFÉ 7" in prompts[0].caption


def test_a_caption_given_as_text_equals_the_same_object(tmp_path):
    as_text = json.dumps(caption("CAFÉ 7"), indent=2)
    path = write(tmp_path / "set.jsonl", row(id="a"), row(id="b", caption=as_text))
    first, second = load_prompts(path)
    assert first.caption == second.caption


def test_a_part_of_a_text_may_be_expected_white_space_aside(tmp_path):
    path = write(tmp_path / "s.jsonl", row(caption=caption("OPEN\nDAILY"), texts=["OPEN", "DAILY"]))
    assert load_prompts(path)[0].texts == ("OPEN", "DAILY")


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ("{", r"set.jsonl:2: the line is not valid JSON .* expected one object per line"),
        ("[" * 100_000, r"set.jsonl:2: the line is not valid JSON"),
        ("[1]", r"set.jsonl:2: got list, expected an object with keys"),
        (row(extra=1), r"set.jsonl:2: got \['caption', 'extra', .* expected an object with keys"),
        (row(id="first"), r"set.jsonl:2: prompt id 'first' is used twice"),
        (row(id=""), r"set.jsonl:2: id must be letters, digits, '.', '_' or '-', got ''"),
        (row(id="../a"), r"set.jsonl:2: id must be letters.*got '../a'; pictures are named"),
        (row(seed=-1), r"set.jsonl:2: seed must be an integer in \[0, 2\*\*63\), got -1"),
        (row(seed=True), r"seed must be an integer .* got True"),
        (row(seed=1.0), r"seed must be an integer .* got 1.0"),
        (row(texts="CAFÉ"), r"texts must be a list of non-empty strings, got 'CAFÉ'"),
        (row(texts=[" "]), r"texts must be a list of non-empty strings"),
        (row(texts=["TEA"]), r"text 'TEA' is expected but no text element .*\['CAFÉ 7'\]"),
        (row(caption=[1]), r"set.jsonl:2: the caption must be a JSON object, got '\[1\]'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, match):
    path = write(tmp_path / "set.jsonl", row(id="first"), bad)
    with pytest.raises(UserError, match=match):
        load_prompts(path)


def test_a_missing_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none.jsonl .* check the name"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"empty.jsonl holds no prompts"):
        load_prompts(write(tmp_path / "empty.jsonl", ""))


def edited(**changes) -> str:
    content = caption("A")["compositional_deconstruction"] | changes
    return json.dumps({"compositional_deconstruction": content})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a red poster", r"caption: the caption is not valid JSON .* got 'a red poster'"),
        ('{"compositional_deconstruction": NaN}', r"NaN is not a JSON number"),
        ("[]", r"the caption must be a JSON object, got '\[\]'"),
        ("{}", r"compositional_deconstruction must be an object, got nothing"),
        (edited(background=None), r"deconstruction.background must be a string, got nothing"),
        (edited(elements={}), r"deconstruction.elements must be a list, got '{}'"),
        (edited(elements=["x"]), r"elements\[0\] must be an object, got '\"x\"'"),
        (edited(elements=[{"type": "disc"}]), r"elements\[0\].type must be 'obj' or 'text'"),
        (edited(elements=[{"type": "text"}]), r"elements\[0\].text must be a string, got nothing"),
    ],
)
def test_a_caption_without_its_required_keys_is_refused(text, match):
    with pytest.raises(UserError, match=match):
        parse_caption(text)


def test_the_caption_keeps_key_order_and_lists_its_texts():
    elements = [{"desc": "x", "type": "text", "text": "Ω b"}, {"type": "obj"}]
    text = json.dumps(
        {
            "high_level_description": "h",
            "compositional_deconstruction": {"background": "", "elements": elements},
        }
    )
    minified = parse_caption(text)
    assert minified == (
        '{"high_level_description":"h","compositional_deconstruction":{"background":"",'
        '"elements":[{"desc":"x","type":"text","text":"Ω b"},{"type":"obj"}]}}'
    )
    assert caption_texts(minified) == ("Ω b",)


def test_the_first_n_prompts(tmp_path):
    prompts = load_prompts(write(tmp_path / "s.jsonl", row(id="a"), row(id="b")))
    assert [p.id for p in first_prompts(prompts, 1)] == ["a"]
    assert first_prompts(prompts, None) == prompts
    for n in (0, 3):
        with pytest.raises(UserError, match=rf"n must be between 1 and 2, got {n}"):
            first_prompts(prompts, n)


def test_idea_and_category_are_optional_and_kept(tmp_path):
    about = {"idea": "a café sign", "category": "signage"}
    path = write(tmp_path / "s.jsonl", row(id="a"), row(id="b", **about))
    first, second = load_prompts(path)
    assert (first.idea, first.category) == ("", "")
    assert (second.idea, second.category) == ("a café sign", "signage")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"idea": ""}, r"s.jsonl:1: idea must be a non-empty string, got ''; leave the key out"),
        ({"idea": None}, r"idea must be a non-empty string, got None"),
        ({"category": 3}, r"category must be a non-empty string, got 3"),
        ({"Idea": "x"}, r"got \['Idea', .* and perhaps idea and category"),
    ],
)
def test_a_bad_idea_or_category_is_named(tmp_path, change, match):
    with pytest.raises(UserError, match=match):
        load_prompts(write(tmp_path / "s.jsonl", row(**change)))


def test_a_literal_line_separator_does_not_end_a_line(tmp_path):
    text = json.dumps(row(idea="one\u2028two\x85three"), ensure_ascii=False)
    (prompt,) = load_prompts(write(tmp_path / "s.jsonl", text))
    assert prompt.idea == "one\u2028two\x85three"
