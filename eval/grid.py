"""Lay pictures out for the eye: one row a run, one column a prompt, differences below."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dit8.eval.images import load_pair, load_rgb
from dit8.eval.run import Run, pair_samples
from dit8.quant.files import write_atomically

LABEL_PX = 24
GAP_PX = 6
GAIN = 8  # differences are drawn this many times stronger, around mid-grey


def difference(path: Path, reference: Path) -> np.ndarray:
    """Return 128 + GAIN * (picture - reference), clipped: (H, W, 3) uint8."""
    a, b = load_pair(path, reference)
    return np.clip(128 + GAIN * (a.astype(np.int16) - b), 0, 255).astype(np.uint8)


def write_grid(path: Path, reference: Run, others: Sequence[Run], columns: int) -> None:
    """Write a PNG: the reference's pictures, every other run's, and what they differ by.

    Args:
        path: the PNG, written atomically.
        reference: first row.
        others: runs over the same prompts; each gets a row and a row of differences.
        columns: of the reference's first pictures.

    Raises:
        UserError: a run lacks a partner, or a picture is damaged or of another size.
    """
    shown = reference.samples[:columns]
    rows = [(reference.key.variant, [load_rgb(sample.image_path) for sample in shown])]
    for run in others:
        pairs = pair_samples(shown, run.samples, "write_grid")
        name = run.key.variant
        rows.append((name, [load_rgb(partner.image_path) for _, partner in pairs]))
        gains = [difference(partner.image_path, sample.image_path) for sample, partner in pairs]
        rows.append((f"{name} - {reference.key.variant}, x{GAIN}", gains))
    height, width = rows[0][1][0].shape[:2]
    step_y, step_x = height + LABEL_PX + GAP_PX, width + GAP_PX
    sheet = Image.new("RGB", (len(shown) * step_x - GAP_PX, len(rows) * step_y), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for y, (label, pictures) in enumerate(rows):
        pen.text((2, y * step_y + 2), label, fill="black", font=font)
        for x, pixels in enumerate(pictures):
            sheet.paste(Image.fromarray(pixels), (x * step_x, y * step_y + LABEL_PX))
    write_atomically(path, lambda partial: sheet.save(partial, format="PNG", optimize=True))
