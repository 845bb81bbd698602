"""Load pictures for scoring: decoded completely, or an error that names the file."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dit8.quant.errors import UserError


def load_rgb(path: Path | str) -> np.ndarray:
    """Load an image file as RGB.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UserError: the file is missing, truncated, no image, or not 8-bit RGB; nothing is
            converted, because a palette or an alpha channel would change what is scored.
    """
    try:
        with Image.open(path) as image:
            image.verify()  # every chunk's checksum, which decoding alone skips
        with Image.open(path) as image:
            mode, pixels = image.mode, np.array(image)
    except UnidentifiedImageError as error:
        raise UserError(f"image {path}: not an image file; delete it and generate again") from error
    # Pillow reports a truncated or damaged PNG as OSError or SyntaxError, by chunk
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"image {path}: cannot be read ({error}); delete it and generate again"
        ) from error
    if mode != "RGB":
        raise UserError(f"image {path}: mode is {mode}, expected RGB; save it as 8-bit RGB")
    return pixels


def load_pair(path: Path, reference_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load a picture and its reference, both (H, W, 3) uint8 of one size.

    Raises:
        UserError: either cannot be read or the sizes differ; nothing is resized.
    """
    image, reference = load_rgb(path), load_rgb(reference_path)
    if image.shape != reference.shape:
        raise UserError(
            f"image {path} is {image.shape[1]}x{image.shape[0]} px, expected the size of its"
            f" reference {reference_path}, {reference.shape[1]}x{reference.shape[0]} px;"
            " generate both at one size"
        )
    return image, reference
