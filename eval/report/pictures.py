"""Shrink pictures and difference maps until a page holds them: data URIs under a limit of bytes.

Every prompt is shown, whatever the limit: all pictures take one side, the largest of SIDES_PX at
which the whole page's pictures fit (none is drawn larger than it is). Dropping prompts instead
would leave a choice of examples, which is how a gallery misleads. Pictures become WebP, which at
quality 80 takes about a fifth of the bytes of a PNG; scores never see these copies.

Difference map: d = min(255, GAIN * max_c |a_c - b_c|) per pixel of the lossless pictures, averaged
over the pixels that one pixel of the map covers, then coloured by matplotlib's "magma": black is
no difference, bright is 255 / GAIN codes or more.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dit8.eval.images import load_pair, load_rgb
from dit8.quant.errors import UserError

SIDES_PX = (320, 256, 192, 160, 128, 96)  # 96 px: about the least at which a title is readable
QUALITY = 80
MAP_QUALITY = 60  # maps are looked at for places, not for values
GAIN = 8
MEGABYTE = 1e6
SAMPLE = 16  # pictures that tell whether a side is hopeless, before thousands are encoded
HOPELESS = 1.5  # times the limit: sixteen pictures are not off by half


@dataclass(frozen=True)
class Shot:
    """Name what is drawn in one place of the gallery.

    Args:
        image: picture of the variant.
        reference: picture it is compared with; None for the reference's own, without a map.
    """

    image: Path
    reference: Path | None


@dataclass(frozen=True)
class Thumbnail:
    """Hold a picture and its difference map as data URIs, and the picture's size in px."""

    image: str
    difference: str | None
    width_px: int
    height_px: int


@dataclass(frozen=True)
class Thumbnails:
    """Hold the thumbnails of a page.

    Args:
        shots: in the order they were asked for.
        side_px: longest side of each.
        total_bytes: length of all data URIs.
    """

    shots: tuple[Thumbnail, ...]
    side_px: int
    total_bytes: int


def difference_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the amplified largest difference over the channels.

    Args:
        image, reference: (H, W, 3) uint8.

    Returns:
        (H, W) uint8, GAIN times the difference in codes, at most 255.
    """
    difference = np.abs(image.astype(np.int16) - reference.astype(np.int16)).max(axis=2)
    return np.minimum(255, GAIN * difference).astype(np.uint8)


def make_thumbnails(shots: Sequence[Shot], limit_bytes: float) -> Thumbnails:
    """Encode all pictures at the largest side of SIDES_PX at which they fit together.

    Args:
        shots: pictures of one page, at least one.
        limit_bytes: for all data URIs together.

    Raises:
        UserError: they do not fit even at the smallest side, or a picture cannot be read.
    """
    sample = shots[:: -(-len(shots) // SAMPLE)]
    for side_px in SIDES_PX:
        expected = sum(_size(_thumbnail(shot, side_px)) for shot in sample) / len(sample)
        if len(shots) * expected > HOPELESS * limit_bytes:
            continue
        encoded, total = [], 0
        for shot in shots:
            encoded.append(_thumbnail(shot, side_px))
            total += _size(encoded[-1])
            if total > limit_bytes:
                break
        else:
            return Thumbnails(tuple(encoded), side_px, total)
    raise UserError(
        f"report: {len(shots)} pictures take more than {limit_bytes / MEGABYTE:g} MB even at "
        f"{SIDES_PX[-1]} px; allow more megabytes, or report fewer runs"
    )


def _thumbnail(shot: Shot, side_px: int) -> Thumbnail:
    if shot.reference is None:
        pixels, difference = load_rgb(shot.image), None
    else:
        pixels, reference = load_pair(shot.image, shot.reference)
        difference = _encode(_coloured(difference_map(pixels, reference), side_px), MAP_QUALITY)
    height, width = pixels.shape[:2]
    small = _shrink(Image.fromarray(pixels), side_px, Image.Resampling.LANCZOS)
    return Thumbnail(_encode(small, QUALITY), difference, width, height)


def _size(thumbnail: Thumbnail) -> int:
    return len(thumbnail.image) + len(thumbnail.difference or "")


def _coloured(values: np.ndarray, side_px: int) -> Image.Image:
    from matplotlib import colormaps

    small = np.asarray(_shrink(Image.fromarray(values), side_px, Image.Resampling.BOX))
    palette = (255 * colormaps["magma"](np.arange(256))[:, :3]).round().astype(np.uint8)
    return Image.fromarray(palette[small])


def _shrink(image: Image.Image, side_px: int, filter_: Image.Resampling) -> Image.Image:
    scale = side_px / max(image.size)
    if scale >= 1:
        return image
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return image.resize(size, filter_)


def _encode(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
