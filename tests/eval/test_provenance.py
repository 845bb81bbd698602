import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dit8.eval import provenance
from dit8.eval.provenance import describe, git_state, hardware, run_id, versions
from dit8.quant import files
from dit8.quant.errors import UserError
from dit8.quant.files import canonical_json, file_sha256


def test_canonical_json_does_not_depend_on_key_order():
    assert canonical_json({"b": 1, "a": [0.1, "é", None]}) == '{"a":[0.1,"é",null],"b":1}'
    for value in (float("nan"), Path("x"), {1}):
        with pytest.raises(ValueError, match=r"canonical_json: the value is no strict JSON"):
            canonical_json({"value": value})


def test_run_id_is_the_hash_of_what_determines_the_scores():
    text = '{"checkpoint":"c","config":{"n":2,"steps":20},"prompts":"p"}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert run_id({"steps": 20, "n": 2}, "c", "p") == expected
    assert run_id({"n": 2, "steps": 20}, "c", "p") == expected
    others = [
        run_id({"n": 2, "steps": 21}, "c", "p"),
        run_id({"n": 2, "steps": 20}, None, "p"),
        run_id({"n": 2, "steps": 20}, "c", "q"),
        run_id({"n": 2, "steps": 20}, "p", "c"),
    ]
    assert len({expected, *others}) == 5


def test_file_hash(tmp_path):
    data = b"x" * (files.CHUNK_BYTES + 3)  # more than one chunk
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    with pytest.raises(UserError, match=r"cannot hash .*none .*, expected a readable file"):
        file_sha256(tmp_path / "none")


def test_versions_name_python_and_what_is_missing(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    import numpy

    assert versions() == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": numpy.__version__,
        "no-such-package": None,
    }


def test_hardware_without_and_with_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = hardware()
    assert found["gpu"] is None and found["driver"] is None
    assert found["threads"] == torch.get_num_threads() and found["cores"] >= 1 and found["cpu"]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(provenance, "gpu_driver", lambda: "570.1")
    found = hardware()
    assert (found["gpu"], found["driver"]) == ("Some GPU", "570.1")


def test_importing_asks_no_gpu():
    code = "import sys, dit8.eval.provenance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_git_state_through_the_life_of_a_checkout(tmp_path):
    nothing = {"commit": None, "dirty": None}
    assert git_state(tmp_path / "none") == nothing
    assert git_state(tmp_path) == nothing
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {"commit": None, "dirty": False}
    (tmp_path / "a").write_text("1")
    assert git_state(tmp_path) == {"commit": None, "dirty": True}
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    # a plain folder inside a checkout has no commit of its own
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") == nothing


def test_the_description_is_strict_json(tmp_path):
    found = describe(tmp_path)
    assert set(found) == {"versions", "hardware", "git"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_copy_is_what_the_variable_says_even_inside_an_old_checkout(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("DIT8_COMMIT", "abc123")
    assert git_state(tmp_path) == {"commit": "abc123", "dirty": None}
    assert git_state(tmp_path / "none") == {"commit": "abc123", "dirty": None}
