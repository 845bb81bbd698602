"""Several processes draw one run: the same bits, and what is lost when one of them dies."""

import builtins
import functools
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from dit8.eval import workers
from dit8.eval.evaluate import evaluate, prepare
from dit8.eval.job import check_devices
from dit8.eval.run import read_run
from dit8.eval.shards import WHOLE
from dit8.eval.workers import draw_on_devices
from dit8.quant.errors import UserError
from dit8.quant.files import locked
from dit8.scripts.cli import compose


def bits(folder: Path) -> dict[str, bytes]:
    """Latents files and pixels by name; a PNG itself also holds a time."""
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            found[path.name] = image.tobytes()
    return found


@pytest.fixture
def options(drawn, tmp_path):
    """Those of `drawn`, with its checkpoints, and another place for pictures and rows."""
    return [*drawn.place.evaluation, f"results={tmp_path / 'r'}", f"out={tmp_path / 'o'}"]


def latency_of(results: Path, run_id: str) -> dict[str, int]:
    rows = pd.read_csv(results / "latency.csv")
    rows = rows[rows["run_id"] == run_id]
    return dict(zip(rows["stage"], rows["n"], strict=True))


def test_shards_and_the_command_that_finishes_them(drawn, options, run_here, tmp_path):
    ended = run_here("evaluate", "-m", *options, "variant=bf16,int8", "shard=0/2,1/2")
    assert ended.code == 0, ended.stderr
    cells = ended.cells
    assert [cell["missing"] for cell in cells] == [2, 0, 2, 0]  # four pictures of each
    assert [cell["shard"] for cell in cells[:2]] == ["0/2", "1/2"]
    assert not any("scores" in cell for cell in cells)
    assert not (tmp_path / "r" / "scores.csv").exists()
    command = ended.document["finish"]
    assert ended.document["missing"] == 0 and " shard=" not in command
    assert command.startswith("python scripts/evaluate.py -m ")
    assert command.endswith(" variant=bf16,int8")

    finished = run_here("evaluate", *command.split()[2:])
    assert finished.code == 0, finished.stderr
    assert all(cell["scores"] for cell in finished.cells)
    for variant in ("bf16", "int8"):
        run_id = drawn.documents[variant]["run_id"]
        folder = tmp_path / "o" / run_id
        assert bits(folder) == bits(drawn.folder(variant))
        record = json.loads((tmp_path / "r" / "runs" / f"{run_id}.json").read_text())
        assert record["pictures_made"] == 4
        assert latency_of(tmp_path / "r", run_id) == {"image": 4, "step": 4}
        assert not list(folder.glob(".timing*"))


def test_what_a_shard_left_undone_is_drawn_by_the_whole(drawn, options, tmp_path):
    config = compose("evaluate", [*options, "variant=bf16", "batch=2", "n=3", "shard=1/2"])
    document, tables = evaluate(config)
    assert (document["missing"], tables) == (2, "")  # the second batch has one picture
    with pytest.raises(UserError, match="lacks 2 of 3 pictures"):
        read_run(Path(document["pictures"]))
    config.shard = None
    document, _ = evaluate(config)
    record = json.loads((tmp_path / "r" / "runs" / f"{document['run_id']}.json").read_text())
    assert record["pictures_made"] == 3


def test_jobs_that_need_one_reference_draw_it_once(drawn, options, tmp_path, monkeypatch, capsys):
    """While another process draws a run this one waits, and then finds it done."""
    cell = prepare(compose("evaluate", [*options, "variant=bf16"]))
    calls, waiting, genuine = [], threading.Event(), builtins.print

    def announce(*words, **more):
        genuine(*words, **more)
        waiting.set()

    monkeypatch.setattr(workers, "print", announce, raising=False)
    monkeypatch.setattr(workers, "_draw_missing", lambda *given: calls.append(given))
    with locked(cell.folder / "drawing"):
        thread = threading.Thread(target=workers.draw, args=(cell, None))
        thread.start()
        assert waiting.wait(30) and thread.is_alive()
        for path in drawn.folder("bf16").glob("*.*"):
            shutil.copy(path, cell.folder)
        cell.record.parent.mkdir(parents=True)
        shutil.copy(drawn.place.results / "runs" / cell.record.name, cell.record)
    thread.join(30)
    assert not thread.is_alive() and calls == []
    theirs = drawn.place.results / "runs" / cell.record.name
    assert cell.record.read_bytes() == theirs.read_bytes()  # says four pictures were made, not none
    said = f"waiting for another process that draws bf16 {cell.key.run_id}\n"
    assert capsys.readouterr().err == said


def test_the_whole_waits_for_shards_and_shards_not_for_each_other(options, monkeypatch):
    cells = [prepare(compose("evaluate", [*options, f"shard={i}/2"])) for i in range(2)]
    waiting, have = threading.Event(), []
    monkeypatch.setattr(workers, "print", lambda *_, **__: waiting.set(), raising=False)

    def hold(cell, shard):
        with workers._alone(cell, shard):
            have.append(str(shard))

    with workers._alone(cells[0], cells[0].shard):
        second = threading.Thread(target=hold, args=(cells[1], cells[1].shard), daemon=True)
        second.start()
        second.join(10)
        assert have == ["1/2"] and not waiting.is_set()
        whole = threading.Thread(target=hold, args=(cells[0], WHOLE), daemon=True)
        whole.start()
        assert waiting.wait(10) and have == ["1/2"]
    whole.join(10)
    assert have == ["1/2", "0/1"]


