import dataclasses

import numpy as np
import pytest
from PIL import Image

from dit8.eval.grid import GAIN, GAP_PX, LABEL_PX, difference, write_grid
from dit8.eval.run import Run, RunKey
from dit8.quant.errors import UserError

SIDE = 32


def shade(value):
    return np.full((SIDE, SIDE, 3), value, dtype=np.uint8)


@pytest.fixture
def make_run(make_sample):
    def make(variant, shades, order=None):
        samples = [
            make_sample(shade(value), f"p{i}", i, folder=variant) for i, value in enumerate(shades)
        ]
        key = RunKey("0" * 12, "mini", variant, "none", "torch", "float32", "cpu", "set")
        return Run(key, tuple(samples[i] for i in order or range(len(samples))), None)

    return make


def cell(sheet, row, column):
    y = row * (SIDE + LABEL_PX + GAP_PX) + LABEL_PX
    x = column * (SIDE + GAP_PX)
    return sheet[y : y + SIDE, x : x + SIDE]


def test_rows_are_runs_and_their_differences(make_run, tmp_path):
    reference = make_run("bf16", [10, 50, 90])
    other = make_run("int8", [12, 45, 90], order=[2, 0, 1])  # paired by prompt, not by place
    path = tmp_path / "new" / "grid.png"
    write_grid(path, reference, [other], columns=2)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (3 * (SIDE + LABEL_PX + GAP_PX), 2 * SIDE + GAP_PX, 3)
    for column, (a, b) in enumerate([(10, 12), (50, 45)]):
        assert (cell(sheet, 0, column) == a).all()
        assert (cell(sheet, 1, column) == b).all()
        assert (cell(sheet, 2, column) == 128 + GAIN * (b - a)).all()
    for row in range(3):
        label = sheet[row * (SIDE + LABEL_PX + GAP_PX) :][:LABEL_PX]
        assert label.min() < 100 and label.max() == 255  # something is written on white
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_the_reference_alone_is_one_row(make_run, tmp_path):
    write_grid(tmp_path / "grid.png", make_run("bf16", [1, 2]), [], columns=9)
    assert Image.open(tmp_path / "grid.png").size == (2 * SIDE + GAP_PX, SIDE + LABEL_PX + GAP_PX)


def test_strong_differences_are_clipped(make_run):
    (dark,) = make_run("a", [0]).samples
    (light,) = make_run("b", [200]).samples
    (same,) = make_run("c", [200]).samples
    assert (difference(light.image_path, dark.image_path) == 255).all()
    assert (difference(dark.image_path, light.image_path) == 0).all()
    assert (difference(same.image_path, light.image_path) == 128).all()


def test_a_missing_partner_or_another_size_is_one_sentence(make_run, make_sample, tmp_path):
    reference, short = make_run("bf16", [1, 2]), make_run("int8", [1])
    with pytest.raises(UserError, match="write_grid: 1 of 2 samples have no reference, p1"):
        write_grid(tmp_path / "grid.png", reference, [short], columns=2)
    small = make_sample(shade(1)[:16], "p0", 0, folder="small")
    run = dataclasses.replace(short, samples=(small,))
    with pytest.raises(UserError, match="32x16 px, expected the size of its reference"):
        write_grid(tmp_path / "grid.png", reference, [run], columns=1)
    assert not (tmp_path / "grid.png").exists()
