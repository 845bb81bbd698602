"""Processes a few at a time, here of a few lines of Python each."""

import os
import sys
import time
from functools import partial

import pytest

from dit8.scripts import job_queue
from dit8.scripts.job_queue import Ended, Process, Task, run_all


def python(label: str, code: str) -> Task:
    return Task(label, (sys.executable, "-S", "-c", code))


@pytest.fixture
def start(tmp_path):
    return partial(Process, folder=tmp_path, environment=dict(os.environ))


class Scripted:
    """A process that ends when it has been looked at `looks` times; the class keeps a log."""

    log: list[str] = []

    def __init__(self, command):
        self.name, self.looks = command[0], int(command[1])
        self.log.append(f"start {self.name}")

    def ended(self):
        self.looks -= 1
        return Ended(0, self.name, "", 0.0) if self.looks <= 0 else None

    def tell(self):
        self.log.append(f"tell {self.name}")

    def wait(self):
        self.log.append(f"wait {self.name}")


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(Scripted, "log", [])
    monkeypatch.setattr(job_queue, "LOOK_SECONDS", 0.0)
    return lambda: Scripted.log


def scripted(looks: dict[str, int]) -> list[Task]:
    return [Task(name, (name, str(count))) for name, count in looks.items()]


def test_each_job_takes_the_next_task(log):
    ended = []
    tasks = scripted({"a": 4, "b": 1, "c": 1, "d": 9, "e": 1})

    def report(task, how):
        log().append(f"end {task.label}")
        ended.append((task.label, how.stdout))

    run_all(tasks, 2, Scripted, report)
    assert ended == [("b", "b"), ("c", "c"), ("a", "a"), ("e", "e"), ("d", "d")]
    assert log() == [
        "start a", "start b", "end b", "start c", "end c", "start d",
        "end a", "start e", "end e", "end d",
    ]  # fmt: skip


def test_what_runs_is_stopped_and_nothing_more_begins(log):
    def interrupt(task, how):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(scripted({"a": 5, "b": 9, "c": 1, "d": 1}), 3, Scripted, interrupt)
    assert log() == ["start a", "start b", "start c", "tell a", "tell b", "wait a", "wait b"]


def test_a_process_has_its_output_and_its_end(start, tmp_path):
    code = "import os, sys; print(os.getcwd()); print('no: why', file=sys.stderr); sys.exit(3)"
    noise = "print('x' * 300000); open('made', 'w').close()"  # a pipe holds 64 KiB
    found = {}
    tasks = [python("fails", code), python("talks", noise)]
    run_all(tasks, 1, start, lambda task, how: found.update({task.label: how}))
    assert found["fails"].code == 3 and found["fails"].why == "exit 3: no: why"
    assert found["fails"].stdout == f"{tmp_path}\n"
    assert found["talks"].code == 0 and len(found["talks"].stdout) == 300001
    assert (tmp_path / "made").exists()
    assert 0 < found["talks"].seconds < 60


@pytest.mark.parametrize(
    ("stderr", "why"),
    [
        ("", "exit 1: nothing on stderr"),
        ("first\nlast\n\n", "exit 1: last"),
        ("bar 10%\rbar 20%\r  ", "exit 1: bar 20%"),
    ],
)
def test_why_is_the_last_line_that_says_something(stderr, why):
    assert Ended(1, "", stderr, 0.0).why == why


def test_a_process_is_told_and_waited_for(start, tmp_path):
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('told').touch(), sys.exit(1)))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )
    process = start(python("sleeps", code).command)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    assert process.ended() is None
    process.tell()
    process.wait()
    assert (tmp_path / "told").exists()
    assert process.ended().code == 1


def test_a_process_that_does_not_listen_is_killed(start, tmp_path, monkeypatch):
    monkeypatch.setattr(job_queue, "STOP_SECONDS", 0.2)
    code = (
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )
    process = start(python("deaf", code).command)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    process.tell()
    process.wait()
    assert process.ended().code == -9
