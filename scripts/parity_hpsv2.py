"""Compare our HPSv2 with the package hpsv2 1.2.0, installed into an environment of its own.

    python scripts/parity_hpsv2.py                                # a minute the first time

The package cannot stand beside this project: it asks for protobuf < 4 and pytest 7.2.0, and its
wheel lacks the vocabulary of its own tokenizer. So a virtual environment is made in outputs/parity
that sees the packages of this one and holds hpsv2 without its requirements; the vocabulary is
open_clip's copy of the same file. Nothing is installed here. pip needs a way to PyPI the first
time.

On a tiny checkpoint of random weights (no real weights are needed: the arithmetic is compared, not
the model) tokens must be the same, prepared pictures, features and scores must agree to 1e-6.
Writes <out>, by default outputs/results/parity/hpsv2.csv (quantity, case, difference). Prints one
JSON document last.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

try:
    from dit8.conf.paths import ROOT, from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"parity_hpsv2: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import pandas as pd

from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

PACKAGE, VERSION = "hpsv2", "1.2.0"
SHA256 = "3ee638b06847bef24e1de43d0b5e3890a4a850034b4bf618e4bb3e78e2d806a1"  # of its wheel
# What the part of it that scores imports, apart from torch, transformers and Pillow.
NEEDED = ("clint==0.5.1", "args==0.1.0", "requests", "open-clip-torch", "torchvision", "timm")
NEEDED += ("ftfy", "wcwidth", "regex")
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
LARGEST = 1e-6  # fp32 features of length 1: ten roundings


def make_environment(folder: Path) -> Path:
    """Make the environment, unless that has been done; returns its interpreter.

    Raises:
        UserError: no download, or another wheel than the one that was examined.
    """
    python, done = folder / "bin" / "python", folder / ".complete"
    if done.exists():
        return python
    venv.create(folder, clear=True, with_pip=False)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "surrounding.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _run([*pip, "download", "--no-deps", "--dest", temporary, f"{PACKAGE}=={VERSION}"])
        wheel = next(Path(temporary).glob("*.whl"))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != SHA256:
            raise UserError(
                f"make_environment: {wheel.name} must have the sha256 {SHA256}, got {digest}; do "
                "not use it"
            )
        into = [*pip, "--python", str(python), "install", "--no-deps"]
        _run([*into, "-c", str(ROOT / "constraints.txt"), str(wheel), *NEEDED])
    find = "import importlib.util as u; print(u.find_spec('open_clip').origin)"
    source = Path(_run([str(python), "-c", find]).strip()).parent / VOCABULARY
    target = packages / PACKAGE / "src" / "open_clip" / VOCABULARY
    target.write_bytes(source.read_bytes())
    done.touch()
    return python


def _run(command: list[str]) -> str:
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["?"]
        raise UserError(
            f"parity_hpsv2: {' '.join(command[:4])} must succeed, got {lines[-1].strip()!r}; hpsv2 "
            "is only needed for this comparison"
        )
    return done.stdout


def check(frame: pd.DataFrame) -> None:
    """Refuse a difference that is too large.

    Raises:
        UserError: tokens differ, or anything else by more than LARGEST.
    """
    allowed = frame["quantity"].map(lambda name: 0.0 if name == "token ids" else LARGEST)
    wrong = frame[~(frame["difference"] <= allowed)]  # a NaN is wrong too
    if len(wrong):
        first = wrong.iloc[0]
        raise UserError(
            f"check: {first['quantity']} of {first['case']} must agree with {PACKAGE} {VERSION} to "
            f"{LARGEST:g}, got a difference of {first['difference']:g}; correct "
            "eval/scorers/hpsv2.py"
        )


def parity(arguments: argparse.Namespace) -> dict:
    """Make the environment, compare in it, write the table."""
    python = make_environment(from_root(arguments.cache) / f"{PACKAGE}-{VERSION}")
    output = _run([str(python), "-W", "ignore", str(ROOT / "scripts" / "hpsv2_both.py")])
    found = json.loads(output.strip().splitlines()[-1])
    frame = pd.DataFrame(found["rows"], columns=["quantity", "case", "difference"])
    check(frame)
    out = from_root(arguments.out)
    write_atomically(out, lambda path: frame.to_csv(path, index=False, float_format="%.3g"))
    largest = frame.groupby("quantity", sort=False)["difference"].max()
    print(largest.to_string(float_format="{:.2g}".format))
    return {
        "out": shorten(out),
        "package": f"{PACKAGE} {VERSION}",
        "tensors_equal": found["tensors"],  # the comparison stops otherwise
        "cases": len(frame),
        "largest": {name: float(f"{value:.2g}") for name, value in largest.items()},
    }


def main() -> None:
    with one_sentence("parity_hpsv2"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--cache", default="outputs/parity")
        parser.add_argument("--out", default="outputs/results/parity/hpsv2.csv")
        print(json.dumps(parity(parser.parse_args())))


if __name__ == "__main__":
    main()
