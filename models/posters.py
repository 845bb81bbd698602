"""Poster captions: the data the mini model learns, deterministic by seed.

A `Poster` is everything needed to write its caption and to draw its picture. Captions follow the
Ideogram 4 schema (keys in order, minified, bbox = [ymin, xmin, ymax, xmax] in 0..1000, here always
multiples of 25). Text stands in capitals and digits.

| tier   | texts | characters         | cap height | background                     |
|--------|-------|--------------------|------------|--------------------------------|
| slot   | 1     | 3-6 letters        | 36-46 px   | flat; text always in the centre |
| easy   | 1     | 3-6 letters        | 32-64 px   | flat                           |
| medium | 2     | 3-8 letters, digits | 22-44 px   | flat                           |
| hard   | 1     | 3-10 letters, digits | 18-40 px  | gradient, pattern or texture   |

`slot` exists for the first minutes of training only. The caption of a hard poster names the kind
and the colour of its background and nothing else: angle, period, second colour and grain come from
the noise, as most of a real picture does.
"""

import hashlib
import json
import random
from dataclasses import dataclass

from dit8.models.poster_type import CAP_HEIGHTS, FACES, text_width_px
from dit8.models.poster_words import draw_word

TIERS = ("slot", "easy", "medium", "hard")
IMAGE_PX = 256
GRID = 40  # boxes stand on a grid of 1/40 of the side: 25 units of 1000, 6.4 px
COLORS = {
    "white": (245, 245, 240),
    "black": (20, 20, 22),
    "red": (208, 36, 40),
    "orange": (242, 140, 20),
    "yellow": (252, 212, 30),
    "green": (38, 138, 70),
    "teal": (14, 140, 150),
    "navy": (28, 50, 96),
    "purple": (104, 30, 150),
    "pink": (246, 160, 196),
}
SHAPES = ("circle", "square", "triangle", "ring", "bar")
HARD_BACKGROUNDS = ("gradient", "pattern", "texture")
COUNT_WORDS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Element:
    """One thing on the poster; `box` = (y0, x0, y1, x1) in grid cells, 0..GRID."""

    kind: str  # "text" or "obj"
    box: tuple[int, int, int, int]
    color: str
    shape: str = ""  # obj only
    text: str = ""  # text only
    face: str = ""  # text only, a key of FACES
    cap_px: float = 0.0  # text only: height of a capital in pixels


@dataclass(frozen=True)
class Poster:
    """A caption and its picture to be; `seed` fixes what the caption leaves open."""

    tier: str
    seed: int
    background: str  # "flat" or one of HARD_BACKGROUNDS
    color: str
    elements: tuple[Element, ...]
    description: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(e.text for e in self.elements if e.kind == "text")


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """WCAG 2 contrast ratio of two sRGB colours, 1..21."""

    def luminance(color):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (v / 255 for v in color)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _overlaps(a, b, gap: int = 1) -> bool:
    return not (
        a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]
    )


def _place(rng: random.Random, height: int, width: int, taken: list, tries: int = 40):
    """Find a free box of `height` x `width` cells, or None."""
    for _ in range(tries):
        y, x = rng.randint(0, GRID - height), rng.randint(0, GRID - width)
        box = (y, x, y + height, x + width)
        if not any(_overlaps(box, other) for other in taken):
            return box
    return None


