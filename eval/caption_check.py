"""List everything in which a text differs from the one spelling of a valid caption.

`parse` (eval/captions.py) stops at the first problem of content and forgives the spelling; a
person or a model that writes captions needs the whole list, each with its path. The two agree:
`deviations(text)` is empty exactly when `canonical(parse(text)) == text`, and the tests hold them
to it. Key orders, limits and types are read from the models, so there is no second schema here.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dit8.eval.captions import (
    BOX_MAX,
    COLOR_PATTERN,
    ELEMENT_COLORS,
    LINE_BREAK,
    ROOT,
    STYLE_COLORS,
    ArtStyle,
    Caption,
    Composition,
    Obj,
    Part,
    PhotoStyle,
    Text,
    box_problem,
    lone_surrogate,
    style_kind,
)
from dit8.eval.json_text import tokens

# a surrogate pair is one character in two escapes
ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.")
STYLES = {"photo": PhotoStyle, "art": ArtStyle}
ELEMENTS = {"obj": Obj, "text": Text}


@dataclass(frozen=True)
class Deviation:
    """One thing that is wrong: where, as in `a.b[0].c`, and what."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def deviations(text: str) -> list[Deviation]:
    """List every deviation of a caption from the schema and its spelling; empty: there is none.

    Content comes first, then spelling. What cannot be told is not guessed: of a text that is not
    JSON only that is said, of an object of the wrong type nothing about its insides, of a style
    with both or neither of `photo` and `art_style` nothing about the order of its keys.

    Args:
        text: what a file holds or a model answered; white space around it counts.
    """
    try:
        value = json.loads(text)
    # deep nesting ends in RecursionError, not in ValueError
    except (ValueError, RecursionError) as error:
        return [Deviation(ROOT, f"is not valid JSON ({error})")]
    found = [*_caption(value), *_spelling(text)]
    return [Deviation(_printable(each.path), _printable(each.problem)) for each in found]


def _caption(value: Any) -> Iterator[Deviation]:
    if not isinstance(value, dict):
        yield _mistyped(ROOT, value, "an object")
        return
    yield from _keys(value, Caption, "")
    yield from _strings(value, ["high_level_description"], "")
    if "style_description" in value:
        yield from _style(value["style_description"])
    if "compositional_deconstruction" in value:
        yield from _composition(value["compositional_deconstruction"])


def _style(value: Any) -> Iterator[Deviation]:
    path = "style_description"
    if not isinstance(value, dict):
        yield _mistyped(path, value, "an object")
        return
    kind = style_kind(value)
    known = {**PhotoStyle.model_fields, **ArtStyle.model_fields}
    if kind is None:
        got = "both" if "photo" in value else "neither"
        yield Deviation(path, f"must have one of photo and art_style, got {got}")
        yield from _unknown(value, known, path)
        yield from _missing(value, _shared(PhotoStyle, ArtStyle), path)
    else:
        yield from _keys(value, STYLES[kind], path)
    yield from _strings(value, [key for key in known if key != "color_palette"], path)
    yield from _palette(value, STYLE_COLORS, path)


def _composition(value: Any) -> Iterator[Deviation]:
    path = "compositional_deconstruction"
    if not isinstance(value, dict):
        yield _mistyped(path, value, "an object")
        return
    yield from _keys(value, Composition, path)
    yield from _strings(value, ["background"], path)
    elements = value.get("elements", [])
    if not isinstance(elements, list):
        yield _mistyped(f"{path}.elements", elements, "a list")
        return
    for index, element in enumerate(elements):
        yield from _element(element, f"{path}.elements[{index}]")


def _element(value: Any, path: str) -> Iterator[Deviation]:
    if not isinstance(value, dict):
        yield _mistyped(path, value, "an object")
        return
    kind = value.get("type")
    model = ELEMENTS.get(kind) if isinstance(kind, str) else None
    if model is None:
        got = _excerpt(kind) if "type" in value else "nothing"
        yield Deviation(f"{path}.type", f'must be "obj" or "text", got {got}')
        yield from _unknown(value, Text.model_fields, path)
        yield from _missing(value, [key for key in _shared(Obj, Text) if key != "type"], path)
    else:
        yield from _keys(value, model, path)
    yield from _box(value, path)
    yield from _strings(value, ["text", "desc"], path)
    text = value.get("text")
    if model is Text and isinstance(text, str):
        if not text.strip():
            yield Deviation(f"{path}.text", f"must have a visible character, got {_excerpt(text)}")
        if LINE_BREAK.search(text):
            yield Deviation(f"{path}.text", r"has a line break that is not \n")
    yield from _palette(value, ELEMENT_COLORS, path)


