"""The strip of README.md: one column a variant, its poster, and a part of it enlarged below.

Posters are scaled to the width of a column. The part is cut from the unscaled poster and enlarged
by bicubic interpolation, which adds no detail; a frame shows where it was cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

LANCZOS, BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
COLUMN_PX, GAP_PX = 208, 12
HEAD_PX, NOTE_PX = 58, 22  # above the posters, a line below them
NAME_SIZE, FIGURES_SIZE, NOTE_SIZE = 22, 17, 15
INK, MUTED, FRAME = "#1c2128", "#59616b", "#d81b60"
FRAME_WIDTH = 2


@dataclass(frozen=True)
class Column:
    """Hold one variant.

    Args:
        name: of the variant.
        figures: the line below its name.
        posters: (H, W, 3) uint8 each, of the same prompts in every column.
    """

    name: str
    figures: str
    posters: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Part:
    """Say which part of the last poster is enlarged to a poster's width, in pixels."""

    left: int
    top: int
    width: int
    height: int

    def is_within(self, width: int, height: int) -> bool:
        starts, sizes = (self.left, self.top), (self.width, self.height)
        ends = (start + size for start, size in zip(starts, sizes, strict=True))
        fits = all(end <= limit for end, limit in zip(ends, (width, height), strict=True))
        return fits and min(starts) >= 0 and min(sizes) >= 1


def draw_strip(columns: Sequence[Column], part: Part, notes: Sequence[str]) -> Image.Image:
    """Draw the columns side by side on white: heads, posters, the enlarged part, notes.

    Raises:
        ValueError: posters of several shapes, or a part that is not within them.
    """
    shapes = {poster.shape for column in columns for poster in column.posters}
    if len(shapes) != 1 or len({len(column.posters) for column in columns}) != 1:
        raise ValueError(f"draw_strip: posters must have one shape and number, got {shapes}")
    ((height, width, _),) = shapes
    if not part.is_within(width, height):
        raise ValueError(f"draw_strip: the part must lie within {width}x{height} px, got {part}")
    rows, scale = len(columns[0].posters), COLUMN_PX / width
    step_x, step_y = COLUMN_PX + GAP_PX, round(scale * height) + GAP_PX
    enlarged = round(part.height * COLUMN_PX / part.width)
    below = HEAD_PX + rows * step_y + enlarged
    size = (len(columns) * step_x + GAP_PX, below + GAP_PX + NOTE_PX * len(notes))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, column in enumerate(columns):
        x = GAP_PX + index * step_x
        pen.text((x, 6), column.name, fill=INK, font=_font(NAME_SIZE, bold=True))
        pen.text((x, 33), column.figures, fill=MUTED, font=_font(FIGURES_SIZE))
        for row, poster in enumerate(column.posters):
            scaled = Image.fromarray(poster).resize((COLUMN_PX, step_y - GAP_PX), LANCZOS)
            sheet.paste(scaled, (x, HEAD_PX + row * step_y))
        y = HEAD_PX + (rows - 1) * step_y  # of the last poster
        frame = (round(scale * n) for n in (part.left, part.top, part.width, part.height))
        left, top, *sides = frame
        _frame(pen, x + left, y + top, *sides)
        right, bottom = part.left + part.width, part.top + part.height
        cut = Image.fromarray(column.posters[-1]).crop((part.left, part.top, right, bottom))
        sheet.paste(cut.resize((COLUMN_PX, enlarged), BICUBIC), (x, y + step_y))
        _frame(pen, x, y + step_y, COLUMN_PX, enlarged)
    for line, note in enumerate(notes):
        at = (GAP_PX, below + GAP_PX + line * NOTE_PX)
        pen.text(at, note, fill=MUTED, font=_font(NOTE_SIZE))
    return sheet


def _frame(pen: ImageDraw.ImageDraw, x: int, y: int, width: int, height: int) -> None:
    pen.rectangle((x, y, x + width - 1, y + height - 1), outline=FRAME, width=FRAME_WIDTH)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which ships with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
