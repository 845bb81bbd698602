"""eval/captions.py: the schema's types, its one spelling, and what a reader should find."""

import copy
import json

import pytest
from pydantic import ValidationError

from dit8.eval.captions import (
    ArtStyle,
    Caption,
    Composition,
    Obj,
    PhotoStyle,
    Text,
    box_problem,
    canonical,
    expected_text,
    parse,
)
from dit8.quant.errors import UserError

# Written by hand from the schema's description: the bytes that a valid caption has.
CANONICAL = (
    '{"high_level_description":"Plakat für „Café 7“.",'
    '"style_description":{"aesthetics":"calm","lighting":"flat","medium":"print",'
    '"art_style":"lino cut","color_palette":["#0A1B2C","#FFFFFF"]},'
    '"compositional_deconstruction":{"background":"black","elements":['
    '{"type":"obj","bbox":[0,10,1000,990],"desc":"a cup"},'
    '{"type":"text","bbox":[1,2,3,4],"text":"CAFÉ\\n7","desc":"a \\"bold\\" face",'
    '"color_palette":["#ABCDEF"]},'
    '{"type":"text","text":"開門","desc":""}]}}'
)
STYLE, CONTENT = "style_description", "compositional_deconstruction"


def edited(*path, value) -> str:
    """Set (or, with `...`, delete) one value of the canonical caption."""
    caption = copy.deepcopy(json.loads(CANONICAL))
    *parents, last = path
    owner = caption
    for step in parents:
        owner = owner[step]
    if value is ...:
        del owner[last]
    else:
        owner[last] = value
    return json.dumps(caption, ensure_ascii=False)


def test_key_orders_are_those_of_the_schema():
    orders = {
        Caption: "high_level_description style_description compositional_deconstruction",
        PhotoStyle: "aesthetics lighting photo medium color_palette",
        ArtStyle: "aesthetics lighting medium art_style color_palette",
        Composition: "background elements",
        Obj: "type bbox desc color_palette",
        Text: "type bbox text desc color_palette",
    }
    for model, order in orders.items():
        assert list(model.model_fields) == order.split()


def test_a_canonical_text_comes_back_byte_for_byte():
    caption = parse(CANONICAL)
    assert canonical(caption) == CANONICAL
    assert isinstance(caption.style_description, ArtStyle)
    assert [type(e) for e in caption.compositional_deconstruction.elements] == [Obj, Text, Text]


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "respelled",
    [
        json.dumps(json.loads(CANONICAL), indent=2),  # escapes and white space
        json.dumps(reordered(json.loads(CANONICAL))),
        CANONICAL.replace("\\n", "\\r\\n"),
        CANONICAL.replace("\\n", "\u2028"),
    ],
    ids=["indented", "reordered", "crlf", "line separator"],
)
def test_spelling_is_repaired(respelled):
    assert respelled != CANONICAL
    assert canonical(parse(respelled)) == CANONICAL


def test_optional_keys_may_be_left_out_and_stay_out():
    text = '{"compositional_deconstruction":{"background":"","elements":[]}}'
    assert canonical(parse(text)) == text


def test_a_photograph_has_its_own_style():
    photo = {"aesthetics": "a", "lighting": "b", "photo": "c", "medium": "d"}
    caption = parse(edited(STYLE, value=photo))
    assert isinstance(caption.style_description, PhotoStyle)
    assert json.dumps(photo, separators=(",", ":")) in canonical(caption)


def test_captions_are_immutable_and_equal_by_content():
    caption = parse(CANONICAL)
    assert caption == parse(CANONICAL) and hash(caption) == hash(parse(CANONICAL))
    with pytest.raises(ValidationError, match="frozen"):
        caption.high_level_description = "other"


