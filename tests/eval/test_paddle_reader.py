"""The second reader, where PaddleOCR is installed; what it lacks, everywhere."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dit8.eval import paddle_reader, reading
from dit8.eval.reading import Reading, read, read_files, reader_identity
from dit8.eval.scorers import get_scorer
from dit8.quant.errors import UserError

needs_paddle = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in paddle_reader.PACKAGES),
    reason="needs the extra: pip install -e '.[paddle]'",
)


@needs_paddle
def test_it_reads_what_the_default_reader_reads(draw_poster):
    poster = draw_poster({"RIVER": (60, 40, 40), "stone 42": (30, 180, 32), "EDGE": (0, 226, 30)})
    ours, theirs = (read(poster, reader=name) for name in ("rapidocr", "paddleocr"))
    assert [box.text for box in theirs.boxes] == [box.text for box in ours.boxes]
    for a, b in zip(ours.boxes, theirs.boxes, strict=True):
        # the same picture through the same detector; boxes are scored and grown differently
        assert abs(a.left - b.left) < 8 and abs(a.bottom - b.bottom) < 8
        assert 0.5 <= b.confidence <= 1
    assert ours != theirs  # another engine did read


@needs_paddle
def test_a_picture_without_text_reads_as_nothing_and_prints_nothing():
    code = (
        "import numpy as np; from dit8.eval.reading import Reading, read\n"
        "blank = np.full((256, 256, 3), 90, dtype=np.uint8)\n"
        "assert read(blank, reader='paddleocr') == Reading(())"
    )
    root = Path(reading.__file__).parents[1]
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_paddle
def test_the_scorers_have_a_definition_of_their_own(make_sample, draw_poster):
    poster = draw_poster({"RIVER": (60, 40, 40)})
    samples = [make_sample(poster, texts=("river",))]
    values = {name: get_scorer(f"ocr_{name}_paddle").score(samples)[0] for name in ("exact", "ned")}
    assert values == {"exact": 1.0, "ned": 0.0}
    assert get_scorer("ocr_strict_paddle").score(samples)[0] == 0.0
    ours, theirs = (get_scorer(name).identity() for name in ("ocr_exact", "ocr_exact_paddle"))
    assert theirs["reader"] == "paddleocr" and theirs["models"] == ours["models"]
    assert theirs["settings"] == paddle_reader.SETTINGS != ours["settings"]


def test_readings_of_two_readers_are_not_mixed(make_sample, draw_poster, monkeypatch):
    sample = make_sample(draw_poster({}))
    monkeypatch.setattr(reading, "_READINGS", {})
    asked = []

    def fake(path, threads, reader):
        asked.append(reader)
        return Reading(())

    monkeypatch.setattr(reading, "_read_file", fake)
    for reader in ("rapidocr", "paddleocr", "rapidocr"):
        read_files([sample.image_path], reader=reader)
    assert asked == ["rapidocr", "paddleocr"]


def test_a_missing_package_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "paddlex" else find_spec(name)
    )
    monkeypatch.setattr(paddle_reader, "PACKAGES", ("paddlex",))
    reason = get_scorer("ocr_ned_paddle").obstacle()
    install = "pip install -c constraints.txt -e '.[paddle]'"
    assert reason == f"not measured: paddlex is not installed; get it with `{install}`"
    with pytest.raises(UserError, match=r"reading: paddlex is not installed; get it with"):
        read(np.zeros((32, 32, 3), dtype=np.uint8), reader="paddleocr")
    with pytest.raises(UserError, match=r"reading: paddlex is not installed; get it with"):
        reader_identity("paddleocr")
