"""The program in README.md runs as it stands there, with fewer steps."""

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
    few = ("calibration.n=1", "calibration.sampler.steps=1", "hardware=cpu")
    ended = run_here("quantize", f"checkpoints={tmp_path / 'checkpoints'}", *few)
    assert ended.code == 0, ended.stderr
    for name in ("models", "prompts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert code.count("20") == 2  # steps, of which eight are enough for the colours
    exec(compile(code.replace("20", "8"), "README.md", "exec"), {})
    pixels = np.asarray(Image.open(tmp_path / "poster.png"), dtype=int)
    assert pixels.shape == (256, 256, 3)
    red, green, blue = np.median(pixels[:24], axis=(0, 1))  # above the texts: navy
    assert max(red, green) < 80 < blue
    assert pixels[32:148].min(axis=-1).max() > 200  # white letters
    red, green, blue = pixels[188, 124]  # within the yellow circle
    assert min(red, green) > 150 > blue
