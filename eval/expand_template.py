"""Expand an idea without any model: the same caption everywhere, for tests and offline work.

Nothing is invented. The idea becomes the one object and the description; what it letters becomes
text elements in bands from the top down; a word of the idea picks the medium, and a hash of it one
of a few palettes. Such a caption is valid and letters the right texts, but says nothing about the
picture that the idea does not say: for results worth reporting a model has to expand.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from dit8.eval.captions import ArtStyle, Caption, Composition, Obj, PhotoStyle, Text, canonical
from dit8.eval.quotes import lettering


@dataclass(frozen=True)
class Medium:
    """How one kind of picture is described; `photo` is empty for what is not a photograph."""

    words: tuple[str, ...]  # stems; any of them in the idea chooses this medium
    medium: str
    aesthetics: str
    lighting: str
    background: str
    photo: str = ""
    art_style: str = ""


# The first that fits is taken: a photograph of a poster is a photograph, a painted sign is a sign.
MEDIA = (
    Medium(
        words=("photo", "portrait", "snapshot", "close-up", "macro"),
        medium="photograph",
        aesthetics="documentary, uncluttered",
        lighting="soft daylight from the left",
        background="A plain, slightly blurred place where the subject belongs.",
        photo="eye level, 50 mm lens, the subject sharp",
    ),
    Medium(
        words=("logo", "icon", "badge", "emblem", "wordmark", "sticker"),
        medium="graphic design",
        aesthetics="simple, bold shapes",
        lighting="flat",
        background="One even colour over the whole frame.",
        art_style="flat vector mark with few shapes",
    ),
    Medium(
        words=("3d", "render", "isometric", "clay"),
        medium="3D render",
        aesthetics="rounded, clean forms",
        lighting="two soft lights from above",
        background="A seamless studio floor that bends up into the wall.",
        art_style="smooth computer-made surfaces",
    ),
    Medium(
        words=("painting", "watercolour", "watercolor", "sketch", "drawing", "anime", "engraving"),
        medium="illustration",
        aesthetics="hand-made, visible strokes",
        lighting="even light without hard shadows",
        background="Paper with a light grain, loosely coloured around the subject.",
        art_style="painted by hand on paper",
    ),
    Medium(
        words=(
            "poster",
            "cover",
            "sign",
            "menu",
            "label",
            "ticket",
            "flyer",
            "infographic",
            "card",
        ),
        medium="graphic design",
        aesthetics="clear layout, strong contrast",
        lighting="flat",
        background="One even colour over the whole frame.",
        art_style="flat print design",
    ),
)
OTHERWISE = {True: MEDIA[-1], False: MEDIA[0]}  # by whether the idea quotes a text
PALETTES = (
    ("#14213D", "#FCA311", "#E5E5E5"),
    ("#F1FAEE", "#1D3557", "#E63946"),
    ("#2B2D42", "#EDF2F4", "#EF233C"),
    ("#FEFAE0", "#283618", "#BC6C25"),
    ("#003049", "#FDF0D5", "#C1121F"),
    ("#22223B", "#F2E9E4", "#9A8C98"),
)
MARGIN, TEXT_END, THING_TOP = 80, 480, 520  # thousandths: texts above the middle, the thing below


@dataclass(frozen=True)
class TemplateExpander:
    """Fill a template; needs nothing and is always there."""

    name: str = "template"

    def obstacle(self) -> str | None:
        return None

    def identity(self) -> dict[str, Any]:
        return {"version": 2}  # to be raised when a caption changes

    def remarks(self, idea: str) -> tuple[str, ...]:
        return ()

    def expand(self, idea: str) -> str:
        """Return a canonical caption; the same for the same idea, whatever the machine."""
        texts, rest = lettering(idea)
        medium = _medium(idea, bool(texts))
        palette = PALETTES[hashlib.sha256(idea.encode()).digest()[0] % len(PALETTES)]
        thing = {"bbox": (THING_TOP, 150, 940, 850)} if texts else {"bbox": (150, 150, 900, 850)}
        elements = [Obj(type="obj", desc=_thing(rest), color_palette=palette[2:], **thing)]
        caption = Caption(
            high_level_description=f"{idea.rstrip('.')}. Medium: {medium.medium}.",
            style_description=_style(medium, palette),
            compositional_deconstruction=Composition(
                background=medium.background,
                elements=(*elements, *_lettering(texts, palette[1])),
            ),
        )
        return canonical(caption)


def _medium(idea: str, has_text: bool) -> Medium:
    low = idea.casefold()
    for medium in MEDIA:
        if any(re.search(rf"\b{re.escape(word)}", low) for word in medium.words):
            return medium
    return OTHERWISE[has_text]


def _style(medium: Medium, palette: tuple[str, ...]) -> PhotoStyle | ArtStyle:
    shared = {
        "aesthetics": medium.aesthetics,
        "lighting": medium.lighting,
        "medium": medium.medium,
        "color_palette": palette,
    }
    if medium.photo:
        return PhotoStyle(photo=medium.photo, **shared)
    return ArtStyle(art_style=medium.art_style, **shared)


def _thing(rest: str) -> str:
    """Return the idea without its texts, which would be lettered twice."""
    return " ".join(rest.replace("§", " ").split()) or "a simple ornament"


def _lettering(texts: tuple[str, ...], color: str) -> list[Text]:
    """Stack texts in equal bands between the margin and the middle, the first one the largest."""
    if not texts:
        return []
    band = (TEXT_END - MARGIN) // len(texts)
    sizes = ("large bold", *["medium-sized"] * (len(texts) - 1))
    return [
        Text(
            type="text",
            bbox=(MARGIN + index * band, 100, MARGIN + index * band + band * 4 // 5, 900),
            text=text,
            desc=f"{size} sans-serif letters, centred",
            color_palette=(color,),
        )
        for index, (text, size) in enumerate(zip(texts, sizes, strict=True))
    ]
