"""The caption schema as types: what an Ideogram 4 caption may say, and its one canonical spelling.

The model was trained on minified JSON whose keys always come in the same order, so the order and
the spelling are part of the input: two texts with the same content are two prompts. The order of
the fields below *is* the order of the keys. `parse` is generous about spelling and strict about
content; `canonical` writes the one spelling; eval/caption_check.py lists how a text differs.

- high_level_description: optional;
- style_description: optional; aesthetics, lighting, then `photo` and medium for a photograph,
  medium and `art_style` for anything else, then color_palette (optional, up to 16 colours #RRGGBB);
- compositional_deconstruction: background, and elements, each with type "obj" or "text", bbox
  (optional), `text` (of a text), desc, color_palette (optional, up to 5).

A box is [ymin, xmin, ymax, xmax] in thousandths of height and width. A box without area and a text
without a visible character are refused although the published verifier lets them pass: neither
can be drawn, and a text that cannot be drawn would count as misread.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from dit8.quant.errors import UserError

ROOT = "caption"  # the path of the whole object
BOX_MAX = 1000
STYLE_COLORS = 16
ELEMENT_COLORS = 5
COLOR_PATTERN = r"^#[0-9A-F]{6}$"
# what str.splitlines calls a line break, the rare separators of ASCII (0x1c-0x1e) aside
LINE_BREAK = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")


def box_problem(box: Sequence[int]) -> str | None:
    """Say why four integers [ymin, xmin, ymax, xmax] are no box with an area, or None."""
    ymin, xmin, ymax, xmax = box
    wrong = [
        f"{axis}min {low} is not below {axis}max {high}"
        for axis, low, high in (("y", ymin, ymax), ("x", xmin, xmax))
        if low >= high
    ]
    return " and ".join(wrong) or None


def lone_surrogate(text: str) -> bool:
    """Tell whether a text holds half a surrogate pair, which JSON can escape and UTF-8 cannot."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _box(box: tuple[int, ...]) -> tuple[int, ...]:
    if problem := box_problem(box):
        raise ValueError(f"{problem} in [ymin, xmin, ymax, xmax]")
    return box


def _encodable(text: str) -> str:
    if lone_surrogate(text):
        raise ValueError("half a surrogate pair is no character")
    return text


def _drawable(text: str) -> str:
    if not text.strip():
        raise ValueError("a text needs a visible character")
    return LINE_BREAK.sub("\n", text)


String = Annotated[str, AfterValidator(_encodable)]
Coordinate = Annotated[int, Field(ge=0, le=BOX_MAX)]
# strict=False lets a list become a tuple, which a strict model refuses; the items stay strict
Box = Annotated[
    tuple[Coordinate, ...], Field(strict=False, min_length=4, max_length=4), AfterValidator(_box)
]
Color = Annotated[str, Field(pattern=COLOR_PATTERN)]
StyleColors = Annotated[tuple[Color, ...], Field(strict=False, max_length=STYLE_COLORS)]
ElementColors = Annotated[tuple[Color, ...], Field(strict=False, max_length=ELEMENT_COLORS)]


class Part(BaseModel):
    """A JSON object of the schema: exact types, no other keys, no nulls, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        nulls = [key for key, item in value.items() if item is None] if _is_object(value) else []
        if nulls:
            raise ValueError(f"{', '.join(nulls)} must be left out instead of null")
        return value


class PhotoStyle(Part):
    """The style of a photograph."""

    aesthetics: String
    lighting: String
    photo: String
    medium: String
    color_palette: StyleColors | None = None


class ArtStyle(Part):
    """The style of everything that is not a photograph."""

    aesthetics: String
    lighting: String
    medium: String
    art_style: String
    color_palette: StyleColors | None = None


class Obj(Part):
    """A thing in the picture."""

    type: Literal["obj"]
    bbox: Box | None = None
    desc: String
    color_palette: ElementColors | None = None


class Text(Part):
    """Lettering in the picture; `text` is drawn verbatim, its line breaks are newlines."""

    type: Literal["text"]
    bbox: Box | None = None
    text: Annotated[String, AfterValidator(_drawable)]
    desc: String
    color_palette: ElementColors | None = None


def style_kind(style: Any) -> str | None:
    """Tell "photo" from "art" by the key that only one of them has; None with both or neither."""
    keys = style if _is_object(style) else vars(style) if isinstance(style, Part) else {}
    kinds = [kind for kind, key in (("photo", "photo"), ("art", "art_style")) if key in keys]
    return kinds[0] if len(kinds) == 1 else None


Style = Annotated[
    Annotated[PhotoStyle, Tag("photo")] | Annotated[ArtStyle, Tag("art")],
    Discriminator(
        style_kind,
        custom_error_type="style_kind",
        custom_error_message="a style is an object with one of photo and art_style",
    ),
]
Element = Annotated[Obj | Text, Field(discriminator="type")]


class Composition(Part):
    """What is where."""

    background: String
    elements: Annotated[tuple[Element, ...], Field(strict=False)]


class Caption(Part):
    """A whole caption."""

    high_level_description: String | None = None
    style_description: Style | None = None
    compositional_deconstruction: Composition


def parse(text: str, where: str = "caption") -> Caption:
    """Read a caption, however it is spelled: key order, white space and escapes do not matter.

    Args:
        text: a JSON object.
        where: prefix of the error message.

    Raises:
        UserError: no JSON, a key twice, or content outside the schema; names the first problem
            by its path and counts the rest.
    """
    try:
        # pydantic's own JSON reader would keep the last of two equal keys
        return Caption.model_validate(json.loads(text, object_pairs_hook=_unique_keys))
    except ValidationError as error:
        first, *rest = error.errors()
        got, more = _excerpt(first["input"]), f" (and {len(rest)} more)" if rest else ""
        path, reason = _path(first["loc"]) or ROOT, first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{where}: {path}: {reason[0].lower()}{reason[1:]}, got {got}{more};"
            " scripts/check_caption.py lists every deviation"
        ) from error
    # deep nesting ends in RecursionError, not in ValueError
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: the caption is not valid JSON ({error}), got {_excerpt(text)}; expected an "
            "object with compositional_deconstruction"
        ) from error


def canonical(caption: Caption) -> str:
    """Write a caption in its one spelling: keys in order, minified, non-ASCII literal.

    Equal captions give equal text, and `parse` gives the caption back.
    """
    content = caption.model_dump(exclude_none=True)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def expected_text(caption: Caption) -> tuple[str, ...]:
    """Return what a reader should find, line by line, in the order of the elements.

    A text of several lines is several expected texts: readers find lines, see eval/matching.py.
    """
    elements = caption.compositional_deconstruction.elements
    texts = [element.text for element in elements if isinstance(element, Text)]
    return tuple(line.strip() for text in texts for line in text.split("\n") if line.strip())


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return found


def _path(location: tuple[int | str, ...]) -> str:
    """Join a location of pydantic as in `a.b[0].c`, without the names of union members."""
    path, previous = "", None
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not (isinstance(previous, int) or previous == "style_description"):
            path += f".{step}" if path else step
        previous = step
    return path


def _excerpt(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
