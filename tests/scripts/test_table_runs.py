"""scripts/table_runs.py: what it prints, refuses, runs, and how it continues."""

import json
import shutil
import signal
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from dit8.conf.paths import ROOT
from dit8.eval.gpus import load_peaks
from dit8.eval.ledger import SCORES, read_table
from dit8.eval.reproduce.step import Machine, Need, Part, Step
from dit8.quant.errors import UserError
from dit8.scripts import table_request, table_runs
from dit8.scripts.cli import compose
from dit8.scripts.table_request import peaks_path, read_words, this_machine
from dit8.scripts.table_runs import carry_out, check_disk, missing, run_step, run_table, there

GPUS = load_peaks(peaks_path())
SMALL = ["table=5", "model=mini", "hardware=cpu", "n=3"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(table_request, "query_gpus", lambda: None)
    monkeypatch.setattr(table_runs, "query_gpus", lambda: None)


class Log:
    """Stands in for `run_step`: keeps the commands, fails where it is told to."""

    def __init__(self, fail: str = "", code: int = 1):
        self.fail, self.code, self.commands = fail, code, []

    def __call__(self, command):
        self.commands.append(list(command))
        failed = bool(self.fail) and self.fail in command[1]
        return (self.code, "evaluate: n is too small") if failed else (0, "")


def test_the_plan_is_printed_then_run_then_the_tables_are_rebuilt(capsys):
    log = Log()
    document = run_table(SMALL, log)
    assert [command[1] for command in log.commands] == [
        "scripts/evaluate.py",
        "scripts/reproduce.py",
    ]
    assert all(command[0] == sys.executable for command in log.commands)
    assert "n=3" in log.commands[0]
    assert not any("results" in word for word in log.commands[0][2:])  # both defaults are one
    assert log.commands[1][2:] == [f"results={compose('evaluate', []).results}"]
    printed = capsys.readouterr().out
    assert printed.startswith("Table 5, model=mini hardware=cpu\n1. python scripts/evaluate.py -m ")
    assert printed.index("in all: ") < printed.index("[1/2] python scripts/evaluate.py")
    assert document["ran"] and document["seconds"] > 0 and document["seconds_are_whole"]
    json.dumps(document)


def test_another_results_folder_is_what_the_tables_are_made_from(tmp_path):
    words = [*SMALL, f"results={tmp_path}", "steps=2"]
    log = Log()
    run_table(words, log)
    drawn, made = log.commands
    assert f"results={tmp_path}" in drawn and "steps=2" in drawn
    assert made[1:] == ["scripts/reproduce.py", f"results={tmp_path}"]


def test_a_plan_alone_runs_nothing_and_says_what_is_missing(capsys):
    log = Log()
    words = ["table=all", "model=ideogram4", "hardware=cuda_24gb", "gpu=rtx3090", "plan=true"]
    document = run_table(words, log)
    assert not log.commands and not document["ran"]
    assert document["tables"] == [1, 2, 3, 4, 5, 6, 7]
    printed = capsys.readouterr().out
    assert "all tables, what they share made once: " in printed
    assert "left out: table 9 profiles stock diffusers" in printed
    assert "missing: an NVIDIA GPU (nvidia-smi names none)" in printed
    assert "missing: the weights of ideogram4 (python scripts/download.py fp8 --to check" in printed


def test_what_is_missing_is_refused_in_one_sentence():
    log = Log()
    with pytest.raises(UserError, match="needs what is missing here: an .*; the weights of ideo"):
        run_table(["table=5", "model=ideogram4", "hardware=cuda_24gb"], log)
    assert not log.commands


def test_a_full_disk_is_refused_before_anything_is_run(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    log = Log()
    with pytest.raises(UserError, match=r"must have 0\.0 GB free, got 0\.0 GB; free some, or ask"):
        run_table(SMALL, log)
    assert not log.commands
    with pytest.raises(UserError, match=r"the disk of .* must have 3\.0 GB free"):
        check_disk(tmp_path / "not" / "yet", 3e9)
    check_disk(tmp_path, 1)


def test_what_is_on_the_disk_already_needs_no_room(monkeypatch, tmp_path):
    monkeypatch.setattr(table_runs, "ROOT", tmp_path)
    folder = tmp_path / "checkpoints" / "ideogram4" / "fp8-abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(30))
    here = Step((), "", (Part("fp8", "", None, 100.0),), leaves="checkpoints/ideogram4/fp8-*")
    small = Step((), "", (Part("fp8", "", None, 20.0),), leaves="checkpoints/ideogram4/fp8-*")
    other = Step((), "", (Part("nf4", "", None, 9.0),), leaves="checkpoints/ideogram4/nf4-*")
    pictures = Step((), "", (Part("bf16", "", None, 9.0),))
    assert there([here, other, pictures]) == 30.0
    assert there([small]) == 20.0


def test_a_failed_step_stops_with_its_sentence_and_the_command_to_continue():
    log = Log(fail="evaluate")
    sentence = (
        r"step 1 of 2 must end with 0, got exit code 1 \(evaluate: n is too small\); mend that and "
        r"continue with python scripts/reproduce.py --run table=5 model=mini hardware=cpu n=3"
    )
    with pytest.raises(UserError, match=sentence):
        run_table(SMALL, log)
    assert len(log.commands) == 1
    with pytest.raises(KeyboardInterrupt):  # not a failure: the user stopped it
        run_table(SMALL, Log(fail="evaluate", code=130))


def test_a_step_shows_its_output_and_returns_its_last_line(capfd):
    code = "import sys; print('out'); print('10%|#\\r20%|##\\nwhy', file=sys.stderr); sys.exit(3)"
    assert run_step((sys.executable, "-c", code)) == (3, "why")
    shown = capfd.readouterr()
    assert shown.out == "out\n" and "20%|##\nwhy" in shown.err
    assert run_step((sys.executable, "-c", "")) == (0, "nothing on stderr")


def test_a_step_is_stopped_when_this_script_is(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(table_runs, "STOP_SECONDS", 0.1)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_step((sys.executable, "-c", "import time; time.sleep(60)"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 30  # it did not sleep to its end


def test_steps_run_in_order():
    log = Log()
    carry_out([Step(("a",), "", ()), Step(("b",), "", ())], ["table=1"], log)
    assert [command[1] for command in log.commands] == ["a", "b"]


def test_needs_are_looked_for_here(monkeypatch):
    assert missing([Need("extra", "test"), Need("scorer", "psnr")]) == []
    monkeypatch.setattr(table_runs, "missing_from_extra", lambda wanted: ["gguf (not installed)"])
    (text,) = missing([Need("extra", "gguf"), Need("extra", "gguf")])
    assert text == "gguf (not installed): pip install -e '.[gguf]'"
    scorer = SimpleNamespace(obstacle=lambda: "not measured: no weights")
    monkeypatch.setattr(table_runs, "get_scorer", lambda name: scorer)
    assert missing([Need("scorer", "hpsv2")]) == ["scorer hpsv2 (not measured: no weights)"]
    monkeypatch.setattr(table_runs, "query_gpus", lambda: "NVIDIA H200, 9.0, 143771, 580")
    assert missing([Need("gpu", "cuda")]) == []


def test_the_machine_is_what_the_driver_says_or_what_is_named(monkeypatch):
    assert this_machine("auto", None, GPUS) == Machine("cpu", "", None)
    assert this_machine("cpu", "rtx3090", GPUS) == Machine("cpu", "", None)
    assert this_machine("cuda_24gb", "rtx3090", GPUS) == Machine("cuda", "rtx3090", 24.0)
    assert this_machine("cuda_24gb", None, GPUS) == Machine("cuda", "", 24.0)
    assert this_machine("cuda", None, GPUS) == Machine("cuda", "", None)
    monkeypatch.setattr(table_request, "query_gpus", lambda: "NVIDIA H200, 9.0, 143771, 580\n")
    assert this_machine("auto", None, GPUS) == Machine("cuda", "h200", 141.0)
    monkeypatch.setattr(table_request, "query_gpus", lambda: "Tesla T4, 7.5, 15360, 580\n")
    assert this_machine("cuda", None, GPUS) == Machine("cuda", "", 15.0)
    # two cards of 24 GB, of which one is in the table of peaks
    for name, key in (("3090", "rtx3090"), ("3090 Ti", "")):
        answer = f"NVIDIA GeForce RTX {name}, 8.6, 24576, 580\n"
        monkeypatch.setattr(table_request, "query_gpus", lambda answer=answer: answer)
        assert this_machine("cuda_24gb", None, GPUS) == Machine("cuda", key, 24.0)


def test_another_card_is_for_a_plan_alone(monkeypatch):
    words = ["table=2", "model=ideogram4", "hardware=cuda"]
    with pytest.raises(UserError, match="computer's card .*, got rtx3090 where there is none of"):
        read_words([*words, "gpu=rtx3090"])
    assert read_words([*words, "gpu=rtx3090", "plan=true"]).request.machine.gpu == "rtx3090"
    monkeypatch.setattr(table_request, "query_gpus", lambda: "NVIDIA H200, 9.0, 143771, 580\n")
    with pytest.raises(UserError, match="got rtx3090 where there is h200; leave it out, or add pl"):
        read_words([*words, "gpu=rtx3090"])
    assert read_words([*words, "gpu=h200"]).request.machine == Machine("cuda", "h200", 141.0)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["model=mini"], "table must be given, got none; write table=1"),
        (["table=3", "mini"], "a word must be key=value, got 'mini'"),
        (["table=three"], "table must be a number, got 'three'"),
        (["table=3", "n=-1"], "n must be a number, got '-1'"),
        (["table=3", "n=²"], "n must be a number, got '²'"),
        (["table=3", "n=0"], "n must be at least 3, got 0; fewer give no interval"),
        (["table=3", "n=2"], "n must be at least 3, got 2; fewer give no interval"),
        (["table=3", "stpes=10"], "Could not override 'stpes'.*; conf/schema.py lists every key"),
        (["table=3", "steps=many"], "'many' .*Integer.*; conf/schema.py lists every key"),
        (["table=3", "sampler=fast"], "sampler must be one of default_20, .*, got 'fast'"),
        (["table=3", "variant=int8"], "variant is what a table decides, got 'variant=int8'; leave"),
        (["table=3", "recipe.alpha=1"], "recipe.alpha is what a table decides"),
        (["table=3", "hardware=tpu"], "hardware must be one of auto, cpu, cuda, .*, got 'tpu'"),
        (["table=3", "gpu=voodoo"], "gpu must be one of rtx3090, .*, got 'voodoo'"),
        (["table=3", "plan=maybe"], "plan must be true or false, got 'maybe'"),
    ],
)
def test_words_that_are_not_understood(words, pattern):
    with pytest.raises(UserError, match=pattern):
        read_words(words)


@pytest.mark.slow
def test_on_the_tiny_model(place, run_script, monkeypatch):
    """The real commands, of two variants; the tables have their own tests."""
    monkeypatch.setattr("dit8.eval.reproduce.plan.VARIANTS", ("fp8", "fused_int8"))

    def run(command):
        ended = run_script(Path(command[1]).stem, *command[2:], cwd=ROOT)
        return ended.code, ended.stderr

    words = ["table=4", "model=mini", "n=3", "steps=2", *place.common]
    words += [*place.sweep, f"results={place.results}", f"out={place.out}"]
    assert run_table(words, run)["ran"]
    rows = read_table(place.results / "scores.csv", SCORES)
    assert set(rows["variant"]) == {"bf16", "fp8", "fused_int8"}
    assert set(rows["prompt_set"]) == {"mini_hard", "mini_hard-raw"}
