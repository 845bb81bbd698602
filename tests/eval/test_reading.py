import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit8.eval import rapid_reader, reading
from dit8.eval.reading import pad_with_median, read, read_files, read_texts, reader_identity
from dit8.quant.errors import UserError

needs_ocr = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr") is None, reason="needs the extra: pip install -e .[ocr]"
)


def test_padding_is_48_px_of_the_median_of_each_channel():
    image = np.zeros((3, 5, 3), dtype=np.uint8)
    image[:2] = (10, 20, 30)  # 10 of 15 pixels
    image[0, 0] = (255, 255, 255)
    padded = pad_with_median(image)
    assert padded.shape == (99, 101, 3)
    assert np.array_equal(padded[48:51, 48:53], image)
    padded[48:51, 48:53] = (10, 20, 30)
    assert (padded == np.array([10, 20, 30])).all()


def test_a_median_between_two_codes_is_rounded_half_to_even():
    image = np.array([[[0, 1, 2]], [[1, 2, 3]]], dtype=np.uint8)  # medians 0.5, 1.5, 2.5
    assert pad_with_median(image)[0, 0].tolist() == [0, 2, 2]


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_only_rgb_images_are_read(shape):
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got"):
        pad_with_median(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"float64; load it with eval.images.load_rgb"):
        pad_with_median(np.zeros((4, 4, 3)))


@needs_ocr
def test_two_texts_are_read_with_boxes_in_the_pictures_own_pixels(draw_poster):
    found = read(draw_poster({"RIVER": (60, 40, 40), "stone 42": (30, 180, 32)}))
    assert [box.text for box in found.boxes] == ["RIVER", "stone 42"]
    first, second = found.boxes
    # the drawn letters lie inside; the detector's margin and Pillow's bearing are under 12 px
    assert abs(first.left - 60) < 12 and 40 - 12 < first.top < first.bottom < 80 + 12
    assert abs(second.left - 30) < 12 and 180 - 12 < second.top < second.bottom < 212 + 12
    assert all(0.5 <= box.confidence <= 1 for box in found.boxes)


@needs_ocr
def test_text_that_touches_the_edge_is_read(draw_poster):
    assert read_texts(draw_poster({"ZEBRA": (0, 214, 44)})) == ["ZEBRA"]


@needs_ocr
def test_a_picture_without_text_reads_as_nothing_and_prints_nothing():
    # a process of its own: the engine's log handler keeps the stderr it was imported with
    code = (
        "import numpy as np; from dit8.eval.reading import Reading, read\n"
        "assert read(np.full((256, 256, 3), 90, dtype=np.uint8)) == Reading(())"
    )
    root = Path(reading.__file__).parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_channels_are_not_swapped(monkeypatch):
    seen = []
    monkeypatch.setattr(rapid_reader, "obstacle", lambda: None)
    monkeypatch.setattr(
        rapid_reader, "_engine", lambda *_: lambda bgr: seen.append(bgr) or FakeOutput()
    )
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[:] = (1, 2, 3)
    read(image)
    assert seen[0][50, 50].tolist() == [3, 2, 1]


class FakeOutput:
    txts = None


@needs_ocr
def test_settings_and_models_reach_the_engine():
    read(np.zeros((32, 32, 3), dtype=np.uint8))  # makes the detector
    engine = rapid_reader._engine(os.getpid(), 1)
    assert engine.use_cls is False
    assert engine.text_det.limit_type == "max"
    assert engine.text_det.limit_side_len == 512
    identity = reader_identity()
    assert set(identity["models"]) == {"PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"}
    assert all(len(digest) == 64 for digest in identity["models"].values())
    assert identity["reader"] == "rapidocr"
    assert set(identity["environment"]) == {"rapidocr", "onnxruntime"}
    assert identity["settings"]["Det.limit_side_len"] == 512
    json.dumps(identity, allow_nan=False)


@needs_ocr
def test_files_are_read_once_per_content(tmp_path, draw_poster, monkeypatch):
    monkeypatch.setattr(reading, "_READINGS", {})
    for name, text in [("a", "LEMON"), ("b", "LEMON"), ("c", "TIGER")]:
        Image.fromarray(draw_poster({text: (40, 100, 40)})).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in "abca"]
    calls = []
    original = reading._read_file
    monkeypatch.setattr(
        reading, "_read_file", lambda path, **how: calls.append(path) or original(path, **how)
    )
    texts = [[box.text for box in found.boxes] for found in read_files(paths)]
    assert texts == [["LEMON"], ["LEMON"], ["TIGER"], ["LEMON"]]
    assert len(calls) == 2
    # same name, other content: read again
    Image.fromarray(draw_poster({"MANGO": (40, 100, 40)})).save(paths[0])
    assert read_files(paths[:1])[0].boxes[0].text == "MANGO"
    assert len(calls) == 3


@needs_ocr
def test_several_processes_read_the_same(tmp_path, draw_poster, monkeypatch):
    words = ["APPLE", "BREAD", "CHAIR"]
    paths = [tmp_path / f"{word}.png" for word in words]
    for path, word in zip(paths, words, strict=True):
        Image.fromarray(draw_poster({word: (40, 100, 40)})).save(path)
    alone = read_files(paths)
    monkeypatch.setattr(reading, "_READINGS", {})
    assert read_files(paths, workers=2) == alone
    assert [found.boxes[0].text for found in alone] == words


@needs_ocr
def test_a_forked_process_makes_its_own_engine(draw_poster):
    image = draw_poster({"RIVER": (60, 100, 40)})
    assert read_texts(image) == ["RIVER"]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(read_texts, (image,)).get(timeout=60) == ["RIVER"]


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
def test_a_missing_extra_is_named(monkeypatch, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    match = rf"reading: {package} is not installed; get it with `pip install .* -e '.\[ocr\]'`"
    with pytest.raises(UserError, match=match):
        read(np.zeros((32, 32, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=match):
        reader_identity()


@needs_ocr
def test_a_missing_model_file_is_an_error_and_not_a_download(monkeypatch):
    monkeypatch.setitem(rapid_reader.MODEL_FILES, "detector", "PP-OCRv9_det.onnx")
    rapid_reader._engine.cache_clear()
    with pytest.raises(UserError, match=r"model file PP-OCRv9_det.onnx is not in the installed"):
        read(np.zeros((32, 32, 3), dtype=np.uint8))


def test_bad_settings_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"threads must be in \[1, \d+\] .*, got 0"):
        read(np.zeros((32, 32, 3), dtype=np.uint8), threads=0)
    with pytest.raises(ValueError, match=r"workers must be >= 1, got 0"):
        read_files([], workers=0)
    with pytest.raises(UserError, match=r"cannot read .*none.png"):
        read_files([tmp_path / "none.png"])
