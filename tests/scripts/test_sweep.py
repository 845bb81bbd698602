"""Sweeps: how cells are named, that none stops another, and that a stopped sweep continues."""

import functools
import json
import signal
import time
from dataclasses import dataclass

import pytest
from hydra.core.global_hydra import GlobalHydra

from dit8.conf.paths import ROOT
from dit8.eval.evaluate import evaluate, prepare
from dit8.quant.errors import UserError
from dit8.scripts.cli import compose, mistake, register, run_all
from dit8.scripts.sweep import (
    DONE,
    FAILED,
    INCOMPLETE,
    CellRecord,
    Narrator,
    Sweep,
    plan_sweep,
    progress_line,
    seconds_left,
    summary_document,
)

VARIANTS = ("bf16", "fp8", "int8")


@dataclass
class Config:
    value: int = 0


def plan(*words):
    return plan_sweep("evaluate", ["-m", *words], ROOT)


def test_cells_are_named_by_what_they_vary_in_the_sweepers_order():
    sweep = plan("n=4", "variant=int8,fp8", "scorers=[psnr,ssim]", "recipe.alpha=0.3,0.4")
    assert sweep.labels == (
        "variant=int8 recipe.alpha=0.3",
        "variant=int8 recipe.alpha=0.4",
        "variant=fp8 recipe.alpha=0.3",
        "variant=fp8 recipe.alpha=0.4",
    )
    assert sweep.is_here
    assert plan("steps=range(1,4)").labels == ("steps=1", "steps=2", "steps=3")
    assert plan("variant=int8,fp8", "variant=nf4,bf16").labels == ("variant=nf4", "variant=bf16")
    assert set(plan("sampler=glob(*)").labels) == {
        *("sampler=default_20", "sampler=quality_48", "sampler=turbo_12")
    }
    assert plan("n=4").labels == ("evaluate",)


def test_a_sweep_is_what_the_command_line_says():
    assert plan_sweep("evaluate", ["variant=bf16"], ROOT) is None
    assert plan("--help") is None and plan("variant=bf16", "--cfg", "job") is None
    assert not plan("variant=bf16,int8", "hydra/launcher=submitit_slurm").is_here
    assert plan("variant=bf16,int8", "hydra/launcher=basic").is_here


@pytest.mark.parametrize("has_other_plugins", [True, False])
def test_a_launcher_that_is_not_installed_is_named(monkeypatch, has_other_plugins):
    def find_spec(name):
        if not has_other_plugins:  # what importlib raises for a submodule of an absent package
            raise ModuleNotFoundError("No module named 'hydra_plugins'")

    monkeypatch.setattr("dit8.scripts.sweep.find_spec", find_spec)
    assert plan("variant=bf16,int8").is_here
    with pytest.raises(UserError, match="launcher=submitit_slurm needs .* install the extra slurm"):
        plan("variant=bf16,int8", "hydra/launcher=submitit_slurm")
    assert not plan("variant=bf16,int8", "hydra/launcher=joblib").is_here  # Hydra's to refuse


def test_records_are_in_the_repository_wherever_the_command_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {plan("n=4").folder for _ in range(2)}
    assert len(folders) == 2  # of one second
    assert {folder.parent for folder in folders} == {ROOT / "outputs" / "multirun"}
    # unless Hydra's own word names another folder
    for word, place in (("own", tmp_path / "own"), (tmp_path / "a", tmp_path / "a")):
        assert plan("n=4", f"hydra.sweep.dir={word}").folder.parent == place
    assert plan("n=4", "hydra.sweep.dir=${out}").folder.parent == ROOT / "outputs" / "multirun"


def test_time_left_ignores_cells_that_were_nearly_done_before():
    assert seconds_left([10.0, 14.0], 3, None) == 3 * 12
    assert seconds_left([0.1, 0.2, 10.0], 2, None) == 2 * 10
    assert seconds_left([10.0, 10.0], 4, 12.0) == 4 * 6  # side by side, 20 / 12 at a time
    assert seconds_left([], 2, None) is None and seconds_left([], 2, 5.0) is None


@pytest.mark.parametrize("is_here", [True, False])
def test_a_cell_that_found_everything_gives_no_time_left(tmp_path, capsys, is_here):
    sweep = Sweep("evaluate", ("a=1", "a=2", "a=3", "a=4"), tmp_path / "cells", is_here)
    narrator = Narrator(sweep)
    outcomes = [{"drawn": 0}, UserError("no"), {"drawn": 3}]
    for number, outcome in enumerate(outcomes):
        main = raising(outcome) if isinstance(outcome, Exception) else lambda _, o=outcome: o
        sweep.run_cell(number, Config, main, mistake)
    path = sweep.folder / "2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 50.0}))
    narrator.say()
    lines = capsys.readouterr().err.splitlines()
    assert [" left" in line for line in lines] == [False, False, True]
    if is_here:
        assert lines[2] == "[3/4] a=3: 50.0 s, about 50 s left"


