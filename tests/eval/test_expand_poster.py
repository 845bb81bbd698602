"""eval/expand_poster.py: sentences as captions that the mini was trained on."""

import json

import pytest

from dit8.eval.caption_check import deviations
from dit8.eval.expand import Expander, expand
from dit8.eval.expand_poster import MOST_SHAPES, PosterExpander
from dit8.models.mini_tokenizer import build_tokenizer
from dit8.models.pipeline import encode_chat
from dit8.models.poster_type import FACES
from dit8.models.posters import COLORS, HARD_BACKGROUNDS, SHAPES
from dit8.quant.errors import UserError

SENTENCES = [
    "a poster that says HELLO",
    "a navy poster with white text that says SALE and a red circle",
    "yellow letters 'JAZZ' on a black background with two purple triangles",
    "SUMMER SALE",
    "white on navy: 'TEA PARTY' with a yellow ring",
    "a pink poster titled happy easter",
    "a green gradient with white serif letters “FRESH”",
    "red 'MANUFACTURER' on white with a black stripe and three dots",
    'a poster of a cat that says "MEOW!"',
    "a red circle on teal",
    "ADVERTISEMENTS TYPEWRITERS",
]


def content(sentence: str) -> dict:
    return json.loads(PosterExpander().expand(sentence))["compositional_deconstruction"]


def drawn(sentence: str) -> tuple[str, list[tuple[str, str]]]:
    """The ground, and (text or "", desc) of every element."""
    found = content(sentence)
    return found["background"], [(e.get("text", ""), e["desc"]) for e in found["elements"]]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_captions_hold_what_the_mini_was_trained_on(sentence):
    expander: Expander = PosterExpander()
    caption = expand(expander, sentence)
    assert deviations(caption) == [] and expander.expand(sentence) == caption
    assert len(encode_chat(build_tokenizer(), caption)) <= 128
    found = content(sentence)
    *kind, last = found["background"].split()
    color, kind = (last, kind[0]) if kind == ["flat"] else (kind[0], last)
    assert color in COLORS and kind in ("flat", *HARD_BACKGROUNDS)
    texts = [e for e in found["elements"] if e["type"] == "text"]
    shapes = [e for e in found["elements"] if e["type"] == "obj"]
    assert len(texts) <= 2 and len(shapes) <= MOST_SHAPES
    for element in found["elements"]:
        color, noun = element["desc"].split()
        assert color in COLORS and noun in (FACES if element in texts else SHAPES)
        y0, x0, y1, x1 = element["bbox"]
        assert 0 <= y0 < y1 <= 1000 and 0 <= x0 < x1 <= 1000
        assert all(side % 25 == 0 for side in element["bbox"])
    for one in found["elements"]:
        for other in found["elements"]:
            assert one is other or apart(one["bbox"], other["bbox"])


def apart(a, b) -> bool:
    return a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_what_a_sentence_names_is_drawn():
    assert drawn(SENTENCES[1]) == ("flat navy", [("SALE", "white sans"), ("", "red circle")])
    assert drawn(SENTENCES[2]) == (
        "flat black",
        [("JAZZ", "yellow sans"), ("", "purple triangle"), ("", "purple triangle")],
    )
    assert drawn(SENTENCES[4]) == (
        "flat navy",
        [("TEA", "white sans"), ("PARTY", "white sans"), ("", "yellow ring")],
    )
    assert drawn(SENTENCES[6])[0] == "green gradient"
    assert drawn(SENTENCES[6])[1] == [("FRESH", "white serif")]
    assert drawn(SENTENCES[9]) == ("flat teal", [("", "red circle")])
    assert drawn("a blue card, HELL in gold")[0] == "flat navy"  # nearest words


def test_outer_os_are_rings_where_the_poster_has_room_for_them():
    _, elements = drawn("a red poster that says HELLO in white")
    assert elements == [("HELL", "white sans"), ("", "white ring")]
    _, elements = drawn("a red poster that says ZOO in white")
    assert elements == [("Z", "white sans"), ("", "white ring"), ("", "white ring")]
    _, elements = drawn("a red poster that says ZOO in white with a black square")
    assert elements == [("ZOO", "white sans"), ("", "black square")]


def test_open_choices_follow_the_sentence_and_can_be_read():
    def colors(n):
        ground, ((_, desc),) = drawn(f"poster {n} that says TEA")
        return ground.split()[1], desc.split()[0]

    seen = {colors(n) for n in range(40)}
    assert len(seen) > 10
    assert ("red", "orange") not in seen and all(ground != ink for ground, ink in seen)


REMARKS = {
    "a cat and a dog on a poster that says TEA": ["cat, dog"],
    "a blue poster that says tea": ["'tea'", "blue is drawn as navy"],
    "a poster that says BIKE": ["I"],
    "a poster that says HELLO": ["HELLO"],
    "'TEA' with three red circles and a ring": ["2 of 4 shapes"],
    "a black poster, navy letters 'TEA'": ["navy on black"],
    "'MANUFACTURER'": ["MANUFACTURER"],
    "a navy poster with white text that says SALE and a red circle": [],
}


@pytest.mark.parametrize("sentence", REMARKS)
def test_what_is_not_drawn_as_asked_is_told(sentence):
    remarks = PosterExpander().remarks(sentence)
    assert len(remarks) == len(REMARKS[sentence])
    assert all(each in remark for each, remark in zip(REMARKS[sentence], remarks, strict=True))


@pytest.mark.parametrize("sentence", ["a cat", '"ONE TWO THREE"', "'SUPERCALIFRAGILISTIC'"])
def test_what_cannot_be_drawn_at_all_is_refused(sentence):
    with pytest.raises(UserError):
        PosterExpander().expand(sentence)
