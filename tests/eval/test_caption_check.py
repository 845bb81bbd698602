"""eval/caption_check.py lists every deviation, and agrees with parse and canonical."""

import copy
import json
import random

import pytest

from dit8.eval.caption_check import Deviation, deviations
from dit8.eval.captions import canonical, parse
from dit8.models.posters import TIERS, caption_json, make_poster
from dit8.models.prompts import load_prompts
from dit8.quant.errors import UserError

STYLE, CONTENT = "style_description", "compositional_deconstruction"
VALID = {
    "high_level_description": "Plakat für „Café 7“ 🦊",
    STYLE: {
        "aesthetics": "calm",
        "lighting": "flat",
        "photo": "50 mm",
        "medium": "photograph",
        "color_palette": ["#0A1B2C"],
    },
    CONTENT: {
        "background": "black",
        "elements": [
            {"type": "obj", "bbox": [0, 10, 1000, 990], "desc": "a cup"},
            {
                "type": "text",
                "bbox": [1, 2, 3, 4],
                "text": "CAFÉ\n7",
                "desc": "bold",
                "color_palette": ["#ABCDEF"],
            },
        ],
    },
}


def minified(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def found(text: str) -> list[tuple[str, str]]:
    return [(d.path, d.problem) for d in deviations(text)]


def edited(*path, value) -> str:
    caption = copy.deepcopy(VALID)
    *parents, last = path
    owner = caption
    for step in parents:
        owner = owner[step]
    if value is ...:
        del owner[last]
    else:
        owner[last] = value
    return minified(caption)


def test_a_valid_caption_has_none():
    assert deviations(minified(VALID)) == []


E0, E1 = (CONTENT, "elements", 0), (CONTENT, "elements", 1)
P0, P1 = (f"{CONTENT}.elements[{i}]" for i in (0, 1))
PALETTE = f"{P1}.color_palette"
SINGLE = {
    "unknown key": (("mood",), 1, "mood", "is no key of the schema here"),
    "unknown in style": ((STYLE, "mood"), 1, f"{STYLE}.mood", "is no key of the schema here"),
    "text of an obj": ((*E0, "text"), "A", f"{P0}.text", "is no key of the schema here"),
    "no content": ((CONTENT,), ..., CONTENT, "is missing"),
    "no background": ((CONTENT, "background"), ..., f"{CONTENT}.background", "is missing"),
    "no elements": ((CONTENT, "elements"), ..., f"{CONTENT}.elements", "is missing"),
    "no desc": ((*E0, "desc"), ..., f"{P0}.desc", "is missing"),
    "no text": ((*E1, "text"), ..., f"{P1}.text", "is missing"),
    "no medium": ((STYLE, "medium"), ..., f"{STYLE}.medium", "is missing"),
    "neither": ((STYLE, "photo"), ..., STYLE, "must have one of photo and art_style, got neither"),
    "both": ((STYLE, "art_style"), "x", STYLE, "must have one of photo and art_style, got both"),
    "null": (("high_level_description",), None, "high_level_description", "must be a string, got"),
    "style type": ((STYLE,), [], STYLE, "must be an object, got []"),
    "content type": ((CONTENT,), "x", CONTENT, 'must be an object, got "x"'),
    "elements type": ((CONTENT, "elements"), {}, f"{CONTENT}.elements", "must be a list, got {}"),
    "element type": (E0, 3, P0, "must be an object, got 3"),
    "kind": ((*E0, "type"), "img", f"{P0}.type", 'must be "obj" or "text", got "img"'),
    "kind list": ((*E0, "type"), [], f"{P0}.type", 'must be "obj" or "text", got []'),
    "no kind": ((*E0, "type"), ..., f"{P0}.type", 'must be "obj" or "text", got nothing'),
    "string": ((STYLE, "lighting"), 3, f"{STYLE}.lighting", "must be a string, got 3"),
    "photo": ((STYLE, "photo"), 3, f"{STYLE}.photo", "must be a string, got 3"),
    "medium": ((STYLE, "medium"), 3, f"{STYLE}.medium", "must be a string, got 3"),
    "desc": ((*E0, "desc"), {}, f"{P0}.desc", "must be a string, got {}"),
    "blank text": ((*E1, "text"), " ", f"{P1}.text", "must have a visible character"),
    "line break": ((*E1, "text"), "A\r\nB", f"{P1}.text", "has a line break that is not \\n"),
    "box": ((*E0, "bbox"), [1, 2, 3], f"{P0}.bbox", "must be four integers [ymin, xmin, ymax, xma"),
    "box null": ((*E0, "bbox"), None, f"{P0}.bbox", "must be four integers"),
    "box float": ((*E0, "bbox"), [1.0, 2, 3, 4], f"{P0}.bbox[0]", "must be an integer, got 1.0"),
    "box bool": ((*E0, "bbox"), [0, True, 3, 4], f"{P0}.bbox[1]", "must be an integer, got true"),
    "box range": ((*E0, "bbox"), [0, 1, 3, 1001], f"{P0}.bbox[3]", "must be within 0 and 1000"),
    "box y": ((*E0, "bbox"), [3, 1, 3, 4], f"{P0}.bbox", "ymin 3 is not below ymax 3"),
    "box x": ((*E0, "bbox"), [0, 5, 3, 4], f"{P0}.bbox", "xmin 5 is not below xmax 4"),
    "palette": ((*E1, "color_palette"), "#ABCDEF", PALETTE, "must be a list of colo"),
    "six": ((*E1, "color_palette"), ["#ABCDEF"] * 6, PALETTE, "must have at most 5 c"),
    "17": (
        (STYLE, "color_palette"),
        ["#ABCDEF"] * 17,
        f"{STYLE}.color_palette",
        "must have at most",
    ),
    "lower case": ((*E1, "color_palette"), ["#abcdef"], f"{PALETTE}[0]", "must be #RRGGBB"),
    "short": ((*E1, "color_palette"), ["#FFF"], f"{PALETTE}[0]", "must be #RRGGBB in upper"),
    "no string": ((*E1, "color_palette"), [7], f"{PALETTE}[0]", "must be #RRGGBB in upper"),
}


@pytest.mark.parametrize("case", SINGLE)
def test_one_mistake_is_one_deviation_with_its_path(case):
    path, value, where, problem = SINGLE[case]
    ((got_path, got_problem),) = found(edited(*path, value=value))
    assert got_path == where
    assert got_problem.startswith(problem)


def test_five_and_sixteen_colours_and_the_edges_of_a_box_are_within_the_limits():
    assert found(edited(*E1, "color_palette", value=["#000000"] * 5)) == []
    assert found(edited(STYLE, "color_palette", value=["#000000"] * 16)) == []
    assert found(edited(*E0, "bbox", value=[0, 0, 1000, 1000])) == []


def test_key_order_is_checked_in_every_object():
    def turned(value):
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    listed = found(minified(turned(VALID)))
    assert [path for path, _ in listed] == ["caption", STYLE, CONTENT, P0, P1]
    assert listed[2][1] == (
        "must have its keys in the order ['background', 'elements'], got ['elements', 'background']"
    )


def test_every_mistake_of_a_caption_full_of_them_is_listed():
    text = (
        '{"compositional_deconstruction":{"elements":[{"type":"obj","desc":"caf\\u00e9 \\/",'
        '"bbox":[900,-0,-5,2000]},{"type":"q"},3],"background":null},"style_description":'
        '{"aesthetics":1,"color_palette":["x","#FFFFFF","#fffffF"]}, "mood":"\\ud800"}'
    )
    assert [path for path, _ in found(text)] == [
        "mood",
        "caption",  # order
        "style_description",  # neither photo nor art_style
        "style_description.lighting",
        "style_description.medium",
        "style_description.aesthetics",
        "style_description.color_palette[0]",
        "style_description.color_palette[2]",
        "compositional_deconstruction",  # order
        "compositional_deconstruction.background",
        "compositional_deconstruction.elements[0]",  # order
        "compositional_deconstruction.elements[0].bbox[2]",
        "compositional_deconstruction.elements[0].bbox[3]",
        "compositional_deconstruction.elements[0].bbox",
        "compositional_deconstruction.elements[1].type",
        "compositional_deconstruction.elements[1].desc",
        "compositional_deconstruction.elements[2]",
        "compositional_deconstruction.elements[0].desc",  # escapes
        "compositional_deconstruction.elements[0].bbox[1]",  # -0
        "caption",  # white space
    ]


@pytest.mark.parametrize(
    ("old", "new", "path", "problem"),
    [
        ("für", "f\\u00fcr", "high_level_description", "must have ü instead of \\u00fc"),
        (
            "🦊",
            "\\ud83e\\udd8a",
            "high_level_description",
            "must have 🦊 instead of \\ud83e\\udd8a",
        ),
        ("cup", "c\\u0075p", f"{P0}.desc", "must have u instead of \\u0075"),
        ("\\n7", "\\u000A7", f"{P1}.text", "must have \\n instead of \\u000A"),
        ("a cup", "a\\/cup", f"{P0}.desc", "must have / instead of \\/"),
        ('"bbox":[0,', '"bbox":[-0,', f"{P0}.bbox[0]", "must be 0, got -0"),
        (",", ", ", "caption", "must be minified, got"),
        ('"desc":"bold"', '"desc":"a","desc":"bold"', f"{P1}.desc", "occurs twice in one object"),
        ('"desc":"bold"', '"d\\u0065sc":"bold"', f"{P1}.desc", "must have e instead of \\u0065"),
    ],
)
def test_spelling(old, new, path, problem):
    ((got_path, got_problem),) = found(minified(VALID).replace(old, new))
    assert (got_path, got_problem[: len(problem)]) == (path, problem)


def test_escapes_that_json_needs_are_no_deviation():
    assert found(edited(*E0, "desc", value='a \\ "b"\t\x01\x1f\x7f\u2028')) == []


def test_half_a_surrogate_pair_is_named_in_printable_text():
    ((path, problem),) = found(json.dumps(VALID).replace("a cup", "\\ud800"))[:1]
    assert (path, problem) == (f"{P0}.desc", "has half a surrogate pair, which is no character")
    for deviation in deviations('{"\\ud800":"\\udfff"}'):
        str(deviation).encode()


@pytest.mark.parametrize("text", ["", "{", "a poster", "[" * 100_000, "1" * 5000, "\ufeff{}"])
def test_what_is_not_json_is_one_deviation(text):
    ((path, problem),) = found(text)
    assert path == "caption" and problem.startswith("is not valid JSON (")


def test_a_deviation_prints_as_path_and_problem():
    assert str(Deviation("a.b[0]", "is missing")) == "a.b[0]: is missing"


VALUES = (None, True, 0, -1, 1001, 1.5, "", " ", "x", "é", "A\r\nB", "#00FF00", "#00ff00")
VALUES += ([], [1, 2, 3, 4], [4, 2, 3, 1], ["#00FF00"], {}, {"type": "obj", "desc": "d"})
VALUES += ({"type": "text", "text": "T", "desc": "d"}, {"type": "text", "desc": "d", "text": "T"})
KEYS = ("type", "bbox", "text", "desc", "color_palette", "photo", "art_style", "medium", "mood")


def mutated(rng: random.Random) -> str:
    """Change up to three places of the valid caption and perhaps its spelling."""
    caption = copy.deepcopy(VALID)
    for _ in range(rng.randint(0, 3)):
        owner = caption
        while True:
            steps = list(owner) if isinstance(owner, dict) else range(len(owner))
            step = rng.choice(list(steps)) if len(steps) else None
            inner = owner[step] if step is not None else None
            if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
                break
            owner = inner
        if isinstance(owner, dict):
            kind = rng.randrange(4)
            if kind == 0 and owner:
                del owner[step]
            elif kind == 1:
                owner[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
            elif kind == 2:
                items = list(owner.items())
                rng.shuffle(items)
                owner.clear()
                owner.update(items)
            elif owner:
                owner[step] = copy.deepcopy(rng.choice(VALUES))
        elif owner:
            owner[step] = copy.deepcopy(rng.choice(VALUES))
        else:
            owner.append(copy.deepcopy(rng.choice(VALUES)))
    if rng.random() < 0.1:
        return json.dumps(caption, separators=(",", ":"))
    return json.dumps(caption, ensure_ascii=False) if rng.random() < 0.1 else minified(caption)


def is_canonical(text: str) -> bool:
    try:
        return canonical(parse(text)) == text
    except UserError:
        return False


def test_none_deviates_exactly_when_parsing_and_writing_gives_the_text_back():
    rng = random.Random(0)
    verdicts = []
    for _ in range(4000):
        text = mutated(rng)
        verdicts.append(is_canonical(text))
        assert (deviations(text) == []) == verdicts[-1], text
    assert 300 < sum(verdicts) < 3700  # both sides were tried


def test_the_minis_captions_and_prompt_sets_have_none(request):
    for tier in TIERS:
        for seed in range(20):
            assert deviations(caption_json(make_poster(tier, seed, held_out=False))) == []
    sets = sorted((request.config.rootpath / "prompts").glob("mini_*.jsonl"))
    assert len(sets) == 4
    for path in sets:
        for prompt in load_prompts(path):
            assert deviations(prompt.caption) == []
