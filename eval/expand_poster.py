"""Expand a sentence into a caption of the bundled mini: its words, shapes, colours and boxes.

The mini draws only what it was trained on (models/posters.py): a ground, one or two words in
capitals, up to two shapes, ten colours. So a sentence is searched for these words and nothing else;
what it leaves open is chosen by a hash of it, and what the mini cannot draw is told (`remarks`).
Layout: words below each other in the middle, as large as they fit, shapes in a row under them.

No training word has the letters I and O or the digits 0 and 1. An O or 0 that begins or ends a word
is drawn as a ring, a shape the mini knows; all others are left to chance, and told.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from dit8.eval.quotes import lettering
from dit8.models.poster_type import FACES, text_width_px
from dit8.models.poster_words import DIGITS, LETTERS
from dit8.models.posters import (
    COLORS,
    GRID,
    HARD_BACKGROUNDS,
    IMAGE_PX,
    SHAPES,
    Element,
    Poster,
    caption_json,
    contrast,
)
from dit8.quant.errors import UserError

CELL_PX = IMAGE_PX / GRID
WIDEST_PX = IMAGE_PX - 3 * CELL_PX
CAP_PX = {1: 56.0, 2: 44.0}  # of one word and of two: the larger sizes of the mini's training
LEAST_CAP_PX = 15.0  # 13 to 15 letters
CLEAR_CAP_PX = 22.0  # models/mini_card.md: smaller capitals are often misread
RING_CELLS = (8, 7, 6)  # sides at which rings close; rings of 5 cells come out broken
SHAPE_CELLS = 9
MOST_WORDS = MOST_SHAPES = 2  # on one poster of the training
READABLE = 4.5  # contrast of an ink that is chosen here
FAINT = 2.0  # contrast below which a named ink is told to be hard to read

# What people say, and what the mini knows that is nearest.
NEAREST = {
    **{each: each for each in (*COLORS, *SHAPES, *FACES, *HARD_BACKGROUNDS)},
    **dict.fromkeys("blue indigo azure".split(), "navy"),
    **dict.fromkeys("violet lilac magenta".split(), "purple"),
    **dict.fromkeys("turquoise cyan aqua".split(), "teal"),
    **dict.fromkeys("gold golden".split(), "yellow"),
    **dict.fromkeys("grey gray silver".split(), "black"),
    **dict.fromkeys("cream ivory beige".split(), "white"),
    **dict.fromkeys("crimson scarlet maroon".split(), "red"),
    **dict.fromkeys("brown amber".split(), "orange"),
    **dict.fromkeys("lime olive".split(), "green"),
    **dict.fromkeys("rose salmon".split(), "pink"),
    **dict.fromkeys("dot disc disk ball".split(), "circle"),
    "box": "square",
    "rectangle": "bar",
    **dict.fromkeys("stripe line".split(), "bar"),
    "pyramid": "triangle",
    "hoop": "ring",
    "italic": "slanted",
    **dict.fromkeys("monospace monospaced typewriter".split(), "mono"),
}
INK_NOUNS = frozenset("text letter word lettering type writing title capital §".split())
GROUND_NOUNS = frozenset(
    "background backdrop ground poster sign card paper flyer banner".split()
) | set(HARD_BACKGROUNDS)
COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4}
# Words that ask for nothing which a poster does not have anyway.
PLAIN = (
    frozenset(
        """a an the and or with of in on over under below above against for to that which it its is
        are by at from has have having as draw make me please show shows big large small
        little tiny huge bold flat plain simple solid bright dark light pale deep colour color
        coloured colored says say saying reads read reading titled saying font typeface letters
        picture image""".split()
    )
    | INK_NOUNS
    | GROUND_NOUNS
    | set(COUNTS)
)
ADJECTIVES = frozenset(
    "a an the big large small little tiny huge bold flat plain solid".split()
) | {*FACES}


@dataclass(frozen=True)
class Wish:
    """What a sentence asks for, in the mini's words; None and () where it does not say."""

    words: tuple[str, ...]
    ground: str | None
    ink: str | None
    face: str | None
    background: str
    shapes: tuple[tuple[str, str | None], ...]  # shape and its colour
    remarks: tuple[str, ...]  # what is drawn otherwise than it was asked for


@dataclass(frozen=True)
class PosterExpander:
    """Make the mini's own captions; needs nothing and is always there."""

    name: str = "poster"

    def obstacle(self) -> str | None:
        return None

    def identity(self) -> dict[str, Any]:
        return {"version": 1}  # to be raised when a caption changes

    def remarks(self, idea: str) -> tuple[str, ...]:
        wish = read_wish(idea)
        return (*wish.remarks, *_doubtful(wish))

    def expand(self, idea: str) -> str:
        """Return a canonical caption; the same for the same idea, whatever the machine.

        Raises:
            UserError: nothing that the mini draws is named, more than two words to letter, or a
                word too long to be read on 256 pixels.
        """
        return caption_json(lay_out(read_wish(idea), hashlib.sha256(idea.encode()).digest()))


