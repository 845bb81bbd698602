"""Posters that differ from a given one in one thing: what a score of posters has to notice.

| kind    | what changes                                                            |
|---------|-------------------------------------------------------------------------|
| word    | one text becomes another word of as many characters                     |
| letter  | one character of one text becomes another                               |
| color   | one element takes another colour                                        |
| moved   | one element moves by a quarter of the side or more                      |
| blurred | the picture is blurred; the poster, and so its caption, stays the same  |

Everything else stays, the layout's seed included. One exception: the ends of a varied background
keep their contrast to the inks of the texts, so a text of another colour may change them.
"""

import random
from dataclasses import replace

from PIL import Image, ImageFilter

from dit8.models.poster_drawing import draw_poster
from dit8.models.poster_type import text_width_px
from dit8.models.poster_words import DIGITS, LETTERS, draw_word, is_held_out
from dit8.models.posters import COLORS, GRID, IMAGE_PX, Element, Poster, contrast

LEAST_MOVE = GRID // 4  # cells
LEAST_CONTRAST = 3.0  # of a new ink against the background's colour
BLUR_PX = 3.0  # standard deviation: letters of 20 px can just be guessed
TRIES = 200
MARGIN_PX = 6  # by which a box is wider than its text


def other_word(poster: Poster, rng: random.Random, *, held_out: bool) -> Poster:
    """Give one text another word of the same length, of the asked side of the split."""
    index = _choose_text(poster, rng)
    old = poster.elements[index].text
    new = old
    while new == old:
        new = draw_word(rng, len(old), len(old), digits=_has_digits(poster), held_out=held_out)
    return _write(poster, index, new)


def other_letter(poster: Poster, rng: random.Random, *, held_out: bool) -> Poster:
    """Change one character of one text; the new word is of the asked side of the split."""
    index = _choose_text(poster, rng)
    old = poster.elements[index].text
    alphabet = LETTERS + DIGITS if _has_digits(poster) else LETTERS
    while True:
        place, character = rng.randrange(len(old)), rng.choice(alphabet)
        new = old[:place] + character + old[place + 1 :]
        if new != old and is_held_out(new) == held_out:
            return _write(poster, index, new)


def other_color(poster: Poster, rng: random.Random) -> Poster:
    """Give one element another colour that stands out from the background."""
    index = rng.randrange(len(poster.elements))
    element = poster.elements[index]
    ground = COLORS[poster.color]
    ratios = {
        name: contrast(value, ground)
        for name, value in COLORS.items()
        if name not in (element.color, poster.color)
    }
    clear = [name for name, ratio in ratios.items() if ratio >= LEAST_CONTRAST]
    # on teal or orange black alone is clear: then the best of the others
    color = rng.choice(clear) if clear else max(ratios, key=ratios.__getitem__)
    return _put(poster, index, replace(element, color=color))


def moved(poster: Poster, rng: random.Random) -> Poster | None:
    """Move one element to a free place; None when none has one."""
    for index in rng.sample(range(len(poster.elements)), len(poster.elements)):
        element = poster.elements[index]
        others = [e.box for i, e in enumerate(poster.elements) if i != index]
        y0, x0, y1, x1 = element.box
        for _ in range(TRIES):
            y, x = rng.randint(0, GRID - (y1 - y0)), rng.randint(0, GRID - (x1 - x0))
            box = (y, x, y + y1 - y0, x + x1 - x0)
            far = max(abs(y - y0), abs(x - x0)) >= LEAST_MOVE
            if far and all(_apart(box, other) for other in others):
                return _put(poster, index, replace(element, box=box))
    return None


def blurred(image: Image.Image) -> Image.Image:
    """Blur a picture by a Gaussian of BLUR_PX."""
    return image.filter(ImageFilter.GaussianBlur(BLUR_PX))


PERTURBATIONS = ("word", "letter", "color", "moved", "blurred")


def perturbed_picture(poster: Poster, kind: str, rng: random.Random) -> Image.Image | None:
    """Draw a poster with one thing wrong, its words held out of training.

    Args:
        kind: one of PERTURBATIONS.

    Returns:
        256 x 256 RGB; None where nothing can be moved.
    """
    if kind == "blurred":
        return blurred(draw_poster(poster))
    changed = {
        "word": lambda: other_word(poster, rng, held_out=True),
        "letter": lambda: other_letter(poster, rng, held_out=True),
        "color": lambda: other_color(poster, rng),
        "moved": lambda: moved(poster, rng),
    }[kind]()
    return None if changed is None else draw_poster(changed)


def _choose_text(poster: Poster, rng: random.Random) -> int:
    return rng.choice([i for i, e in enumerate(poster.elements) if e.kind == "text"])


def _has_digits(poster: Poster) -> bool:
    return poster.tier in ("medium", "hard")


def _write(poster: Poster, index: int, text: str) -> Poster:
    """Replace a text; capitals that would leave the box become smaller."""
    element = poster.elements[index]
    box_px = (element.box[3] - element.box[1]) * IMAGE_PX / GRID
    widest = (box_px - MARGIN_PX) / text_width_px(text, element.face, 1.0)
    cap_px = min(element.cap_px, widest)
    return _put(poster, index, replace(element, text=text, cap_px=cap_px))


def _put(poster: Poster, index: int, element: Element) -> Poster:
    elements = (*poster.elements[:index], element, *poster.elements[index + 1 :])
    return replace(poster, elements=elements)


def _apart(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Tell whether two boxes leave a cell between them."""
    return a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
