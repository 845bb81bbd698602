"""import_torchvision against stand-in packages, each in a process of its own.

The declared operators stay for the life of a process, and a real torchvision must not be touched.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What the real package does: refer to the operator while it is being imported.
REFERS_TO_OPERATORS = """
import torch
from . import first

torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: dets)
"""
CALL = """
import sys
from models.torchvision_shim import import_torchvision
from quant.errors import UserError
try:
    module = import_torchvision()
except UserError as error:
    sys.exit(str(error))
"""


def run_with(tmp_path: Path, package: str, more: str = "") -> subprocess.CompletedProcess[str]:
    """Run CALL and `more` where `import torchvision` finds a package with the source `package`."""
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text(package)
    (folder / "first.py").write_text("loaded = True\n")
    return subprocess.run(
        [sys.executable, "-c", CALL + more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def test_missing_operators_are_declared_and_the_import_repeated(tmp_path: Path) -> None:
    more = """
import torch
assert import_torchvision() is module is sys.modules["torchvision"]
print(module.__file__, module.first.loaded)
print(torch.ops.torchvision.nms.default._schema)
print(torch.ops.torchvision.qnms.default._schema)
"""
    result = run_with(tmp_path, REFERS_TO_OPERATORS, more)
    assert result.returncode == 0, result.stderr
    box_suppression = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'torchvision' / '__init__.py'} True",
        f"torchvision::nms{box_suppression}",
        f"torchvision::qnms{box_suppression}",
    ]


def test_nothing_is_declared_where_the_import_works(tmp_path: Path) -> None:
    more = 'import torch; print(hasattr(torch.ops.torchvision, "nms"))'
    result = run_with(tmp_path, "version = 1\n", more)
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


@pytest.mark.parametrize(
    ("package", "cause"),
    [
        pytest.param(
            'raise RuntimeError("operator torchvision::roi_align does not exist")',
            "RuntimeError: operator torchvision::roi_align does not exist",
            id="another operator",
        ),
        pytest.param(
            "raise ModuleNotFoundError(\"No module named 'torchvision'\")",
            "ModuleNotFoundError: No module named 'torchvision'",
            id="not installed",
        ),
        pytest.param(
            'raise OSError("libc10.so:\\nundefined symbol")',
            "OSError: libc10.so: undefined symbol",
            id="library of another torch",
        ),
        pytest.param(
            REFERS_TO_OPERATORS + 'raise RuntimeError("second failure")',
            "RuntimeError: second failure",
            id="fails again after the declaration",
        ),
    ],
)
def test_any_other_failure_is_one_sentence(tmp_path: Path, package: str, cause: str) -> None:
    result = run_with(tmp_path, package)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(f"import_torchvision: importing torchvision ended in {cause}; ")
    assert "expected torchvision 0.28.0 beside torch 2.13.0" in lines[0]
    assert "pip install -c constraints.txt -e '.[clip]'" in lines[0]