def read_wish(idea: str) -> Wish:
    """Search a sentence for what the mini knows.

    Raises:
        UserError: as `PosterExpander.expand`.
    """
    texts, rest = lettering(idea)
    if not texts and idea.isupper():  # typed in capitals, a sentence is the text itself
        texts, rest = (idea,), ""
    given = " ".join(texts).split()
    words = tuple(word.upper() for word in given)
    if len(words) > MOST_WORDS:
        raise UserError(
            f"the mini letters at most {MOST_WORDS} words, got {len(words)}: {' '.join(given)!r}; "
            'shorten the text, as in "a poster that says SUMMER SALE"'
        )
    remarks = []
    if words != tuple(given):
        remarks.append(f"{' '.join(given)!r} is drawn in capitals, which is all the mini knows")
    tokens = [_singular(t) for t in re.findall(r"§|[^\W_]+", rest.casefold())]
    known = [NEAREST.get(token) for token in tokens]
    for token, near in zip(tokens, known, strict=True):
        if near not in (None, token):
            remarks.append(f"{token} is drawn as {near}")
    shapes, used = _shapes(tokens, known)
    if len(shapes) > MOST_SHAPES:
        remarks.append(f"{MOST_SHAPES} of {len(shapes)} shapes are drawn")
    ground, ink, spare = _colors(tokens, known, used)
    shapes = [(shape, color or (spare.pop(0) if spare else None)) for shape, color in shapes]
    remarks += [f"there is nothing left to be {color}" for color in spare]
    unknown = [t for t, near in zip(tokens, known, strict=True) if not near and t not in PLAIN]
    if unknown:
        remarks.append(f"the mini cannot draw: {', '.join(dict.fromkeys(unknown))}")
    if not (words or shapes or ground):
        raise UserError(
            f"the mini draws words, colours and shapes ({', '.join(SHAPES)}), got {idea!r}; try "
            '"a teal poster that says HELLO", or model=ideogram4 for other pictures'
        )
    return Wish(
        words,
        ground,
        ink,
        next((near for near in known if near in FACES), None),
        next((near for near in known if near in HARD_BACKGROUNDS), "flat"),
        tuple(shapes[:MOST_SHAPES]),
        tuple(dict.fromkeys(remarks)),
    )


def lay_out(wish: Wish, digest: bytes) -> Poster:
    """Choose what the sentence left open, and give everything its box.

    Args:
        wish: what is asked for.
        digest: bytes that choose.

    Raises:
        UserError: a word too long to be read.
    """
    ground = wish.ground or _choose(
        [c for c in COLORS if wish.ink is None or _ratio(c, wish.ink) >= READABLE]
        or [max(COLORS, key=lambda c: _ratio(c, wish.ink))],
        digest[0],
    )
    inks = [color for color in COLORS if _ratio(color, ground) >= READABLE]
    ink = wish.ink or _choose(inks or [max(COLORS, key=lambda c: _ratio(c, ground))], digest[1])
    accents = [c for c in COLORS if c != ink and _ratio(c, ground) >= 2] or [ink]
    rows = [_line(word, wish, ink) for word in wish.words]
    shapes = [
        (shape, color or _choose(accents, digest[2] + index))
        for index, (shape, color) in enumerate(wish.shapes)
    ]
    if shapes:
        rows.append(_row(shapes))
    heights = [max(element.box[2] for element in row) for row in rows]
    gap = 2 if sum(heights) + 2 * len(rows) < GRID else 1
    top = (GRID - sum(heights) - gap * (len(rows) - 1)) // 2
    elements = []
    for row, height in zip(rows, heights, strict=True):
        elements += [_moved(element, top) for element in row]
        top += height + gap
    return Poster("medium", 0, wish.background, ground, tuple(elements))


def _line(word: str, wish: Wish, ink: str) -> list[Element]:
    """Set one word, rings in place of its outer Os; boxes count from the line's own top."""
    face = wish.face or "sans"
    lead, body, trail = _ringed(word, wish)
    for side in RING_CELLS if lead or trail else ():
        cap = CELL_PX * side - 1
        width, height = _cells(text_width_px(body, face, cap) + 6), _cells(cap + 6)
        total = width + (side + 1) * (len(lead) + len(trail))
        if total > GRID - 2 or cap > CAP_PX[len(wish.words)] + CELL_PX:
            continue
        x, y = (GRID - total) // 2, (height - side) // 2
        line = []
        for part in (*lead, body, *trail):
            if part == body:
                line.append(Element("text", (0, x, height, x + width), ink, text=body, face=face))
                x += width + 1
            else:
                line.append(Element("obj", (y, x, y + side, x + side), ink, shape="ring"))
                x += side + 1
        return line
    cap = _cap_px(word, wish)
    if cap < LEAST_CAP_PX:
        raise UserError(
            f"a word must have at most about 14 letters to be read on {IMAGE_PX} pixels, got "
            f"{word!r} with {len(word)}; shorten it"
        )
    width = min(GRID, _cells(text_width_px(word, face, cap) + 6))
    x = (GRID - width) // 2
    return [Element("text", (0, x, _cells(cap + 6), x + width), ink, text=word, face=face)]