def _cells(px: float) -> int:
    return -int(-px // (IMAGE_PX / GRID))  # ceiling


def _text_element(rng: random.Random, tier: str, taken: list, color: str, held_out: bool):
    """Draw a word, a face and a size that fit, and place them; None when no place is left."""
    shortest, longest = {"hard": (3, 10), "medium": (3, 8)}.get(tier, (3, 6))
    low, high = CAP_HEIGHTS[tier]
    word = draw_word(rng, shortest, longest, digits=tier in ("medium", "hard"), held_out=held_out)
    face = rng.choice(tuple(FACES))
    widest = IMAGE_PX - 12.8  # one grid cell free on either side
    high = min(high, widest / text_width_px(word, face, 1.0))
    if high < low:
        return None
    # Squared: small capitals are drawn more often than large ones, on the hard tier above all.
    cap_px = low + (high - low) * rng.random() ** (2.0 if tier == "hard" else 1.0)
    height = _cells(cap_px + 6)
    width = min(GRID, _cells(text_width_px(word, face, cap_px) + 6))
    if tier == "slot":
        y, x = (GRID - height) // 2, (GRID - width) // 2
        box = (y, x, y + height, x + width)
    else:
        box = _place(rng, height, width, taken)
    if box is None:
        return None
    return Element("text", box, color, text=word, face=face, cap_px=cap_px)


def make_poster(tier: str, seed: int, *, held_out: bool) -> Poster:
    """Draw one poster of a tier. The same (tier, seed, held_out) always gives the same poster."""
    if tier not in TIERS:
        raise ValueError(f"make_poster: tier must be one of {', '.join(TIERS)}, got {tier!r}")
    key = f"{tier}/{seed}/{held_out}".encode()
    rng = random.Random(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
    color = rng.choice(tuple(COLORS))
    background = rng.choice(HARD_BACKGROUNDS) if tier == "hard" else "flat"
    # A varied background eats some of the contrast, so the hard tier asks for more of it.
    least = 4.5 if tier == "hard" else 3.5
    inks = [name for name in COLORS if contrast(COLORS[name], COLORS[color]) >= least]
    if not inks:
        inks = [
            "white"
            if contrast(COLORS["white"], COLORS[color]) > contrast(COLORS["black"], COLORS[color])
            else "black"
        ]
    elements: list[Element] = []
    for _ in range(2 if tier == "medium" else 1):
        element = None
        while element is None:
            taken = [e.box for e in elements]
            element = _text_element(rng, tier, taken, rng.choice(inks), held_out)
        elements.append(element)
    for _ in range(0 if tier == "slot" else rng.choice((0, 1, 1, 2))):
        side = rng.randint(5, 12)
        shape = rng.choice(SHAPES)
        size = (max(2, side // 4), side) if shape == "bar" else (side, side)
        box = _place(rng, *size, [e.box for e in elements])
        if box is not None:
            shape_color = rng.choice([name for name in COLORS if name != color])
            elements.append(Element("obj", box, shape_color, shape=shape))
    rng.shuffle(elements)
    description = ""
    if tier in ("medium", "hard") and rng.random() < 0.5:
        words = sum(e.kind == "text" for e in elements)
        shapes = len(elements) - words
        description = (
            f"A {color} poster with {COUNT_WORDS[words]} {'words' if words > 1 else 'word'}"
            f" and {COUNT_WORDS[shapes]} {'shape' if shapes == 1 else 'shapes'}."
        )
    return Poster(tier, seed, background, color, tuple(elements), description)


def caption(poster: Poster) -> dict:
    """Write the poster as a schema-valid caption, keys in the schema's order."""
    elements = []
    for element in poster.elements:
        entry: dict = {"type": element.kind, "bbox": [25 * cell for cell in element.box]}
        if element.kind == "text":
            entry["text"] = element.text
            entry["desc"] = f"{element.color} {element.face}"
        else:
            entry["desc"] = f"{element.color} {element.shape}"
        elements.append(entry)
    out: dict = {}
    if poster.description:
        out["high_level_description"] = poster.description
    flat = poster.background == "flat"
    out["compositional_deconstruction"] = {
        "background": f"flat {poster.color}" if flat else f"{poster.color} {poster.background}",
        "elements": elements,
    }
    return out


def caption_json(poster: Poster) -> str:
    """Serialize the caption minified, with non-ASCII kept literal."""
    return json.dumps(caption(poster), ensure_ascii=False, separators=(",", ":"))
