"""The environment and the tree: what must hold before any other test means something."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAX_LINES = 400
MAX_BYTES = 16 * 2**20
VAGUE_WORDS = {"utils", "util", "common", "manager", "base"}


def read_pins() -> dict[str, Version]:
    """Read constraints.txt as {canonical name: version}; a line that is no exact pin fails."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        specifiers = list(requirement.specifier)
        assert [s.operator for s in specifiers] == ["=="], f"constraints.txt: no exact pin: {line}"
        name = canonicalize_name(requirement.name)
        assert name not in pins, f"constraints.txt: {name} is pinned twice"
        pins[name] = Version(specifiers[0].version)
    return pins


def wanted(requirements: list[str]) -> list[Requirement]:
    """Keep the requirements whose marker holds on this machine."""
    parsed = [Requirement(text) for text in requirements]
    return [r for r in parsed if r.marker is None or r.marker.evaluate()]


def repository_files() -> list[Path]:
    """List the files git tracks or would track; a tree without git has none to check."""
    listing = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    files = [path for path in paths if path.is_file()]  # a deleted file stays listed until commit
    assert ROOT / "pyproject.toml" in files
    return files


ALWAYS_INSTALLED = wanted(PROJECT["dependencies"] + EXTRAS["ocr"] + EXTRAS["test"])


@pytest.mark.parametrize("requirement", ALWAYS_INSTALLED, ids=lambda r: r.name)
def test_installed_version_is_the_pinned_one(requirement: Requirement) -> None:
    pin = read_pins()[canonicalize_name(requirement.name)]
    # .public: a CPU build of torch calls itself 2.13.0+cpu
    installed = Version(importlib.metadata.version(requirement.name)).public
    assert installed == pin.public, (
        f"{requirement.name} {installed} is installed, constraints.txt pins {pin}; run 'make venv'"
    )


def test_every_requirement_has_a_pin_it_allows() -> None:
    pins = read_pins()
    extras = [text for requirements in EXTRAS.values() for text in requirements]
    for requirement in map(Requirement, PROJECT["dependencies"] + extras):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin in constraints.txt"
        assert pin in requirement.specifier, f"pyproject.toml has {requirement}, pinned is {pin}"


def test_plain_diffusers_imports_in_a_script_without_dit8(tmp_path: Path) -> None:
    program = """
import sys
from diffusers import FluxPipeline
print(FluxPipeline.__name__, "models" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, (
        f"{result.stderr}\nthis environment does not mend torchvision at start: run 'make venv', "
        f"or {sys.executable} models/torchvision_shim.py"
    )
    assert result.stdout == "FluxPipeline False\n"


def test_kernels_package_file_is_empty() -> None:
    # transformers imports it to look for a __version__; anything else there would run each time.
    assert (ROOT / "kernels" / "__init__.py").read_text() == ""


def test_no_script_has_the_name_of_a_standard_module() -> None:
    # Python puts a script's folder first on the path: scripts/profile.py would break torch.
    clashes = {path.name for path in (ROOT / "scripts").iterdir()} & {
        name for module in sys.stdlib_module_names for name in (module, f"{module}.py")
    }
    assert not clashes, f"scripts/ has the name of a standard module: {sorted(clashes)}"


def test_python_files_are_short() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in repository_files()
        if path.suffix == ".py"
    }
    too_long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not too_long, f"files over {MAX_LINES} lines: {too_long}; split by idea"


def test_files_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in repository_files()}
    too_large = {name: size for name, size in sizes.items() if size > MAX_BYTES}
    assert not too_large, f"files over {MAX_BYTES} bytes: {too_large}"


def test_no_file_has_a_vague_name() -> None:
    vague = [
        str(path.relative_to(ROOT))
        for path in repository_files()
        if path.suffix in {".py", ".yaml"}
        and any(
            VAGUE_WORDS & set(re.split(r"[_\W]+", part.lower()))
            for part in path.relative_to(ROOT).parts
        )
    ]
    assert not vague, f"name the idea instead: {vague}"
