"""Typefaces of the posters: files that ship with matplotlib, so they are the same everywhere."""

import functools
import os

import matplotlib
from PIL import ImageFont

FACES = {
    "sans": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif-Bold.ttf",
    "mono": "DejaVuSansMono-Bold.ttf",
    "slanted": "DejaVuSans-BoldOblique.ttf",
    "roman": "STIXGeneralBol.ttf",
}
CAP_HEIGHTS = {  # pixels on a 256 x 256 poster: smallest, largest
    "slot": (36.0, 46.0),
    "easy": (32.0, 64.0),
    "medium": (22.0, 44.0),
    "hard": (18.0, 40.0),
}
_PROBE_PX = 200


@functools.lru_cache(maxsize=4096)
def load_face(face: str, size_px: float) -> ImageFont.FreeTypeFont:
    """Load a face at an em size in pixels."""
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(os.path.join(folder, FACES[face]), size_px)


@functools.cache
def em_per_cap(face: str) -> float:
    """Em size over the height of a capital H."""
    _, top, _, bottom = load_face(face, _PROBE_PX).getbbox("H")
    return _PROBE_PX / (bottom - top)


def face_at_cap(face: str, cap_px: float) -> ImageFont.FreeTypeFont:
    """Load a face so that its capitals are `cap_px` high; sizes are kept to a quarter pixel."""
    return load_face(face, round(4 * cap_px * em_per_cap(face)) / 4)


@functools.lru_cache(maxsize=65536)
def text_width_px(text: str, face: str, cap_px: float) -> float:
    """Advance width of `text` in pixels when its capitals are `cap_px` high."""
    return load_face(face, _PROBE_PX).getlength(text) / _PROBE_PX * em_per_cap(face) * cap_px
