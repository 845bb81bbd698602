"""Sweeps whose cells run as jobs of their own, by submitit's local executor in place of Slurm."""

import json
import os
import shlex
import subprocess
import sys

import hydra
import pandas as pd
import pytest
from omegaconf import OmegaConf, open_dict

from dit8.conf.paths import CONF, ROOT
from dit8.eval.ledger import SCORES, read_table
from dit8.scripts.cli import register

pytest.importorskip("submitit", reason="needs the extra slurm: hydra-submitit-launcher")

LAUNCHER = "hydra/launcher=submitit_local"


DEADLY = """
import os, signal, sys, time
from submitit import Job
from dit8.scripts.cli import hydra_main

Job._results_timeout_s = 1  # so long it looks for the result of a job that is dead

@hydra_main("evaluate", lambda records: {"finished": [record.status for record in records]})
def main(config):
    if config.n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(6)
    return {"n": config.n}

main()
"""


@pytest.mark.slow
def test_a_job_that_is_killed_takes_no_other_with_it(tmp_path):
    """The second job still runs when the first is dead: its result is waited for."""
    script = tmp_path / "deadly.py"
    script.write_text(DEADLY, encoding="utf-8")
    ended = subprocess.run(
        [
            sys.executable,
            script.name,
            "-m",
            "n=3,4",
            LAUNCHER,
            f"hydra.sweep.dir={tmp_path / 'multirun'}",
        ],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1, ended.stderr
    document = json.loads(ended.stdout.splitlines()[-1])
    assert document["finished"] == ["failed", "done"] and set(document["failed"]) == {"n=3"}
    assert document["failed"]["n=3"].startswith("no result came back: its job was killed")
    assert "evaluate: the launcher lost a cell (UncompletedJobError" in ended.stderr


@pytest.mark.slow
def test_shards_run_as_jobs_and_are_merged(drawn, tmp_path, run_script):
    """A variant in two shards, side by side, from a folder that is not the repository."""
    options = [*drawn.place.evaluation, f"results={tmp_path / 'r'}", f"out={tmp_path / 'o'}"]
    options += ["scorers=[ocr_ned,latent_error]", "report=false", LAUNCHER]
    shards = ("variant=int8", "shard=0/2,1/2")
    ended = run_script("evaluate", "-m", *options, *shards, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert ended.document["done"] == 2 and ended.document["missing"] == 0
    assert len(ended.ends) == 2 and ended.document["failed"] == {}
    command = shlex.split(ended.document["finish"])
    assert LAUNCHER in command  # the jobs' kind of machine is part of what a run is

    # here, where the libraries are: another job would spend ten seconds on them
    words = [word for word in command[2:] if word != LAUNCHER]
    finished = run_script("evaluate", *words, cwd=tmp_path)
    assert finished.code == 0, finished.stderr
    assert finished.document["done"] == 1
    rows = read_table(tmp_path / "r" / "scores.csv", SCORES)
    expected = read_table(drawn.place.results / "scores.csv", SCORES)
    wanted = expected["variant"].isin(["bf16", "int8"]) & expected["scorer"].isin(rows["scorer"])
    pd.testing.assert_frame_equal(rows, expected[wanted].reset_index(drop=True))
    for variant in ("bf16", "int8"):
        run_id = drawn.documents[variant]["run_id"]
        record = json.loads((tmp_path / "r" / "runs" / f"{run_id}.json").read_text())
        assert record["pictures_made"] == 4
        for path in drawn.folder(variant).glob("*.safetensors"):
            assert (tmp_path / "o" / run_id / path.name).read_bytes() == path.read_bytes()


def test_the_commands_of_the_page_compose():
    """No option, group or value in docs/sweeps.md is misspelt."""
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line.split() for line in text.splitlines()]
    commands = [words[2:] for words in commands if words[:2] == ["python", "scripts/evaluate.py"]]
    assert len(commands) == 9
    register()
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        for words in commands:
            first = [word.split(",")[0] for word in words if word != "-m"]  # of each list
            config = hydra.compose("evaluate", first, return_hydra_config=True)
            with open_dict(config):
                del config.hydra
            assert OmegaConf.to_object(config).shard in (None, "0/2", "0/4")
