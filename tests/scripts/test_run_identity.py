import datetime
import re

import pytest

from dit8.quant.errors import UserError
from dit8.scripts import run_identity
from dit8.scripts.run_identity import identify, make_run_id

START = datetime.datetime(2026, 11, 21, 7, 31, 5, tzinfo=datetime.UTC)


def test_a_run_is_named_by_time_commit_gpu_and_chance():
    zone = datetime.timezone(datetime.timedelta(hours=2))
    start = datetime.datetime(2026, 11, 21, 1, 2, 3, tzinfo=zone)
    found = make_run_id(start, "8efc9a74dbe0", "NVIDIA GeForce RTX 3090")
    assert re.fullmatch("20261120-230203-8efc9a7-nvidia_geforce_rtx_3090-[0-9a-f]{4}", found)


def test_runs_of_one_second_have_names_of_their_own():
    names = {make_run_id(START, "8efc9a74dbe0", "NVIDIA H200") for _ in range(8)}
    assert len(names) > 1  # all equal by chance: once in 65536 ** 7


def pretend(monkeypatch, commit, dirty):
    found = {
        "git": {"commit": commit, "dirty": dirty},
        "versions": {"torch": "2.13", "triton": None, "numpy": "2"},
        "hardware": {"driver": "570.1"},
    }
    monkeypatch.setattr(run_identity, "describe", lambda root: found)
    return found


def test_the_columns_that_rows_share(monkeypatch):
    found = pretend(monkeypatch, "8efc9a74dbe0", False)
    shared, provenance = identify(START, "NVIDIA H200", ("torch", "triton"))
    assert shared.pop("run_id").startswith("20261121-073105-8efc9a7-nvidia_h200-")
    assert shared == {
        "gpu": "NVIDIA H200",
        "versions": "torch 2.13; triton none; driver 570.1",
        "commit": "8efc9a74dbe0",
    }
    assert provenance is found


def test_a_changed_tree_is_marked(monkeypatch):
    pretend(monkeypatch, "8efc9a74dbe0", True)
    shared, _ = identify(START, "cpu", ())
    assert shared["commit"] == "8efc9a74dbe0-dirty"
    assert shared["run_id"].startswith("20261121-073105-8efc9a7-cpu-")


def test_rows_without_a_commit_are_refused(monkeypatch):
    pretend(monkeypatch, None, None)
    with pytest.raises(UserError, match="need the commit of this tree, got none; .* DIT8_COMMIT"):
        identify(START, "cpu", ())
