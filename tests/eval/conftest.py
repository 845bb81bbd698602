"""Small posters and samples for the evaluation tests, drawn with Pillow's own font."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dit8.models.types import Prompt, Sample


@pytest.fixture
def draw_poster() -> Callable[..., np.ndarray]:
    """Return a function: {text: (x, y, size)} -> 256 x 256 RGB poster, (H, W, 3) uint8."""

    def draw(placed: dict[str, tuple[int, int, int]]) -> np.ndarray:
        image = Image.new("RGB", (256, 256), (238, 226, 200))
        pen = ImageDraw.Draw(image)
        for text, (x, y, size) in placed.items():
            pen.text((x, y), text, font=ImageFont.load_default(size), fill=(20, 20, 70))
        return np.array(image)

    return draw


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[..., Sample]:
    """Return a function that saves a picture as PNG and returns its sample."""

    def make(
        pixels: np.ndarray,
        prompt_id: str = "p0",
        seed: int = 0,
        texts: tuple[str, ...] = ("RIVER",),
        folder: str = "variant",
    ) -> Sample:
        path = tmp_path / folder / f"{prompt_id}_{seed}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        return Sample(Prompt(prompt_id, "", texts, seed), path, None, 1.5)

    return make