def _box(element: dict[str, Any], path: str) -> Iterator[Deviation]:
    if "bbox" not in element:
        return
    box, path = element["bbox"], f"{path}.bbox"
    if not isinstance(box, list) or len(box) != 4:
        yield _mistyped(path, box, "four integers [ymin, xmin, ymax, xmax]")
        return
    whole = [type(side) is int for side in box]  # bool is an int in Python
    for index, side in enumerate(box):
        if not whole[index]:
            yield _mistyped(f"{path}[{index}]", side, "an integer")
        elif not 0 <= side <= BOX_MAX:
            yield Deviation(f"{path}[{index}]", f"must be within 0 and {BOX_MAX}, got {side}")
    if all(whole) and (problem := box_problem(box)):
        yield Deviation(path, problem)


def _palette(owner: dict[str, Any], limit: int, path: str) -> Iterator[Deviation]:
    if "color_palette" not in owner:
        return
    palette, path = owner["color_palette"], f"{path}.color_palette"
    if not isinstance(palette, list):
        yield _mistyped(path, palette, "a list of colours")
        return
    if len(palette) > limit:
        yield Deviation(path, f"must have at most {limit} colours, got {len(palette)}")
    for index, color in enumerate(palette):
        if not isinstance(color, str) or not re.fullmatch(COLOR_PATTERN, color):
            yield Deviation(
                f"{path}[{index}]", f"must be #RRGGBB in upper case, got {_excerpt(color)}"
            )


def _keys(value: dict[str, Any], model: type[Part], path: str) -> Iterator[Deviation]:
    """Check which keys an object has, and their order."""
    fields = model.model_fields
    yield from _unknown(value, fields, path)
    yield from _missing(value, [key for key in fields if fields[key].is_required()], path)
    present = [key for key in value if key in fields]
    expected = [key for key in fields if key in value]
    if present != expected:
        yield Deviation(path or ROOT, f"must have its keys in the order {expected}, got {present}")


def _shared(one: type[Part], other: type[Part]) -> list[str]:
    """List the keys that both models require."""
    fields = one.model_fields
    return [key for key in fields if fields[key].is_required() and key in other.model_fields]


def _unknown(value: dict[str, Any], known: Any, path: str) -> Iterator[Deviation]:
    for key in value:
        if key not in known:
            yield Deviation(_joined(path, key), "is no key of the schema here")


def _missing(value: dict[str, Any], required: list[str], path: str) -> Iterator[Deviation]:
    for key in required:
        if key not in value:
            yield Deviation(_joined(path, key), "is missing")


def _strings(value: dict[str, Any], keys: list[str], path: str) -> Iterator[Deviation]:
    for key in keys:
        if key in value and not isinstance(value[key], str):
            yield _mistyped(_joined(path, key), value[key], "a string")
        elif lone_surrogate(value.get(key, "")):
            yield Deviation(_joined(path, key), "has half a surrogate pair, which is no character")


def _spelling(text: str) -> Iterator[Deviation]:
    """Compare the tokens of a valid JSON text with how `canonical` writes them."""
    spaces = 0
    for token in tokens(text):
        path = token.path or ROOT
        if token.repeated:
            yield Deviation(path, "occurs twice in one object")
        if token.source.isspace():
            spaces += len(token.source)
        elif token.source[0] == '"':
            wrong = [f"{right} instead of {got}" for got, right in _respelled(token.source)]
            if wrong:
                yield Deviation(path, f"must have {', '.join(wrong)}")
        elif token.source == "-0":
            yield Deviation(path, "must be 0, got -0")
    if spaces:
        yield Deviation(ROOT, f"must be minified, got {spaces} characters of white space")


def _respelled(source: str) -> Iterator[tuple[str, str]]:
    """Pair every escape of a string that minified JSON writes otherwise with what it writes."""
    for escape in dict.fromkeys(ESCAPE.findall(source)):
        character = json.loads(f'"{escape}"')
        right = json.dumps(character, ensure_ascii=False)[1:-1]
        if right != escape and not lone_surrogate(character):
            yield escape, right


def _mistyped(path: str, value: Any, expected: str) -> Deviation:
    return Deviation(path, f"must be {expected}, got {_excerpt(value)}")


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _printable(text: str) -> str:
    """Escape half surrogate pairs, which no terminal and no file takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _excerpt(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}..."
