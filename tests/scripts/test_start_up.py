"""Help and refusals come before the imports that take seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


# A Python that has what every command needs, and a fork of it for each command.
RUNNER = """
import contextlib, io, json, os, runpy, sys
import hydra, omegaconf
for words in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    if os.fork() == 0:
        sys.argv, code = words, 0
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        imported = [name for name in sys.modules if "." not in name]
        os.write(writer, json.dumps([code, imported]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as told:
        print(told.read())
    os.wait()
"""


def test_nothing_slow_is_imported():
    commands = [[str(ROOT / "scripts" / f"{name}.py"), *rest] for name, *rest in (*HELP, *REFUSED)]
    command = [sys.executable, "-c", RUNNER, json.dumps(commands)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60)
    lines = ended.stdout.splitlines()
    assert len(lines) == len(commands), ended.stderr[-400:]
    expected = [0] * len(HELP) + [2] * len(REFUSED)
    for words, code, line in zip(commands, expected, lines, strict=True):
        found, imported = json.loads(line)
        assert found == code, words
        assert "argparse" in imported  # the list is there
        assert not set(imported) & set(SLOW), words


def test_the_choices_of_the_schema_are_the_packages():
    from dit8.conf.schema import CHOICES
    from dit8.models.engine.sampling import ENGINES
    from dit8.models.pipeline import DTYPES
    from dit8.quant.formats.table import FORMATS

    assert CHOICES == {"format": tuple(FORMATS), "engine": ENGINES, "dtype": tuple(DTYPES)}
