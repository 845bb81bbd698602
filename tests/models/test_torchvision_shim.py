"""The mended import against stand-in packages, each in a process of its own.

The declared operators stay for the life of a process, and a real torchvision must not be touched.
"""

import os
import shutil
import subprocess
import sys
import venv
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
ALONE = """
import sys  # without the copy that the environment may have installed at start
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != "TorchvisionFinder"]
"""
CALL = """
from dit8.models.torchvision_shim import import_torchvision
from dit8.quant.errors import UserError
try:
    module = import_torchvision()
except UserError as error:
    sys.exit(str(error))
"""


PLAIN = """
from dit8.models.torchvision_shim import install
install()
import torchvision
"""
# In place of torch where only the order of events counts.
STAND_IN_TORCH = """
__version__ = "2.13.0"
class library:
    declared = []
    class Library:
        def __init__(self, name, kind):
            self.define = library.declared.append
"""
NEEDS_HELP = """
import torch
if len(torch.library.declared) != 2:
    raise RuntimeError("operator torchvision::nms does not exist")
from . import first
"""


def run_with(
    tmp_path: Path, package: str, more: str = "", call: str = CALL, torch: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `call` and `more` where `import torchvision` finds a package of the source `package`.

    With `torch`, its source stands in for torch, whose import takes two seconds.
    """
    if torch is not None:
        (tmp_path / "torch.py").write_text(torch)
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text(package)
    (folder / "first.py").write_text("loaded = True\n")
    return subprocess.run(
        [sys.executable, "-c", ALONE + call + more],
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


def test_a_plain_import_is_mended_too_and_the_loader_stays(tmp_path: Path) -> None:
    more = """
from importlib.machinery import SourceFileLoader
loader = torchvision.__spec__.loader
print(type(loader) is SourceFileLoader, torchvision.first is sys.modules["torchvision.first"])
"""
    result = run_with(tmp_path, REFERS_TO_OPERATORS, more, PLAIN)
    assert (result.returncode, result.stdout) == (0, "True True\n"), result.stderr


def test_a_second_install_changes_nothing_not_even_from_a_copy(tmp_path: Path) -> None:
    shutil.copy(ROOT / "models" / "torchvision_shim.py", tmp_path / "copied.py")
    more = """
import copied
finders = list(sys.meta_path)
install()
copied.install()
print(sys.meta_path == finders, torchvision.first.loaded)
"""
    result = run_with(tmp_path, REFERS_TO_OPERATORS, more, PLAIN)
    assert (result.returncode, result.stdout) == (0, "True True\n"), result.stderr


def test_importing_models_imports_neither(tmp_path: Path) -> None:
    more = 'print({"torch", "torchvision"} & set(sys.modules))'
    result = run_with(tmp_path, "", more, "import dit8.models\n")
    assert (result.returncode, result.stdout) == (0, "set()\n"), result.stderr


def test_nothing_is_declared_where_the_import_works(tmp_path: Path) -> None:
    more = 'import torch; print(hasattr(torch.ops.torchvision, "nms"))'
    result = run_with(tmp_path, "version = 1\n", more)
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


OTHER_FAILURES = pytest.mark.parametrize(
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
            NEEDS_HELP + 'raise RuntimeError("second failure")',
            "RuntimeError: second failure",
            id="fails again after the declaration",
        ),
    ],
)


@OTHER_FAILURES
def test_any_other_failure_stays_itself_in_a_plain_import(
    tmp_path: Path, package: str, cause: str
) -> None:
    result = run_with(tmp_path, package, call=PLAIN, torch=STAND_IN_TORCH)
    assert result.returncode == 1
    assert " ".join(result.stderr.split()).endswith(cause)


@OTHER_FAILURES
def test_any_other_failure_is_one_sentence(tmp_path: Path, package: str, cause: str) -> None:
    result = run_with(tmp_path, package, torch=STAND_IN_TORCH)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(f"import_torchvision: importing torchvision ended in {cause}; ")
    assert "expected torchvision 0.28.0 beside torch 2.13.0" in lines[0]
    assert "pip install -c constraints.txt -e '.[clip]'" in lines[0]


def test_an_environment_is_set_up_once_and_cleared_where_nothing_is_needed(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    packages = tmp_path / "packages"
    (packages / "torchvision").mkdir(parents=True)
    (packages / "torch.py").write_text(STAND_IN_TORCH)
    (packages / "torchvision" / "__init__.py").write_text(NEEDS_HELP)
    (packages / "torchvision" / "first.py").write_text("")

    def run(*arguments: str) -> int:
        environment = {**os.environ, "PYTHONPATH": str(packages)}
        return subprocess.run([python, *arguments], env=environment, cwd=tmp_path).returncode

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in site.rglob("*") if path.is_file()}

    shim, use = str(ROOT / "models" / "torchvision_shim.py"), "import torchvision.first"
    before = files()
    assert run("-c", use) == 1
    for _ in range(2):
        assert run(shim) == 0
        made = files()
        assert run("-c", use) == 0
        added = made.keys() - before.keys()
        assert {Path(name).suffix for name in added} == {".py", ".pth", ".pyc"}
        assert not any(str(ROOT).encode() in made[name] for name in added)
    (packages / "torchvision" / "__init__.py").write_text("")
    assert run(shim) == 0
    assert files() == before
