import dataclasses
import json
from pathlib import Path

import pytest

from dit8.eval.score_text import MODES, content_in_words, score_text
from dit8.models.posters import caption, make_poster
from dit8.models.types import Prompt, Sample
from dit8.quant.errors import UserError

CAPTION = {
    "high_level_description": "A poster.",
    "compositional_deconstruction": {
        "background": "yellow pattern",
        "elements": [
            {"type": "text", "bbox": [100, 0, 200, 475], "text": "Été 7", "desc": "purple mono"},
            {"type": "obj", "bbox": [900, 925, 1000, 1000], "desc": "navy ring"},
            {"type": "obj", "desc": "a cat"},
            {"type": "text", "text": "X", "desc": ""},
        ],
    },
}
PROMPT = Prompt("p0", json.dumps(CAPTION), ("Été 7",), 0, "a poster of summer")
SAMPLE = Sample(PROMPT, Path("p0.png"), None, 1.0)


def changed(**fields) -> Sample:
    return dataclasses.replace(SAMPLE, prompt=dataclasses.replace(PROMPT, **fields))


def test_each_mode_gives_its_text():
    assert score_text(SAMPLE, "idea") == "a poster of summer"
    assert score_text(SAMPLE, "high_level_description") == "A poster."
    assert score_text(SAMPLE, "caption_json") == SAMPLE.caption
    assert score_text(SAMPLE, "content") == (
        "yellow pattern; word Été 7, purple mono, row 1, column 2; navy ring, row 9, column 9; "
        "a cat; word X"
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_text_that_is_missing_names_prompt_and_choices(mode):
    bare = changed(caption="", idea=" ")
    others = ", ".join(name for name in MODES if name != mode)
    with pytest.raises(UserError, match=f"prompt p0 has no {mode}, .* score_text={others}$"):
        score_text(bare, mode)


def test_no_text_stands_in_for_another():
    without = {"compositional_deconstruction": {"background": "red", "elements": []}}
    sample = changed(caption=json.dumps(without))
    with pytest.raises(UserError, match="has no high_level_description"):
        score_text(sample, "high_level_description")
    assert score_text(sample, "content") == "red"


def test_an_unknown_mode_is_named():
    with pytest.raises(UserError, match="must be one of idea, high_level.*, got 'prompt'; correct"):
        score_text(SAMPLE, "prompt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"caption of prompt p0 is not valid JSON \(Expecting"),
        ('{"compositional_deconstruction":{}}', r"p0 does not follow the schema \(KeyError: 'back"),
        (
            '{"compositional_deconstruction":{"background":"b","elements":[{"type":"obj",'
            '"bbox":[1,2]}]}}',
            r"schema \(ValueError: not enough values",
        ),
    ],
)
def test_a_caption_that_is_none_is_named(text, message):
    with pytest.raises(UserError, match=message):
        score_text(changed(caption=text), "content")


def test_the_last_tenth_holds_the_end():
    element = {"type": "obj", "bbox": [1000, 999, 1000, 1000], "desc": "dot"}
    content = {"background": "b", "elements": [element]}
    words = content_in_words({"compositional_deconstruction": content})
    assert words == "b; dot, row 9, column 9"


def test_two_posters_have_two_contents():
    posters = [make_poster("medium", seed, held_out=True) for seed in range(50)]
    words = {content_in_words(caption(poster)) for poster in posters}
    assert len(words) == 50
    assert all("{" not in text and '"' not in text for text in words)
