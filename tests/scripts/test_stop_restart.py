"""Evaluation stopped anywhere and started again ends with the scores of an unbroken run."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from dit8.eval.evaluate import evaluate
from dit8.eval.ledger import SCORES, read_table
from dit8.scripts.cli import compose

PICTURES = 5  # a variant; at 12 steps each takes about a tenth of a second
LONG = [f"n={PICTURES}", "steps=12", "variant=fused_int8"]


def rows_of(results: Path) -> list[list]:
    """The rows of the ledger in their order, timings aside."""
    rows = read_table(results / "scores.csv", SCORES)
    return rows[rows["scorer"] != "seconds"].to_numpy().tolist()


def wait_for(process, folder: Path, pictures: int) -> None:
    end = time.monotonic() + 240
    while len(list(folder.glob("*/*.png"))) < pictures:
        assert process.runs, process.end()
        assert time.monotonic() < end, f"{folder} never held {pictures} pictures"
        time.sleep(0.005)


def check_whole(folder: Path) -> None:
    """Everything under a final name can be read to its end."""
    for path in folder.rglob("[!.]*.png"):
        with Image.open(path) as image:
            image.load()
            assert json.loads(image.text["dit8"])["prompt_id"]
        assert path.with_suffix(".safetensors").exists()
    for path in folder.rglob("[!.]*.safetensors"):
        assert load_file(path)
    for path in folder.rglob("[!.]*.json"):
        assert json.loads(path.read_text())


@pytest.mark.slow
def test_killed_and_interrupted_at_random_moments(place, start_script, run_here):
    unbroken = place.folder / "unbroken"
    options = [*place.evaluation, *LONG]
    elsewhere = [f"results={unbroken / 'results'}", f"out={unbroken / 'runs'}"]
    evaluate(compose("evaluate", [*options, *elsewhere]))
    expected = rows_of(unbroken / "results")

    moment = random.SystemRandom()
    in_reference = moment.randint(1, PICTURES - 2)
    in_variant = moment.randint(PICTURES + 1, 2 * PICTURES - 2)
    print(f"stopped after {in_reference} and after {in_variant} pictures")  # shown on failure

    process = start_script("evaluate", *options, cwd=place.folder)
    wait_for(process, place.out, in_reference)
    time.sleep(moment.random() / 10)
    process.send(signal.SIGKILL)
    assert process.end().code == -signal.SIGKILL
    check_whole(place.folder)
    drawn = {path: path.stat().st_mtime_ns for path in place.out.glob("*/*.png")}
    assert len(drawn) >= in_reference

    process = start_script("evaluate", *options, cwd=place.folder)
    wait_for(process, place.out, in_variant)
    time.sleep(moment.random() / 10)
    process.send(signal.SIGINT)
    ended = process.end()
    assert ended.code == 130, ended
    assert ended.stderr.endswith("evaluate: interrupted; the same command continues\n")
    assert "Traceback" not in ended.stderr
    check_whole(place.folder)
    # Ctrl-C cleans up; only the kill may have left a temporary file, under the other process's id
    assert not list(place.folder.rglob(f".*-{process.pid}-*.tmp"))

    finished = run_here("evaluate", *options)
    assert finished.code == 0, finished.stderr
    assert finished.document["n"] == PICTURES
    assert len(expected) == PICTURES * (4 + 7)  # bf16's and fused_int8's scorers
    assert rows_of(place.results) == expected
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn  # none was drawn twice
    latents = sorted(path.relative_to(place.out) for path in place.out.glob("*/*.safetensors"))
    assert len(latents) == 2 * PICTURES
    for path in latents:
        assert (place.out / path).read_bytes() == (unbroken / "runs" / path).read_bytes()


PICTURE, LATENTS = "picture", "latents of a missing picture"


@pytest.mark.parametrize(
    ("lost", "batch"),
    [(PICTURE, 3), (LATENTS, 1), ("record", 3), ("scores", 1)],
)
def test_whatever_a_stop_left_undone_is_done(place, lost, batch):
    """The moments that a random kill rarely meets: between two files of one run."""
    config = compose("evaluate", [*place.evaluation, "variant=int8", f"batch={batch}"])
    document, _ = evaluate(config)
    expected = rows_of(place.results)
    record = place.results / "runs" / f"{document['run_id']}.json"
    pictures = sorted(Path(document["pictures"]).glob("*.png"))
    if lost == "record":
        record.unlink()
    elif lost == "scores":
        (place.results / "scores.csv").unlink()
    else:
        pictures[1].unlink()
        if lost == LATENTS:
            pictures[1].with_suffix(".safetensors").unlink()
        record.unlink()
    leftover = pictures[1].with_name(f".{pictures[1].name}.{os.getpid() + 1}.tmp")
    leftover.write_bytes(b"half")
    again, _ = evaluate(config)
    assert rows_of(place.results) == expected
    assert again["run_id"] == document["run_id"]
    if lost == "record":
        assert json.loads(record.read_text())["pictures_made"] == 0
    elif lost != "scores":
        # a batch is what is repeated: the picture itself, or all three of the first batch
        assert json.loads(record.read_text())["pictures_made"] == batch


def test_a_damaged_picture_is_named_and_nothing_is_drawn_over_it(place):
    config = compose("evaluate", [*place.evaluation, "variant=bf16"])
    document, _ = evaluate(config)
    picture = min(Path(document["pictures"]).glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{picture.name} must be a picture written by dit8.*dele"):
        evaluate(config)
    assert len(picture.read_bytes()) == 200