ELEMENT = (CONTENT, "elements", 1)
BAD = {
    "unknown key": (("mood", 1), r"caption: mood: extra inputs are not permitted, got 1; "),
    "deep unknown": ((*ELEMENT, "font", "x"), r"elements\[1\].font: extra inputs"),
    "no content": ((CONTENT, ...), r"compositional_deconstruction: field required"),
    "null": ((STYLE, None), r"caption: style_description must be left out instead of null"),
    "null box": ((*ELEMENT, "bbox", None), r"elements\[1\]: bbox must be left out instead of"),
    "both styles": ((STYLE, "photo", "x"), r"style_description: a style is an object with one of"),
    "no style": ((STYLE, "art_style", ...), r"style_description: a style is an object with one"),
    "style type": ((STYLE, "dark"), r"style_description: a style is an object .* got 'dark'"),
    "string": ((STYLE, "lighting", 3), r"style_description.lighting: .*valid string, got 3"),
    "kind": ((*ELEMENT, "type", "img"), r"elements\[1\]: input tag 'img' .* 'obj', 'text'"),
    "text of an obj": ((CONTENT, "elements", 0, "text", "A"), r"elements\[0\].text: extra inputs"),
    "blank text": ((*ELEMENT, "text", " \n"), r"elements\[1\].text: a text needs a visible char"),
    "surrogate": ((*ELEMENT, "desc", "\ud800"), r"elements\[1\].desc: half a surrogate pair"),
    "box length": ((*ELEMENT, "bbox", [1, 2, 3]), r"elements\[1\].bbox: .*at least 4 items"),
    "box float": ((*ELEMENT, "bbox", [1.0, 2, 3, 4]), r"bbox\[0\]: .*valid integer, got 1.0"),
    "box bool": ((*ELEMENT, "bbox", [False, 2, 3, 4]), r"bbox\[0\]: .*valid integer, got False"),
    "box range": ((*ELEMENT, "bbox", [1, 2, 3, 1001]), r"bbox\[3\]: .*equal to 1000, got 1001"),
    "box sign": ((*ELEMENT, "bbox", [-1, 2, 3, 4]), r"bbox\[0\]: .*equal to 0, got -1"),
    "box order": ((*ELEMENT, "bbox", [3, 2, 3, 4]), r"bbox: ymin 3 is not below ymax 3 in "),
    "colour": ((*ELEMENT, "color_palette", ["#abcdef"]), r"color_palette\[0\]: string should mat"),
    "colour end": ((*ELEMENT, "color_palette", ["#ABCDEF\n"]), r"color_palette\[0\]: string shou"),
    "six colours": ((*ELEMENT, "color_palette", ["#ABCDEF"] * 6), r"palette: .* at most 5 items"),
    "17 colours": ((STYLE, "color_palette", ["#ABCDEF"] * 17), r"palette: .* at most 16 items"),
}


@pytest.mark.parametrize("case", BAD)
def test_content_outside_the_schema_is_refused(case):
    (*path, value), match = BAD[case]
    with pytest.raises(UserError, match=match):
        parse(edited(*path, value=value))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a red poster", r"caption: the caption is not valid JSON .* got 'a red poster'"),
        ("[" * 100_000, r"the caption is not valid JSON"),
        ("[]", r"caption: caption: input should be a valid dictionary .*got \[\]"),
        ('{"a":1,"a":2}', r"the key 'a' occurs twice in one object"),
    ],
)
def test_what_is_no_caption_at_all_is_refused(text, match):
    with pytest.raises(UserError, match=match):
        parse(text)


def test_an_error_counts_the_problems_and_names_the_place_and_the_remedy():
    text = edited(STYLE, value={"aesthetics": 1, "art_style": 2})
    with pytest.raises(
        UserError,
        match=r"^set:3: style_description.aesthetics: .*, got 1 \(and 3 more\); scripts/check_cap",
    ):
        parse(text, "set:3")


def test_expected_texts_are_the_lines_of_the_text_elements_in_order():
    assert expected_text(parse(CANONICAL)) == ("CAFÉ", "7", "開門")
    assert expected_text(parse(edited(*ELEMENT, "text", value=" A \n\n B"))) == ("A", "B", "開門")


def test_a_box_problem_names_both_axes():
    assert box_problem((0, 0, 1, 1)) is None
    assert box_problem((2, 9, 1, 8)) == "ymin 2 is not below ymax 1 and xmin 9 is not below xmax 8"
