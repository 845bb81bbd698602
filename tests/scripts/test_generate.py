"""scripts/generate.py draws one picture from a caption."""

import json

import numpy as np
import pytest
from PIL import Image

CAPTION = {
    "compositional_deconstruction": {
        "background": "flat teal",
        "elements": [
            {"type": "text", "bbox": [375, 150, 600, 850], "text": "DIT8", "desc": "white sans"}
        ],
    }
}


def pixels_of(path) -> bytes:
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
        return image.tobytes()


def test_a_caption_typed_in_is_drawn_with_the_fused_variant(place, run_script):
    options = [*place.common, "steps=2", "out=poster.png"]
    ended = run_script("generate", json.dumps(CAPTION), *options, cwd=place.folder)
    assert ended.code == 0, ended.stderr
    (checkpoint,) = place.checkpoints.glob("*/model.safetensors")
    missing, plan = ended.lines
    assert missing == f"checkpoint {checkpoint.parent} is missing, building it"
    assert plan.startswith("calibrate: 2 prompts x 2 steps; ")
    document = ended.document
    assert document.pop("seconds") > 0
    assert document == {
        "image": "poster.png",
        "variant": "fused_int8",
        "engine": "stock",
        "backend": "cpu-reference",
    }
    pixels = pixels_of(place.folder / "poster.png")
    assert len(set(pixels)) > 16  # something is on it
    assert not list(place.folder.glob(".*.tmp"))


def test_a_file_is_drawn_and_seed_and_caption_matter(place, run_here):
    def draw(name, caption=CAPTION, *change):
        path = place.folder / "caption.json"
        path.write_text(json.dumps(caption, indent=2))
        out = place.folder / f"{name}.png"
        options = [*place.common, "steps=2", "variant=bf16", f"out={out}", *change]
        ended = run_here("generate", str(path), *options)
        assert ended.code == 0, ended.stderr
        assert ended.document["image"] == str(out) and ended.document["backend"] == "torch-cpu"
        return pixels_of(out)

    first = draw("first")
    assert draw("again") == first
    assert draw("seed", CAPTION, "seed=1") != first
    content = CAPTION["compositional_deconstruction"]
    other = {"compositional_deconstruction": content | {"background": "flat orange"}}
    assert draw("other", other) != first


def test_engines_draw_the_same_picture(place, run_here):
    def draw(name, *change):
        out = place.folder / f"{name}.png"
        options = [*place.common, "steps=2", "variant=bf16", f"out={out}", *change]
        ended = run_here("generate", json.dumps(CAPTION), *options)
        assert ended.code == 0, ended.stderr
        return ended.document["engine"], np.frombuffer(pixels_of(out), dtype=np.uint8).astype(int)

    _, stock = draw("stock")
    name, ours = draw("ours", "engine=dit8")
    assert name == "dit8"
    assert np.abs(ours - stock).max() <= 1  # fp32 rounding may move a level
    _, staged = draw("staged", "engine=dit8", "hardware.staged=true")
    assert np.array_equal(staged, ours)


def test_help_shows_examples(run_here):
    ended = run_here("generate", "--help")
    assert ended.code == 0
    assert "python scripts/generate.py caption.json" in ended.stdout
    assert run_here("generate").code == 2


LONG = {"compositional_deconstruction": {"background": "very " * 200, "elements": []}}
MISTAKES = {
    "not json": ('{"compositional_deconstruction":', "not valid JSON .*expected an object"),
    "prose": ("a red poster", "must be a JSON object or the name of a file.*got 'a red poster'"),
    "no content": ('{"text":"DIT8"}', "compositional_deconstruction must be an object, got noth"),
    "too long": (json.dumps(LONG), r"has \d+ tokens, expected at most 128; shorten it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_sentence_for_a_bad_caption(place, run_here, one_sentence, mistake):
    caption, pattern = MISTAKES[mistake]
    out = place.folder / "poster.png"
    options = [*place.common, "steps=2", "variant=bf16", f"out={out}"]
    one_sentence(run_here("generate", caption, *options), "generate", pattern)
    assert not out.exists()


def test_one_sentence_for_a_bad_caption_in_a_file(place, run_here, one_sentence):
    path = place.folder / "caption.json"
    path.write_text("{,}")
    ended = run_here("generate", str(path), *place.common)
    one_sentence(ended, "generate", f"{path}: the caption is not valid JSON")
