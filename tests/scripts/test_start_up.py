"""Help and refusals come before the imports that take seconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("torch", "diffusers", "transformers", "torchvision", "matplotlib")
HELP = [[name, "--help"] for name in ("bench_gemm", "check_caption", "demo", "evaluate", "expand")]
HELP += [[name, "--help"] for name in ("generate", "quantize", "reproduce", "score", "tune")]
REFUSED = [
    ["quantize", "recipe=typo"],
    ["quantize", "recpie=smoothquant"],
    ["evaluate", "variant=typo"],
    ["calibrate", "calibration.n=many"],
    ["quantize", "format=int3"],
    ["quantize", "recipe.alpha=2"],
    ["evaluate", "engine=turbo"],
    ["evaluate", "prompts=none"],
    ["evaluate", "dtype=int4"],
    ["check_caption", "nowhere.json"],
    ["generate", "variant=int8"],
    ["generate", "nowhere.json"],
    ["score", "--typo"],
]


@pytest.mark.parametrize(
    "words, code", [(w, 0) for w in HELP] + [(w, 2) for w in REFUSED], ids=lambda w: str(w)
)
def test_nothing_slow_is_imported(words, code):
    name, *rest = words
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / f"{name}.py"), *rest]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60)
    assert ended.returncode == code, ended.stderr[-400:]
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", ended.stderr, re.MULTILINE))
    assert "argparse" in imported or "re" in imported  # the list is there
    assert not imported & set(SLOW)


def test_the_choices_of_the_schema_are_the_packages():
    from dit8.conf.schema import CHOICES
    from dit8.models.engine.engine import ENGINES
    from dit8.models.pipeline import DTYPES
    from dit8.quant.formats.table import FORMATS

    assert CHOICES == {"format": tuple(FORMATS), "engine": ENGINES, "dtype": tuple(DTYPES)}
