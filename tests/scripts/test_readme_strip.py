"""scripts/readme_strip.py: posters of five runs side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit8.eval.reproduce.short import ROWS
from dit8.eval.run import RunKey, write_run_record
from dit8.eval.strip import COLUMN_PX, GAP_PX, HEAD_PX
from dit8.models.generate import save_sample
from dit8.models.types import Prompt

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [Prompt(f"p{n}", "{}", (), n) for n in range(3)]
SIDE = 32
PART = ("--part", "8", "8", "16", "8")


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "bench").symlink_to(ROOT / "results" / "bench")
    return folder


@pytest.fixture
def write_runs(tmp_path):
    """Writes a run a variant, of whose three prompts the last was not drawn."""

    def write(variants=ROWS, dtypes=None):
        folders = []
        for number, variant in enumerate(variants):
            folder = tmp_path / variant
            dtype = (dtypes or {}).get(variant, "float32")
            key = RunKey(f"{number:012}", "mini", variant, "none", "stock", dtype, "torch-cpu", "s")
            folder.mkdir()
            write_run_record(folder, key, PROMPTS, None)
            for row, prompt in enumerate(PROMPTS[:2]):
                shade = np.full((SIDE, SIDE, 3), 40 * number + 10 * row, dtype=np.uint8)
                image = Image.fromarray(shade)
                save_sample(prompt, image, torch.zeros(1, 1), folder, {"seconds": 1.0})
            folders.append(str(folder))
        return folders

    return write


def test_a_strip_of_unfinished_runs(run_here, write_runs, results):
    folders = write_runs()[::-1]  # whatever their order
    words = [*folders, "--results", str(results), "--prompts", "p1", "p0", *PART]
    ended = run_here("readme_strip", *words)
    assert ended.code == 0, ended.stderr
    with Image.open(results / "readme" / "strip.png") as image:
        sheet, about = np.array(image), json.loads(image.text["dit8"])
    assert about["runs"] == ended.document["runs"]
    assert list(about["runs"]) == list(ROWS) and about["prompts"] == ["p1", "p0"]
    for number in range(len(ROWS)):
        x = GAP_PX + number * (COLUMN_PX + GAP_PX) + 3
        for row, shade in enumerate((10, 0)):
            assert (sheet[HEAD_PX + row * (COLUMN_PX + GAP_PX) + 3, x] == 40 * number + shade).all()


@pytest.mark.parametrize(
    ("prompt", "part", "said"),
    [
        ("p2", PART, "lacks 1 of 1 pictures, first p2"),
        ("p9", PART, "must have the prompt p9, got no such id"),
        ("p0", ("--part", "30", "0", "8", "8"), "--part must lie within 32x32 px"),
    ],
)
def test_one_sentence(run_here, one_sentence, write_runs, results, prompt, part, said):
    words = [*write_runs(), "--results", str(results), "--prompts", prompt, *part]
    one_sentence(run_here("readme_strip", *words), "readme_strip", said)
    assert not (results / "readme").exists()


def test_runs_that_do_not_compare(run_here, one_sentence, write_runs, results):
    options = ["--results", str(results), "--prompts", "p0", *PART]
    folders = write_runs(dtypes={"nf4": "bfloat16"})
    said = "the runs must have the same dtype, got bf16 float32, .*, nf4 bfloat16"
    one_sentence(run_here("readme_strip", *folders, *options), "readme_strip", said)
    said = "must have runs of bf16, .*, got none of nf4"
    one_sentence(run_here("readme_strip", *folders[:-1], *options), "readme_strip", said)