def test_a_cell_ends_with_one_line():
    done = CellRecord(0, "variant=int8", DONE, 12.34)
    assert progress_line(done, 1, 7, 74.0) == "[1/7] variant=int8: 12.3 s, about 74 s left"
    assert progress_line(done, 1, 7, 7400.0) == "[1/7] variant=int8: 12.3 s, about 123 min left"
    assert progress_line(done, 7, 7, 0.0) == "[7/7] variant=int8: 12.3 s"
    failed = CellRecord(0, "variant=int8", FAILED, 2.0, "why")
    assert progress_line(failed, 7, 7, 0.0) == "[7/7] variant=int8: FAILED after 2.0 s"


@pytest.fixture
def sweep(tmp_path):
    return Sweep("evaluate", ("a=1", "a=2", "a=3", "a=4"), tmp_path / "cells", True)


def raising(error):
    def main(config):
        raise error

    return main


def test_whatever_a_cell_raises_is_kept_and_nothing_else_stops(sweep, capsys):
    outcomes = [
        lambda config: {"value": config.value, "failed": {}},
        raising(UserError("n must be at least 3, got 1; use 3")),
        raising(KeyError("mended\nlater")),
        lambda config: {"failed": {"ssim": "out of order"}},
    ]
    for number, main in enumerate(outcomes):
        sweep.run_cell(number, functools.partial(Config, number), main, mistake)
    assert "Traceback" in capsys.readouterr().err  # of the bug, not of the mistake
    records = sweep.records()
    assert [record.status for record in records] == [DONE, FAILED, FAILED, INCOMPLETE]
    assert records[0].document == {"value": 0, "failed": {}} and records[1].config == {"value": 1}
    assert summary_document(records) == {
        "cells": 4,
        "done": 1,
        "failed": {
            "a=2": "n must be at least 3, got 1; use 3",
            "a=3": "KeyError: 'mended\\nlater'",
            "a=4": "ssim failed: out of order",
        },
    }
    sweep.close()
    assert not sweep.folder.exists()


def test_a_configuration_that_does_not_fit_is_the_cells_own_failure(sweep):
    sweep.run_cell(0, lambda: raising(UserError("no such key"))(None), lambda config: {}, mistake)
    (record,) = sweep.records()
    assert (record.status, record.why, record.config) == (FAILED, "no such key", {})


def test_ctrl_c_is_no_failure_of_a_cell(sweep):
    with pytest.raises(KeyboardInterrupt):
        sweep.run_cell(0, Config, raising(KeyboardInterrupt()), mistake)


def test_a_cell_without_a_record_has_failed(sweep):
    sweep.run_cell(1, Config, lambda config: None, mistake)
    records = sweep.close()
    assert [record.status for record in records] == [FAILED, DONE, FAILED, FAILED]
    assert records[0].why.startswith("no result came back: its job was killed")


def test_cells_of_other_processes_are_told_as_they_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dit8.scripts.sweep.LOOK_SECONDS", 0.01)
    sweep = Sweep("evaluate", ("a=1", "a=2"), tmp_path / "cells", False)
    with Narrator(sweep):
        sweep.run_cell(1, Config, lambda config: None, mistake)
        end = time.monotonic() + 10
        while not (first := capsys.readouterr().err):
            assert time.monotonic() < end
            time.sleep(0.01)
        sweep.run_cell(0, Config, lambda config: False, mistake)
    assert first.startswith("[1/2] a=2: 0.0 s")
    assert capsys.readouterr().err == "[2/2] a=1: in part, 0.0 s\n"


def test_a_mistake_in_the_sweep_itself_stops_before_the_first_cell(place, run_here, one_sentence):
    ended = run_here("evaluate", "-m", *place.evaluation, "variant=bf16,bf61")
    one_sentence(ended, "evaluate", r"variant must be one of .*, got 'bf61'; correct the name")
    assert not place.results.exists()