def _cap_px(word: str, wish: Wish) -> float:
    """Return the largest height of capitals at which a word fits."""
    return min(CAP_PX[len(wish.words)], WIDEST_PX / text_width_px(word, wish.face or "sans", 1.0))


def _ringed(word: str, wish: Wish) -> tuple[str, str, str]:
    """Split a word into rings, letters and rings; no rings where the poster has none to spare."""
    lead, body, trail = re.fullmatch(r"([O0]*)(.*?)([O0]*)", word).groups()
    rings = sum(len(outer) for each in wish.words for outer in re.findall(r"^[O0]+|[O0]+$", each))
    if not body or rings + len(wish.shapes) > MOST_SHAPES:
        return "", word, ""
    return lead, body, trail


def _row(shapes: list[tuple[str, str]]) -> list[Element]:
    """Put shapes side by side; boxes count from the row's own top."""
    side, gap = SHAPE_CELLS, 4
    x = (GRID - len(shapes) * side - (len(shapes) - 1) * gap) // 2
    row = []
    for index, (shape, color) in enumerate(shapes):
        left = x + index * (side + gap)
        height = side // 4 if shape == "bar" else side
        row.append(Element("obj", (0, left, height, left + side), color, shape=shape))
    return row


def _moved(element: Element, down: int) -> Element:
    y0, x0, y1, x1 = element.box
    box = (y0 + down, x0, y1 + down, x1)
    return Element(
        element.kind, box, element.color, element.shape, element.text, element.face, element.cap_px
    )


def _shapes(
    tokens: list[str], known: list[str | None]
) -> tuple[list[tuple[str, str | None]], set[int]]:
    """Find shapes, each with the colour in front of it, and which tokens gave a colour."""
    found, used = [], set()
    for index, near in enumerate(known):
        if near not in SHAPES:
            continue
        color, count, at = None, 1, index - 1
        while at >= 0 and (known[at] in COLORS or tokens[at] in ADJECTIVES or tokens[at] in COUNTS):
            if known[at] in COLORS and color is None:
                color = known[at]
                used.add(at)
            elif known[at] in COLORS:
                break
            count = max(count, COUNTS.get(tokens[at], 1))
            at -= 1
        found += [(near, color)] * count
    return found, used


def _colors(
    tokens: list[str], known: list[str | None], used: set[int]
) -> tuple[str | None, str | None, list[str]]:
    """Tell the ground's colour from the text's; returns them and what is left."""
    ground = ink = None
    spare = []
    for index, near in enumerate(known):
        if near not in COLORS or index in used:
            continue
        after = next((t for t in tokens[index + 1 :] if t not in ADJECTIVES), "")
        before = [t for t in tokens[:index] if t not in ADJECTIVES and t not in ("dark", "light")]
        link, noun = (["", "", *before])[-1], (["", "", *before])[-2]
        if ground is None and (after in GROUND_NOUNS or link in ("on", "over", "against")):
            ground = near
        elif ink is None and (after in INK_NOUNS or (link == "in" and noun in INK_NOUNS)):
            ink = near
        else:
            spare.append(near)
    if spare and ground is None:
        ground = spare.pop(0)
    if spare and ink is None:
        ink = spare.pop(0)
    return ground, ink, spare


def _doubtful(wish: Wish) -> tuple[str, ...]:
    """Tell which characters become rings or are left to chance, and what is hard to read."""
    chance, remarks = [], []
    for word in wish.words:
        lead, body, trail = _ringed(word, wish)
        if lead or trail:
            remarks.append(f"the outer {(lead + trail)[0]} of {word} is drawn as a ring")
        chance += [c for c in body if c not in LETTERS + DIGITS]
        if _cap_px(word, wish) < CLEAR_CAP_PX:
            remarks.append(f"{word} is so long that its letters come out small, often wrong")
    if chance:
        listed = " ".join(sorted(set(chance)))
        remarks.append(f"the mini was never trained on {listed}, which will look wrong")
    if wish.ground and wish.ink and wish.words and _ratio(wish.ground, wish.ink) < FAINT:
        remarks.append(f"{wish.ink} on {wish.ground} is hard to read")
    return tuple(remarks)


def _singular(token: str) -> str:
    single = token.removesuffix("es") if token == "boxes" else token.removesuffix("s")
    return single if single in NEAREST or single in INK_NOUNS else token


def _choose(options: list[str], byte: int) -> str:
    return options[byte % len(options)]


def _ratio(one: str, other: str) -> float:
    return contrast(COLORS[one], COLORS[other])


def _cells(px: float) -> int:
    return -int(-px // CELL_PX)  # ceiling
