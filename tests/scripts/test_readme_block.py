"""The program in README.md runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_readme_s_python_draws_the_poster(run_here, tmp_path, monkeypatch):
    (code,) = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len([line for line in code.splitlines() if line]) <= 11
    few = ("calibration.n=1", "calibration.sampler.steps=3", "hardware=cpu")
    ended = run_here("quantize", f"checkpoints={tmp_path / 'checkpoints'}", *few)
    assert ended.code == 0, ended.stderr
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    pixels = np.asarray(Image.open(tmp_path / "poster.png"), dtype=int)
    assert pixels.shape == (256, 256, 3)
    red, green, blue = np.median(pixels[:64], axis=(0, 1))  # above the text: teal
    assert red < 60 and min(green, blue) > 100
    assert pixels[96:154, 38:218].min(axis=-1).max() > 200  # white letters in the caption's box
