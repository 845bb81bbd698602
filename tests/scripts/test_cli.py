import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_bitsandbytes_is_quiet_before_a_script_imports_diffusers():
    code = (
        "import logging, sys; from dit8.scripts import cli; assert 'diffusers' not in sys.modules; "
        "print(logging.getLogger('bitsandbytes.backends.cpu.ops').level == logging.ERROR)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("size", [10, 10**6], ids=["at its end", "while it prints"])
@pytest.mark.parametrize("end", ["", "; raise SystemExit(0)"], ids=["plain", "as --help ends"])
def test_a_reader_that_goes_ends_a_script_without_a_word(size, end):
    code = (
        "import time; from dit8.scripts.cli import one_sentence\n"
        f"with one_sentence('x'): time.sleep(0.5); print('a' * {size}){end}"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    started.stdout.close()  # as `| true`
    assert started.wait(120) == 141
    assert started.stderr.read() == b""


def test_a_broken_pipe_to_a_process_is_a_bug():
    code = (
        "from dit8.scripts.cli import one_sentence\n"
        "with one_sentence('x'): raise BrokenPipeError('of a worker')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "BrokenPipeError: of a worker" in done.stderr
