"""Draw a `Poster`: 256 x 256 RGB, deterministic by the poster's seed."""

import math

import numpy as np
from PIL import Image, ImageDraw

from dit8.models.poster_type import face_at_cap
from dit8.models.posters import COLORS, GRID, IMAGE_PX, Element, Poster, contrast

CELL_PX = IMAGE_PX / GRID
OVERSAMPLE = 4  # shapes are drawn 4x larger and averaged, which anti-aliases their edges
LEAST_CONTRAST = 3.0  # of every ink against both ends of a varied background


def _second_color(rng: np.random.Generator, poster: Poster, strongest: float) -> np.ndarray:
    """Draw the other end of a varied background; it keeps its distance to the ink of every text."""
    base = np.array(COLORS[poster.color], dtype=np.float32)
    inks = [COLORS[e.color] for e in poster.elements if e.kind == "text"]
    for _ in range(20):
        other = np.array(list(COLORS.values())[rng.integers(len(COLORS))], dtype=np.float32)
        end = base + (other - base) * rng.uniform(0.4, 1.0) * strongest
        if all(contrast(tuple(end), ink) >= LEAST_CONTRAST for ink in inks):
            return end
    return base


def _background(poster: Poster) -> Image.Image:
    base = np.array(COLORS[poster.color], dtype=np.float32)
    if poster.background == "flat":
        return Image.new("RGB", (IMAGE_PX, IMAGE_PX), COLORS[poster.color])
    rng = np.random.default_rng([poster.seed, 7])  # 7: a stream apart from the layout's
    axis = np.linspace(-1, 1, IMAGE_PX, dtype=np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)  # (H, W)
    if poster.background == "gradient":
        end = _second_color(rng, poster, 0.7)
        mix = (ramp / np.abs(ramp).max() + 1) / 2
    elif poster.background == "pattern":
        end = _second_color(rng, poster, 0.4)
        period = rng.uniform(0.09, 0.25)
        mix = 0.5 + 0.5 * np.sin(ramp * (2 * math.pi / period))
        if rng.random() < 0.5:  # a second family of stripes across the first: checks
            across = axis[None, :] * -math.sin(angle) + axis[:, None] * math.cos(angle)
            mix = mix * (0.5 + 0.5 * np.sin(across * (2 * math.pi / period)))
    else:  # texture: two octaves of smooth noise
        end = _second_color(rng, poster, 0.5)
        mix = np.full((IMAGE_PX, IMAGE_PX), 0.5, dtype=np.float32)
        for cells, weight in ((int(rng.integers(5, 10)), 0.22), (int(rng.integers(16, 28)), 0.12)):
            coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
            mix += weight * np.asarray(coarse.resize((IMAGE_PX, IMAGE_PX), Image.BICUBIC))
        mix = np.clip(mix, 0, 1)
    pixels = base + (end - base) * mix[..., None]
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _draw_shape(image: Image.Image, element: Element) -> None:
    y0, x0, y1, x1 = (round(cell * CELL_PX) for cell in element.box)
    width, height = (x1 - x0) * OVERSAMPLE, (y1 - y0) * OVERSAMPLE
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    edges = (0, 0, width - 1, height - 1)
    if element.shape == "circle":
        pen.ellipse(edges, fill=255)
    elif element.shape == "ring":
        pen.ellipse(edges, outline=255, width=max(1, width // 6))
    elif element.shape == "triangle":
        pen.polygon([(0, height - 1), (width - 1, height - 1), (width // 2, 0)], fill=255)
    else:  # square, bar
        pen.rectangle(edges, fill=255)
    image.paste(COLORS[element.color], (x0, y0), mask.reduce(OVERSAMPLE))


def _draw_text(image: Image.Image, element: Element) -> None:
    y0, x0, y1, x1 = (cell * CELL_PX for cell in element.box)
    font = face_at_cap(element.face, element.cap_px)
    left, _, right, _ = font.getbbox(element.text)
    _, top, _, bottom = font.getbbox("H")
    origin = ((x0 + x1 - left - right) / 2, (y0 + y1 - top - bottom) / 2)
    ImageDraw.Draw(image).text(origin, element.text, font=font, fill=COLORS[element.color])


def draw_poster(poster: Poster) -> Image.Image:
    """Draw the poster as the training data and the references show it.

    Returns:
        A 256 x 256 RGB image; the same poster always gives the same pixels with one Pillow version.
    """
    image = _background(poster)
    for element in poster.elements:
        (_draw_text if element.kind == "text" else _draw_shape)(image, element)
    return image
