import json

import pytest
from PIL import Image

from dit8.eval.reading import Box, Reading
from dit8.eval.report import readings
from dit8.eval.report.load import load
from dit8.eval.report.readings import CACHE, judge_reading, read_run_texts


def box(text, left=0.0, top=0.0):
    return Box(text, left, top, left + 20.0, top + 10.0, 0.9)


def test_lines_are_joined_and_texts_looked_for_apart():
    reading = Reading((box("BIG", 0), box("sale", 25), box("T0DAY", 0, 40)))
    found = judge_reading(["Big Sale", "TODAY", "big"], reading)
    assert found.lines == ("BIG sale", "T0DAY")
    assert found.found == (True, False, True)
    assert judge_reading(["A"], Reading(())).lines == ()


@pytest.fixture
def run(place):
    return load(place.folders, place.results).variants[1].run  # every second text is lost


@pytest.fixture
def asked(monkeypatch, fake_reader):
    """Count the pictures that were really read."""
    counted = []
    genuine = readings.read_files

    def count(paths, workers):
        counted.extend(paths)
        return genuine(paths, workers)

    monkeypatch.setattr(readings, "read_files", count)
    return counted


def test_pictures_are_read_once(run, asked):
    first = read_run_texts(run)
    assert first["p-00", 100].lines == ("SMUDGE",) and first["p-00", 100].found == (False,)
    assert first["p-01", 101].lines == ("Word1",) and first["p-01", 101].found == (True,)
    assert len(asked) == 60
    assert read_run_texts(run) == first
    assert len(asked) == 60


def test_a_picture_drawn_again_is_read_again(run, asked):
    read_run_texts(run)
    Image.new("RGB", (48, 48), (1, 2, 3)).save(run.samples[4].image_path)
    read_run_texts(run)
    assert [path.name for path in asked[60:]] == ["p-04_104.png"]


def test_another_reader_reads_all_again(run, asked, monkeypatch):
    read_run_texts(run)
    monkeypatch.setattr(readings, "reader_identity", lambda: {"reader": "another"})
    read_run_texts(run)
    assert len(asked) == 120


@pytest.mark.parametrize("text", ["", "{", "[]", '{"reader": 1}', '{"pictures": {}}'])
def test_a_damaged_cache_is_made_again(run, asked, text):
    read_run_texts(run)
    cache = run.samples[0].image_path.parent / CACHE
    whole = cache.read_text(encoding="utf-8")
    cache.write_text(text, encoding="utf-8")
    read_run_texts(run)
    assert len(asked) == 120
    assert json.loads(cache.read_text(encoding="utf-8")) == json.loads(whole)


def test_prompts_without_texts_are_not_read(place, asked):
    path = place.folders[0] / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for prompt in record["prompts"]:
        prompt["texts"] = []
    path.write_text(json.dumps(record), encoding="utf-8")
    assert read_run_texts(load([place.folders[0]], place.results).reference.run) == {}
    assert asked == []