def test_cells_that_fail_are_named_at_the_end(place, run_here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ended = run_here("evaluate", "-m", *place.evaluation, "n=2,3", "report=false", "scorers=[psnr]")
    assert ended.code == 1
    assert ended.ends == ["[1/2] n=2: FAILED after ", "[2/2] n=3: "]
    why = "n must be at least 3, got 2; fewer give no interval"
    assert ended.lines[-1] == f"evaluate: n=2: {why}"
    assert ended.document == {"cells": 2, "done": 1, "failed": {"n=2": why}}


def test_help_of_a_sweep_is_help(run_here):
    ended = run_here("evaluate", "-m", "--help")
    assert ended.code == 0 and "variant" in ended.stdout and '"cells"' not in ended.stdout


def test_records_that_cannot_be_kept_are_one_sentence(
    run_here, one_sentence, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("")
    sweep = Sweep("evaluate", ("n=3",), tmp_path / "file" / "cells", True)
    monkeypatch.setattr("dit8.scripts.cli.plan_sweep", lambda *_: sweep)
    ended = run_here("evaluate", "-m", "n=3")
    one_sentence(ended, "evaluate", "cannot write .*file.cells: Not a directory; choose a folder")


def test_failures_are_told_before_what_follows_the_cells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep = Sweep("evaluate", ("n=3", "n=4"), tmp_path / "cells", True)
    monkeypatch.setattr("sys.argv", ["evaluate", "-m", "n=3,4"])

    def finish(records):
        assert "evaluate: n=3: no such thing\n" in capsys.readouterr().err
        return {"failed": {"page": "none"}}

    try:
        register()
        assert not run_all(sweep, raising(UserError("no such thing")), finish)
    finally:
        GlobalHydra.instance().clear()
    out, err = capsys.readouterr()
    assert err == "evaluate: page: none\n"
    assert set(json.loads(out.splitlines()[-1])["failed"]) == {"n=3", "n=4", "page"}


def test_a_sweep_says_what_differs_where_the_variant_is_the_same(place, run_here):
    ended = run_here("evaluate", "-m", *place.evaluation, "variant=bf16", "steps=1,2")
    assert ended.code == 0, ended.stderr
    rows = [line for line in ended.stdout.splitlines() if line.startswith("| steps=")]
    assert [row.split("|")[1].strip() for row in rows] == ["steps=1", "steps=2"]
    runs = [document["run_id"] for document in ended.cells]
    assert [row.split("|")[2].strip() for row in rows] == runs and len(set(runs)) == 2
    assert len(ended.document["reports"]) == 2  # two references


def rows_of(results):
    """The rows of scores.csv; those scorers are no timings."""
    return (results / "scores.csv").read_text(encoding="utf-8")


def wait_for(process, path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.runs, process.end()
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.005)


@pytest.mark.slow
def test_variants_stopped_twice_and_made_to_fail_once(place, start_script, run_here, monkeypatch):
    """Interrupted in the first cell, killed in the second, a cell damaged: nothing differs."""
    monkeypatch.chdir(place.folder)
    unbroken = place.folder / "unbroken"
    options = [*place.evaluation, "n=6", "steps=8", "report=false", "scorers=[ocr_ned,psnr]"]
    elsewhere = [f"results={unbroken / 'results'}", f"out={unbroken / 'runs'}"]
    names = {}
    for variant in VARIANTS:
        document, _ = evaluate(compose("evaluate", [*options, *elsewhere, f"variant={variant}"]))
        names[variant] = document["run_id"]
    cell = prepare(compose("evaluate", [*options, "variant=bf16"]))
    pictures = [f"{prompt.id}_{prompt.seed}.png" for prompt in cell.prompts]
    command = ["evaluate", "-m", *options, f"variant={','.join(VARIANTS)}"]

    for variant, stop in (("bf16", signal.SIGINT), ("fp8", signal.SIGKILL)):
        process = start_script(*command, cwd=place.folder)
        wait_for(process, place.out / names[variant] / pictures[1])
        process.send(stop)
        stopped = process.end()
        assert not (place.out / names[variant] / pictures[-1]).exists()
        assert not (place.out / names["int8"]).exists()
        if stop == signal.SIGINT:
            assert stopped.code == 130
            assert stopped.stderr.endswith("evaluate: interrupted; the same command continues\n")
            assert "Traceback" not in stopped.stderr
        left = list((place.folder / "multirun").glob(f"cells-*-{process.pid}-*"))
        assert len(left) == (stop == signal.SIGKILL)

    damaged = place.out / names["fp8"] / pictures[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    ended = run_here(*command)
    assert ended.code == 1
    assert ended.document["done"] == 2 and set(ended.document["failed"]) == {"variant=fp8"}
    sentence = f"{damaged} must be a picture written by dit8"
    assert ended.lines[-1].startswith(f"evaluate: variant=fp8: {sentence}")
    assert [line.partition(" variant=")[2] for line in ended.ends] == [
        f"{variant}: " + ("FAILED after " if variant == "fp8" else "") for variant in VARIANTS
    ]

    damaged.unlink()
    ended = run_here(*command)
    assert ended.code == 0, ended.stderr
    assert ended.document == {"cells": 3, "done": 3, "failed": {}}
    assert rows_of(place.results) == rows_of(unbroken / "results")
    latents = sorted(path.relative_to(place.out) for path in place.out.glob("*/*.safetensors"))
    assert len(latents) == 3 * len(pictures)
    for path in latents:
        assert (place.out / path).read_bytes() == (unbroken / "runs" / path).read_bytes()
    again = run_here(*command)
    assert json.dumps(again.document) == json.dumps(ended.document)
