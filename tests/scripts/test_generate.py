"""scripts/generate.py draws one picture from a caption."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit8.eval.caption_check import deviations
from dit8.eval.expand_poster import PosterExpander

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "a navy poster with the text FRESH BREAD in white, and a yellow circle"

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


def test_a_caption_typed_in_is_drawn_with_the_fused_variant(bare_place, run_script):
    options = [*bare_place.common, "steps=2", "out=poster.png"]
    ended = run_script("generate", json.dumps(CAPTION), *options, cwd=bare_place.folder)
    assert ended.code == 0, ended.stderr
    (checkpoint,) = bare_place.checkpoints.glob("*/model.safetensors")
    missing, plan = ended.lines
    assert missing == f"checkpoint {checkpoint.parent} is missing, building it"
    assert plan.startswith("calibrate: 2 prompts x 2 steps; ")
    document = ended.document
    assert document.pop("seconds") > 0
    assert document == {
        "image": "poster.png",
        "caption_file": "poster.json",
        "caption": CAPTION,
        "variant": "fused_int8",
        "checkpoint": str(checkpoint),
        "engine": "stock",
        "backend": "cpu-reference",
    }
    pixels = pixels_of(bare_place.folder / "poster.png")
    assert len(set(pixels)) > 16  # something is on it
    assert not list(bare_place.folder.glob(".*.tmp"))
    assert ended.stderr.count("draw:   0%") == 1 and "2/2" in ended.stderr


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


SENTENCE = "a navy poster that says TEA in white, with a red circle"


@pytest.mark.parametrize("engine", ["stock", "dit8"])
def test_a_sentence_is_drawn_and_its_caption_draws_the_same_picture(place, run_here, engine):
    def draw(first, name):
        options = ["steps=2", "variant=bf16", f"engine={engine}", f"out={place.folder / name}"]
        ended = run_here("generate", first, *place.common, *options)
        assert ended.code == 0, ended.stderr
        assert ended.stderr.count("draw:   0%") == 1
        return ended, (place.folder / name).read_bytes()

    ended, picture = draw(SENTENCE, "tea.png")
    assert ended.lines == []  # nothing of it is left out
    beside = place.folder / "tea.json"
    caption = ended.document["caption"]
    assert beside.read_text() == json.dumps(caption, separators=(",", ":")) + "\n"
    assert deviations(beside.read_text().strip()) == []
    assert [e["desc"] for e in caption["compositional_deconstruction"]["elements"]] == [
        "white sans",
        "red circle",
    ]
    assert draw(str(beside), "again.png")[1] == picture
    ended, _ = draw("a poster of a cat that says TEA", "cat.png")
    (line,) = ended.lines
    assert "cat" in line


def test_a_model_has_its_own_expander(place, run_here):
    options = [*place.common, "steps=1", "variant=bf16", f"out={place.folder / 'x.png'}"]
    change = ["model.expander=template", "model.max_sequence_length=1024"]
    ended = run_here("generate", SENTENCE, *options, *change)
    assert ended.document["caption"]["style_description"]["medium"] == "graphic design"


def test_a_quick_calibration_makes_way_for_a_full_one(place, run_here):
    sets = place.folder / "set.jsonl"
    lines = (ROOT / "prompts" / "mini_calibration.jsonl").read_text().splitlines()[:3]
    sets.write_text("\n".join(lines))
    common = [each for each in place.common if each != "calibration.n=2"]
    common += [f"calibration.prompts={sets}"]

    def draw():
        options = ["steps=1", "quick_calibration=1", f"out={place.folder / 'x.png'}"]
        ended = run_here("generate", json.dumps(CAPTION), *common, *options)
        return [line for line in ended.lines if line.startswith("calibrate: ")], ended.document

    (plan,), quick = draw()
    assert plan.startswith("calibrate: 1 prompts")
    assert draw()[0] == []
    full = run_here("quantize", *common).document["checkpoint"]
    said, document = draw()
    assert said == [] and document["checkpoint"] == full != quick["checkpoint"]


def test_a_caption_of_a_users_own_spelling_stays_and_other_files_are_not_replaced(
    place, run_here, one_sentence
):
    path = place.folder / "poster.json"
    path.write_text(json.dumps(CAPTION, indent=2))
    options = [*place.common, "steps=1", "variant=bf16", f"out={place.folder / 'poster.png'}"]
    assert run_here("generate", str(path), *options).code == 0
    assert path.read_text() == json.dumps(CAPTION, indent=2)
    path.write_text('{"name":"package"}')
    one_sentence(run_here("generate", SENTENCE, *options), "generate", "must be missing or hold")
    assert path.read_text() == '{"name":"package"}'


def test_the_example_is_a_canonical_caption_of_the_mini(run_here):
    ended = run_here("check_caption", str(ROOT / "prompts" / "example.json"))
    assert (ended.code, ended.document) == (0, {"captions": 1, "deviations": 0})
    caption = (ROOT / "prompts" / "example.json").read_text().strip()
    assert caption == PosterExpander().expand(EXAMPLE)


def test_help_shows_examples(run_here):
    ended = run_here("generate", "--help")
    assert ended.code == 0
    assert "python scripts/generate.py prompts/example.json" in ended.stdout
    assert run_here("generate").code == 2


LONG = {"compositional_deconstruction": {"background": "very " * 200, "elements": []}}
MISTAKES = {
    "not json": ('{"compositional_deconstruction":', "not valid JSON .*expected an object"),
    "nothing to draw": ("a fox in snow", "the mini draws words, colours and shapes.*'a fox in sno"),
    "no such file": ("none.json", "a file with one, got 'none.json'.*No such file"),
    "no such folder": ("none/poster", "got 'none/poster'.*No such file"),
    "a folder": (str(ROOT), "cannot be read"),
    "override first": ("variant=int8", "the caption must come first, got 'variant=int8'"),
    "no content": ('{"text":"DIT8"}', "compositional_deconstruction must be an object, got noth"),
    "too long": (json.dumps(LONG), r"has \d+ tokens, expected at most 128; shorten it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_sentence_for_a_bad_caption(bare_place, run_here, one_sentence, mistake):
    caption, pattern = MISTAKES[mistake]
    out = bare_place.folder / "poster.png"
    options = [*bare_place.common, "steps=2", f"out={out}"]
    one_sentence(run_here("generate", caption, *options), "generate", pattern)
    assert not list(bare_place.folder.iterdir())  # nor a checkpoint


def test_one_sentence_for_a_bad_caption_in_a_file(place, run_here, one_sentence):
    path = place.folder / "caption.json"
    path.write_text("{,}")
    ended = run_here("generate", str(path), *place.common)
    one_sentence(ended, "generate", f"{path}: the caption is not valid JSON")