def test_no_process_is_started_for_nothing(options, monkeypatch):
    """Four pictures in batches of three are two batches: two of five devices draw."""
    started = []
    monkeypatch.setattr(
        workers, "draw_on_devices", lambda work, shards, *rest: started.append(shards)
    )
    words = ["variant=bf16", "batch=3", "hardware.devices=5"]
    cell = prepare(compose("evaluate", [*options, *words]))
    workers._draw_missing(cell, WHOLE)
    assert [str(shard) for shard in started[0]] == ["0/5", "1/5"]


def test_other_scripts_refuse_several_devices(place, run_here, one_sentence):
    ended = run_here("calibrate", *place.common, "hardware.devices=2")
    one_sentence(ended, "calibrate", "hardware.devices must be 1 for calibrate, got 2; only .*eval")


@pytest.mark.slow
def test_two_processes_draw_the_same_bits_as_one(drawn, options, tmp_path):
    config = compose("evaluate", [*options, "variant=int8", "hardware.devices=2"])
    document, _ = evaluate(config)
    assert document["run_id"] == drawn.documents["int8"]["run_id"]
    for variant in ("bf16", "int8"):  # the reference, too
        run_id = drawn.documents[variant]["run_id"]
        assert bits(tmp_path / "o" / run_id) == bits(drawn.folder(variant))
        assert latency_of(tmp_path / "r", run_id) == {"image": 4, "step": 4}
    scores = drawn.documents["int8"]["scores"]
    assert {n: s for n, s in document["scores"].items() if n != "seconds"} == {
        n: s for n, s in scores.items() if n != "seconds"
    }


def children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for path in lists for child in path.read_text().split())


def workers_of(pid: int) -> list[int]:
    """The processes that draw for a script: the server that forked it (become.py) forks them."""
    server = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [child for child in children(server) if child != pid]


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_worker_that_dies_is_named_and_the_rest_is_kept(drawn, options, start_script, stop):
    """SIGKILL meets one worker, Ctrl-C the command; both continue, here on one device."""
    words = [*options, "variant=bf16", "n=8", "steps=20", "hardware.devices=2", "report=false"]
    words += ["scorers=[ocr_ned]"]
    out = Path(next(word for word in words[::-1] if word.startswith("out=")).removeprefix("out="))
    process = start_script("evaluate", *words, cwd=out.parent)
    end = time.monotonic() + 240  # seconds; a machine may be busy
    while len(list(out.glob("*/*.png"))) < 2:
        assert process.runs, process.end()
        assert time.monotonic() < end
        time.sleep(0.01)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    target = workers[0] if stop == signal.SIGKILL else process.pid
    os.kill(target, stop)
    ended = process.end()
    assert all(map(is_gone, workers))
    assert "Traceback" not in ended.stderr
    pictures = {path: path.stat().st_mtime_ns for path in out.glob("*/*.png")}
    if stop == signal.SIGINT:
        assert ended.code == 130
        assert ended.stderr.endswith("evaluate: interrupted; the same command continues\n")
    else:
        assert ended.code == 2
        last = ended.lines[-1]
        assert re.search(
            r"evaluate: worker [01] \(cpu [01], shard [01]/2, killed by SIGKILL\) of 2 did not "
            r"finish its pictures; those of the others are kept, the same command draws the rest",
            last,
        ), last
        assert len(pictures) >= 4  # all of the other worker's
    assert len(pictures) < 8
    document, _ = evaluate(compose("evaluate", [*words, "hardware.devices=1"]))
    assert document["n"] == 8
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures  # none drawn twice


def test_a_worker_that_cannot_draw_says_why():
    work = functools.partial(check_devices, 0)  # refuses whatever device it is given
    with pytest.raises(UserError) as refusal:
        draw_on_devices(work, WHOLE.split(2), torch.device("cpu"), lambda: None)
    assert str(refusal.value) == (
        "worker 0 (cpu 0, shard 0/2, exit 2) and worker 1 (cpu 1, shard 1/2, exit 2) of 2 did not "
        "finish its pictures; hardware.devices must be at least 1, got 0; use 1"
    )


def test_a_bug_in_a_worker_is_a_bug():
    with pytest.raises(RuntimeError, match=r"worker 0 \(.*, exit 1\) of 1 .*; KeyError: Shard\("):
        draw_on_devices({}.__getitem__, [WHOLE], torch.device("cpu"), lambda: None)


def test_devices_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(UserError, match="hardware.devices must be at least 1, got 0; use 1"):
        check_devices(0, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(2, torch.device("cuda"))
    with pytest.raises(UserError, match="at most 2, the GPUs that torch sees here, got 3; lower"):
        check_devices(3, torch.device("cuda"))
