import os
import subprocess
import sys
import time

import pytest
import torch

from dit8.models import threads
from dit8.models.threads import Threads, busy_seconds, fitting_threads

CPU = torch.device("cpu")
STAT = """\
cpu  600 0 60 900 40 6 4 10 0 0
cpu0 100 1 10 500 20 2 1 5 0 0
cpu1 200 2 20 300 10 3 2 4 7 0
cpu10 300 3 30 100 10 1 1 1 0 0
intr 12345 0 1
ctxt 999
"""


@pytest.mark.parametrize(
    "cores, seconds", [({0}, 1.19), ({1}, 2.31), ({0, 1}, 3.5), ({10}, 3.36), (set(), 0.0)]
)
def test_busy_seconds_leave_idle_and_iowait_out(cores, seconds):
    assert busy_seconds(STAT, cores, 100) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "others, cores, most, threads",
    [
        (0.0, 2, 2, 2),
        (0.2, 2, 2, 2),  # a desktop at rest
        (0.5, 2, 2, 1),  # beside two threads that spin, one process gets two thirds of a core
        (1.0, 2, 2, 1),
        (2.0, 2, 2, 1),
        (7.0, 2, 2, 1),
        (-0.1, 2, 2, 2),  # ticks are coarse
        (1.0, 8, 8, 7),
        (3.3, 8, 4, 4),
        (1.0, 2, 1, 1),  # two processes of one thread each do not drive each other out
    ],
)
def test_there_are_as_many_threads_as_free_cores(others, cores, most, threads):
    assert fitting_threads(others, cores, most) == threads


@pytest.fixture
def two_threads(monkeypatch):
    """Let torch use two threads, as OMP_NUM_THREADS would not allow."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch):
    """Replace clock and counters by (clock, own, busy) seconds, read one after the other."""
    looks = []
    monkeypatch.setattr(Threads, "_look", lambda self: threads.Look(*looks.pop(0)))
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(threads, "STAT", threads.Path(__file__))
    return looks


def test_threads_go_when_others_come_and_return_when_they_leave(two_threads, machine):
    machine += [(0.0, 0.0, 0.0), (1.0, 1.3, 2.0), (2.0, 2.3, 4.0), (3.0, 3.3, 5.0)]
    shared, counts = Threads(), []
    while machine:
        shared.share(CPU)
        counts.append(torch.get_num_threads())
    assert counts == [2, 1, 1, 2]


def test_two_looks_in_a_short_time_decide_nothing(two_threads, machine):
    machine += [(0.0, 0.0, 0.0), (0.01, 0.0, 0.02)]
    shared = Threads()
    shared.share(CPU)
    shared.share(CPU)
    assert torch.get_num_threads() == 2


def test_a_number_that_the_user_has_set_stays(two_threads, machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    machine += [(0.0, 0.0, 0.0), (1.0, 0.0, 2.0)]
    shared = Threads()
    shared.share(CPU)
    shared.share(CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not threads.STAT.exists(), reason="needs Linux's /proc/stat")
def test_busy_processes_are_seen(two_threads):
    shared = Threads()
    spinning = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spinning) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.3)  # they start
        shared.share(CPU)
        time.sleep(0.5)
        shared.share(CPU)
        assert torch.get_num_threads() == 1
    finally:
        for other in others:
            other.kill()
            other.wait()
