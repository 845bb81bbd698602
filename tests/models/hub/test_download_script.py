"""scripts/download.py from the listing to a model that opens."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

ROOT = Path(__file__).resolve().parents[3]

REPO, COMMIT, TOKEN = "owner/model", "c" * 40, "hf_secret"  # of the hub in conftest.py


@pytest.fixture
def script(server, toy_folder, monkeypatch, capsys):
    """Run scripts/download.py here against a hub that holds a toy model; returns how it ended."""
    server.files = {
        path.relative_to(toy_folder).as_posix(): path.read_bytes()
        for path in sorted(toy_folder.rglob("*"))
        if path.is_file()
    } | {"LICENSE.md": server.files["LICENSE.md"]}
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run(*arguments: str, stdin: str | None = None) -> SimpleNamespace:
        answers = io.StringIO(stdin or "")
        answers.isatty = lambda: stdin is not None
        monkeypatch.setattr(sys, "stdin", answers)
        monkeypatch.setattr(sys, "argv", ["download.py", *arguments])
        handler, code = signal.getsignal(signal.SIGTERM), 0
        try:
            runpy.run_path(str(ROOT / "scripts" / "download.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def test_script_fetches_a_model_that_opens(script, server, tmp_path):
    ended = script(REPO, "--to", str(tmp_path / "model"), "--accept-licence")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out.splitlines()[-1])
    assert document["format"] == "bf16"
    assert (document["repository"], document["commit"]) == (REPO, COMMIT)
    assert document["bytes"] == document["fetched_bytes"] == sum(map(len, server.files.values()))
    assert "The terms.\nSecond line." in ended.out
    assert TOKEN not in ended.out + ended.err
    again = script(REPO, "--to", str(tmp_path / "model"), "--accept-licence")
    assert json.loads(again.out.splitlines()[-1])["fetched_bytes"] == 0


def test_script_asks_for_agreement(script, tmp_path):
    target = tmp_path / "model"
    ended = script(REPO, "--to", str(target), stdin="no\n")
    assert ended.code == 2
    assert "the licence must be agreed to, got 'no'; nothing was fetched" in ended.err
    ended = script(REPO, "--to", str(target), stdin="")  # Ctrl-D
    assert ended.code == 2
    assert not target.exists()
    ended = script(REPO, "--to", str(target), stdin="i agree\n")
    assert ended.code == 0, ended.err
    assert "for non-commercial use, and so is what you derive" in ended.out


def test_script_without_a_terminal_needs_the_flag(script, tmp_path):
    ended = script(REPO, "--to", str(tmp_path / "model"))
    assert ended.code == 2
    assert "nobody can be asked here; read it above and pass --accept-licence" in ended.err
    assert not (tmp_path / "model").exists()


def test_script_says_when_what_came_does_not_open(script, server, tmp_path):
    del server.files["transformer/config.json"]
    ended = script(REPO, "--to", str(tmp_path / "model"), "--accept-licence")
    assert ended.code == 2
    assert "transformer/config.json does not exist; restore the model folder" in ended.err


def test_script_stopped_by_ctrl_c_goes_on(server, tmp_path, script):
    name, chunk = "tokenizer/merges.txt", constants.DOWNLOAD_CHUNK_SIZE
    server.files[name] = bytes(range(251)) * (chunk // 200)
    server.cuts[name], server.stalls = chunk + 1000, True  # the client writes whole chunks
    command = [sys.executable, str(ROOT / "scripts" / "download.py"), REPO, "--accept-licence"]
    environment = {
        "HF_ENDPOINT": server.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": TOKEN,
    }
    process = subprocess.Popen(
        [*command, "--to", str(tmp_path / "model")],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        parts = tmp_path / "model" / ".download"
        wait_for(lambda: any(p.stat().st_size == chunk for p in parts.glob("*.part")), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "interrupted; the same command continues" in err
    assert not (tmp_path / "model" / "model_index.json").exists()
    server.cuts.clear()
    server.asked.clear()
    ended = script(REPO, "--to", str(tmp_path / "model"), "--accept-licence")
    assert ended.code == 0, ended.err
    assert (tmp_path / "model" / name).read_bytes() == server.files[name]
    assert [start for asked, start in server.asked if asked == name] == [chunk]


def wait_for(is_true, process: subprocess.Popen) -> None:
    """Wait for a condition while a process runs, at most a minute."""
    end = time.monotonic() + 240
    while not is_true():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
