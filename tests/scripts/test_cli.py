import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_bitsandbytes_is_quiet_before_a_script_imports_diffusers():
    code = (
        "import logging, sys; from scripts import cli; assert 'diffusers' not in sys.modules; "
        "print(logging.getLogger('bitsandbytes.backends.cpu.ops').level == logging.ERROR)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "True", done.stderr
