"""eval/json_text.py walks the tokens of a JSON text with their paths."""

import json
import random

import pytest

from dit8.eval.json_text import tokens


def walked(text: str) -> list[tuple[str, str]]:
    return [(t.source, t.path) for t in tokens(text)]


def test_every_token_has_the_path_of_its_value():
    text = '{"a": [1,{"b":"x"}], "c":{}}'
    assert walked(text) == [
        ("{", ""), ('"a"', "a"), (":", "a"), (" ", "a"), ("[", "a"), ("1", "a[0]"), (",", "a"),
        ("{", "a[1]"), ('"b"', "a[1].b"), (":", "a[1].b"), ('"x"', "a[1].b"), ("}", "a[1]"),
        ("]", "a"), (",", ""), (" ", ""), ('"c"', "c"), (":", "c"), ("{", "c"), ("}", "c"),
        ("}", ""),
    ]  # fmt: skip


def test_signs_inside_strings_are_no_tokens():
    text = r'["{\"a\":[1, 2]}\\", "\\\"]"]'
    assert [s for s, _ in walked(text)] == [
        "[", r'"{\"a\":[1, 2]}\\"', ",", " ", r'"\\\"]"', "]"
    ]  # fmt: skip


def test_a_repeated_key_is_one_of_the_same_object_however_it_is_escaped():
    text = r'{"a":{"b":1},"\u0061":{"b":2},"c":[{"b":3},{"b":4,"b":5}]}'
    assert [t.path for t in tokens(text) if t.repeated] == ["a", "c[1].b"]


@pytest.mark.parametrize("text", ["1", '"a"', " null ", "[]", "{}"])
def test_a_text_may_be_any_value(text):
    assert "".join(t.source for t in tokens(text)) == text
    assert {t.path for t in tokens(text)} == {""}


def some_value(rng: random.Random, depth: int):
    kind = rng.randrange(6 if depth else 4)
    if kind < 4:
        return (rng.choice(['"', "\\", "é{[,:]}", "", "a b\n"]), -1.5e-9, True, None)[kind]
    size = rng.randrange(4)
    if kind == 4:
        return [some_value(rng, depth - 1) for _ in range(size)]
    return {f'k"{i}': some_value(rng, depth - 1) for i in range(size)}


def test_the_sources_joined_are_the_text():
    rng = random.Random(0)
    for _ in range(300):
        text = json.dumps(some_value(rng, 4), indent=rng.choice([None, 1]))
        assert "".join(t.source for t in tokens(text)) == text
