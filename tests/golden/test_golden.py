"""What must not change while the house is rebuilt: ids, keys, bytes of files, noise, tables.

Names on users' disks hang on these values, so a change here is a change of what they have. They
were recorded once, in expected.json; the statistics beside it are a calibration of the bundled mini
on one caption and one step, committed because its bits differ between processors. Only conftest.py
follows when a function moves.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
STATISTICS = HERE / "calibration-8d51ad1cc513.safetensors"
CALIBRATION = ("calibration.n=1", "calibration.sampler.steps=1", "calibration.samples=1")


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """The mini on a CPU, in a folder where the committed statistics lie under their own name."""
    folder = tmp_path_factory.mktemp("golden") / "mini"
    folder.mkdir()
    shutil.copy(STATISTICS, folder)
    return [f"checkpoints={folder.parent}", "hardware=cpu", *CALIBRATION]


@pytest.mark.parametrize("name", EXPECTED["checkpoints"])
def test_a_checkpoint_of_the_mini_has_its_name_and_bytes(house, options, name):
    expected = EXPECTED["checkpoints"][name]
    words = expected["words"]
    path = house.quantize(*options, *words)
    folder = path.parent if path.is_file() else path
    # q4_k has two: with AVX-512, MKL's sqrt of an array is not rounded correctly, with AVX2 it is
    known = expected["sha256"] if isinstance(expected["sha256"], list) else [expected["sha256"]]
    assert house.sha256(path) in known
    assert folder.name == expected["folder"]
    if "recipe_json" in expected:
        recipe = (folder / "recipe.json").read_bytes()
        assert hashlib.sha256(recipe).hexdigest() == expected["recipe_json"]
    # its key is the one of its configuration: nothing was calibrated beside it
    assert [file.name for file in folder.parent.glob("calibration-*")] == [STATISTICS.name]


@pytest.mark.parametrize("name", EXPECTED["committed_runs"])
def test_a_committed_run_has_the_id_of_what_it_records(house, name):
    record = json.loads((ROOT / EXPECTED["committed_runs"][name]).read_text(encoding="utf-8"))
    run = record["run"]
    stem, _, style = run["prompt_set"].partition("-")
    path = ROOT / "prompts" / f"{stem}.jsonl"
    prompts = house.prompts(path, style or "json")[: len(record["prompts"])]
    assert [[p.id, p.seed] for p in prompts] == record["prompts"]
    captions = [[p.id, p.caption, list(p.texts), p.seed] for p in prompts]
    sha256 = record["checkpoint_sha256"]
    assert house.run_id(record["identity"], sha256, house.key(captions)) == run["run_id"] == name


@pytest.mark.parametrize("name", EXPECTED["planned_runs"])
def test_a_configuration_has_its_run_id(house, options, name):
    """Those of bf16 are ids of committed runs: results/demo, made by an older configuration."""
    expected = EXPECTED["planned_runs"][name]
    assert house.planned_run_id(*options, *expected["words"]) == expected["run_id"]


@pytest.mark.parametrize("case", EXPECTED["noise"], ids=lambda case: case["prompt"])
def test_a_prompt_and_seed_have_their_noise(house, case):
    drawn = house.noise(case["prompt"], case["seed"], tokens=256, channels=32)
    assert drawn.shape == (256, 32) and drawn.dtype == torch.float32
    # fp32 logarithm and cosine differ between processors by units in the last place of values < 6
    bound = {"rtol": 0, "atol": 8 * 2.0**-22}
    torch.testing.assert_close(drawn[0, :6], torch.tensor(case["first"]), **bound)
    torch.testing.assert_close(drawn[-1, -6:], torch.tensor(case["last"]), **bound)
    torch.testing.assert_close(drawn.double().sum().item(), case["sum"], rtol=0, atol=1e-3)


def test_make_tables_changes_no_byte(tmp_path):
    """`make tables` in a copy of the tree; pages name their folder, so it is the same one there."""
    copy = tmp_path / "copy"
    heavy = ("mini", "clip_mini", ".git", ".venv", "checkpoints", "outputs", "__pycache__", "build")
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: set(heavy) & set(names))
    shutil.copytree(ROOT / "results" / "mini", copy / "results" / "mini")
    for name in ("mini", "clip_mini"):
        (copy / "models" / name).symlink_to(ROOT / "models" / name)
    before = {path: path.stat().st_mtime_ns for path in (copy / "results").rglob("*.*")}
    command = [sys.executable, "scripts/reproduce.py"]
    env = os.environ | {"PYTHONPATH": str(copy)}
    subprocess.run(command, cwd=copy, env=env, check=True, stdout=subprocess.DEVNULL, timeout=300)
    after = {path: path.stat().st_mtime_ns for path in (copy / "results").rglob("*.*")}
    written = sorted(path for path in after if after[path] != before.get(path))
    assert len([path for path in written if path.name.startswith("table")]) == 3 * 9
    assert copy / "results" / "FINDINGS.md" in written
    for path in written:
        assert path.read_bytes() == (ROOT / path.relative_to(copy)).read_bytes(), path.name
