"""eval/prompt_style.py: the same prompt as JSON or as sentences."""

import json
from dataclasses import replace

import pytest

from dit8.eval.prompt_style import styled
from dit8.models.types import Prompt
from dit8.quant.errors import UserError


def prompt(idea="", description="", background="flat teal", elements=()) -> Prompt:
    caption = {"high_level_description": description} if description else {}
    content = {"background": background, "elements": list(elements)}
    caption["compositional_deconstruction"] = content
    return Prompt("p", json.dumps(caption), ("x",), 7, idea, "signage")


def text(words: str) -> dict:
    return {"type": "text", "text": words, "desc": "bold"}


DISC = {"type": "obj", "desc": "a red disc."}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (prompt("a sign that says “OPEN”", "A sign.", elements=[text("OPEN")]),
         "a sign that says “OPEN”."),
        (prompt("a sign that says OPEN", elements=[text("OPEN")]),
         'a sign that says OPEN. The text reads "OPEN".'),
        (prompt('a sign: "OPEN"!', elements=[text("OPEN"), text("7-9"), text("Mon\nFri")]),
         'a sign: "OPEN"! The text reads "7-9" and "Mon Fri".'),
        (prompt('two lines "MON FRI"', elements=[text("MON\nFRI")]), 'two lines "MON FRI".'),
        (prompt("a C", elements=[text("C")]), 'a C. The text reads "C".'),
        (prompt("", "A poster of\n a disc.", elements=[text("A"), text("B"), text("C")]),
         'A poster of a disc. The text reads "A", "B" and "C".'),
        (prompt(elements=[DISC, text("A"), text("A")]),
         'a red disc, flat teal. The text reads "A".'),
        (prompt(background="", elements=[text("A")]), 'The text reads "A".'),
        (prompt("a fox"), "a fox."),
    ],
)  # fmt: skip
def test_raw_is_the_idea_or_what_the_caption_says_and_names_every_text(given, expected):
    assert styled(given, "raw").caption == expected


def test_nothing_else_of_the_prompt_changes_so_that_the_noise_stays():
    given = prompt("a fox")
    assert replace(styled(given, "raw"), caption=given.caption) == given


def test_json_is_the_prompt_itself():
    given = prompt("a fox")
    assert styled(given, "json") is given


def test_an_unknown_style_and_a_caption_without_words_are_named():
    with pytest.raises(UserError, match="prompt_style must be one of json, raw, got 'prose'"):
        styled(prompt("a fox"), "prose")
    with pytest.raises(UserError, match="prompt p: the caption says nothing .*give the prompt an"):
        styled(prompt(background=" "), "raw")
