"""scripts/quantize.py and scripts/calibrate.py as a user runs them."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from dit8.models import artifacts
from dit8.models.artifacts import checkpoint_path
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.calibrate import load_stats
from dit8.quant.files import locked
from dit8.quant.formats.table import FORMATS
from dit8.scripts.cli import compose

KEYS = {
    "checkpoint", "format", "recipe", "linears", "protected", "bytes", "seconds", "peak_rss_bytes",
}  # fmt: skip
# qkv, o, w1, w2, w3 of two blocks and the text projection, in two branches
STORED, HALF_OF_DOWN = 2 * (2 * 5 + 1), 2 * 1
# adaLN of two blocks and six outside, which only the recipe `published` quantizes
REST = 2 * (2 + 6)


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time stamp of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def no_model(*_, **__):
    raise AssertionError("a pipeline was loaded")


def test_quantize_writes_a_checkpoint_and_finds_it_again(
    bare_place, run_script, run_here, monkeypatch
):
    first = run_script("quantize", *bare_place.common, cwd=bare_place.folder)
    assert first.code == 0, first.stderr
    (plan,) = first.lines
    assert plan.startswith("calibrate: 2 prompts x 2 steps; ")
    document = first.document
    assert set(document) == KEYS
    assert first.stdout.endswith("}\n")
    assert document["format"] == "w8a8"
    assert (document["recipe"], document["protected"]) == ("smoothquant", HALF_OF_DOWN)
    assert document["linears"] == STORED - HALF_OF_DOWN
    assert document["seconds"] > 0
    assert document["peak_rss_bytes"] > 2**27  # torch alone is more than 128 MiB
    checkpoint = Path(document["checkpoint"])
    assert checkpoint.parent.parent == bare_place.checkpoints
    assert checkpoint.stat().st_size == document["bytes"]
    recipe = json.loads((checkpoint.parent / "recipe.json").read_text())
    assert len(recipe["protected"]) == HALF_OF_DOWN
    # the table: every stored linear once, with the kept ones marked
    assert first.stdout.count("feed_forward.w2") == 4
    assert first.stdout.count("conditional ") == STORED + REST
    assert first.stdout.count(" yes ") == HALF_OF_DOWN + REST

    before = state_of(bare_place.folder)
    monkeypatch.setattr(artifacts, "load_pipeline", no_model)
    again = run_here("quantize", *bare_place.common)
    assert again.code == 0, again.stderr
    timed = {"seconds", "peak_rss_bytes"}
    assert {k: v for k, v in again.document.items() if k not in timed} == {
        k: v for k, v in document.items() if k not in timed
    }
    assert state_of(bare_place.folder) == before
    assert "feed_forward" not in again.stdout  # no reports without work


def test_another_recipe_needs_no_model_run(place, run_here, monkeypatch):
    assert run_here("calibrate", *place.common).code == 0
    monkeypatch.setattr(artifacts, "load_pipeline", no_model)
    changes = {
        "smoothquant": [],
        "other": ["recipe.alpha=0.7", "recipe.name=other"],
        "vectors": ["recipe.smoothing_carrier=explicit", "recipe.name=vectors"],
        "naive": ["recipe=naive"],
    }
    paths = set()
    for name, change in changes.items():
        ended = run_here("quantize", *place.common, *change)
        assert ended.code == 0, ended.stderr
        assert ended.document["recipe"] == name
        paths.add(ended.document["checkpoint"])
    assert len(paths) == len(changes)


def test_the_same_checkpoint_has_the_same_bytes(place, run_here):
    checkpoint = Path(run_here("quantize", *place.common).document["checkpoint"])
    before = checkpoint.read_bytes()
    shutil.rmtree(checkpoint.parent)
    assert Path(run_here("quantize", *place.common).document["checkpoint"]) == checkpoint
    assert checkpoint.read_bytes() == before


def test_calibrate_describes_its_statistics(place, run_here):
    ended = run_here("calibrate", *place.common)
    assert ended.code == 0, ended.stderr
    document = ended.document
    assert set(document) == {"statistics", "prompts", "rows", "seconds", "peak_rss_bytes"}
    stats = load_stats(document["statistics"])
    assert document["prompts"] == len(stats.done) == 2
    assert set(stats.step_absmax) and all(len(t) == 2 for t in stats.step_absmax.values())
    assert set(document["rows"]) == set(BRANCHES)
    # 16 image tokens, 2 steps, 2 prompts; the conditional branch reads text as well
    assert document["rows"]["unconditional"] == 16 * 2 * 2
    assert document["rows"]["conditional"] > document["rows"]["unconditional"]


def test_calibration_stopped_in_the_middle_continues_to_the_same_bytes(
    bare_place, tmp_path, run_here, monkeypatch
):
    options = [*bare_place.common, "calibration.n=3"]
    unbroken = [*options, f"checkpoints={tmp_path / 'unbroken'}"]
    expected = Path(run_here("calibrate", *unbroken).document["statistics"])

    genuine, seen = artifacts.denoise, []

    def stops(pipeline, prompts, sampler, **options):
        seen.append(prompts[0].id)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return genuine(pipeline, prompts, sampler, **options)

    monkeypatch.setattr(artifacts, "denoise", stops)
    stopped = run_here("calibrate", *options)
    assert stopped.code == 130
    plan, last = stopped.lines
    assert plan.startswith("calibrate: 3 prompts x 2 steps; ")
    assert last == "calibrate: interrupted; the same command continues"
    (half,) = bare_place.checkpoints.glob("calibration-*")
    assert len(load_stats(half).done) == 1
    finished = run_here("calibrate", *options)
    assert finished.code == 0, finished.stderr
    assert seen == [seen[0], seen[1], seen[1], seen[3]]  # the first prompt was not run again
    assert half == Path(finished.document["statistics"])
    assert half.name == expected.name
    assert half.read_bytes() == expected.read_bytes()


def test_who_waits_for_a_checkpoint_says_so_and_makes_none(place, monkeypatch):
    config = compose("quantize", place.common)
    model, target = artifacts.open_model(config.model), FORMATS["w8a8"]
    waiting, found = threading.Event(), []

    def say(text, **_):
        assert text.startswith("waiting for another process that makes a checkpoint of mini")
        waiting.set()

    folder = checkpoint_path(config, model, target)
    with locked(folder.parent / "building"):
        made = artifacts._convert(config, model, target, folder, 0.0)
        hidden = folder.rename(folder.with_name("hidden"))
        monkeypatch.setattr(artifacts, "print", say, raising=False)
        thread = threading.Thread(
            target=lambda: found.append(artifacts.quantize_model(config, model, target))
        )
        thread.start()
        assert waiting.wait(30) and found == []
        hidden.rename(folder)
    thread.join(30)
    assert found[0].path == made.path and found[0].reports == ()  # found, not made


def test_a_folder_that_lost_its_file_is_one_sentence(place, run_here, one_sentence):
    """Checkpoints appear whole; one that is not was damaged, and nobody guesses by whom."""
    checkpoint = Path(run_here("quantize", *place.common).document["checkpoint"])
    checkpoint.unlink()
    pattern = f"{checkpoint.parent} must hold model.safetensors, got .* delete it and start again"
    one_sentence(run_here("quantize", *place.common), "quantize", pattern)
    drawn = run_here("evaluate", *place.evaluation, "variant=int8")
    one_sentence(drawn, "evaluate", pattern)


@pytest.mark.parametrize(
    "change",
    ["calibration.n=3", "calibration.sampler.steps=3", "calibration.dtype=bfloat16", "other model"],
)
def test_a_changed_calibration_is_another_file(place, other_model, change):
    def path(options):
        config = compose("quantize", options)
        return checkpoint_path(config, artifacts.open_model(config.model), FORMATS["w8a8"])

    override = f"model.path={other_model}" if change == "other model" else change
    assert path([*place.common, override]) != path(place.common)
    assert path([*place.common, "hardware=auto"]) == path(place.common)
