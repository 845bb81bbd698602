"""What `pip install .` leaves: one package, that works from anywhere and hides no other."""

import doctest
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import dit8

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("conf", "dit8", "eval", "kernels", "models", "quant")
FILES = ("pyproject.toml", "README.md", "LICENSE")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]

# In the order of the list: what is slow comes after what must be fast.
PROGRAM = """
import json, sys, time
start = time.perf_counter()
import dit8
seconds = time.perf_counter() - start
light = "torch" not in sys.modules
import kernels
from importlib.resources import files
import torch
x, wq = torch.ones(3, 64), torch.full((5, 64), 2, dtype=torch.int8)
y = dit8.int8_linear(x, wq, torch.full((5,), 0.5))
from diffusers.utils.import_utils import is_kernels_available
print(json.dumps({
    "seconds": seconds,
    "light": light,
    "dit8": dit8.__file__,
    "kernels": kernels.__file__,
    "y": y.tolist(),
    "load_quantized": dit8.load_quantized.__module__,
    "public": sorted(set(dit8.__all__) - set(dir(dit8))),
    "conf": files("dit8.conf").joinpath("recipe", "smoothquant.yaml").is_file(),
    "tuned": files("dit8.kernels").joinpath("tuned", "nvidia_h200.json").is_file(),
    "diffusers_sees_kernels": is_kernels_available(),
}))
"""


@pytest.mark.parametrize("name", ["Int8Linear", "int8_linear"])
def test_the_example_of_a_public_name_runs(name):
    """That of load_quantized is the README's."""
    [test] = doctest.DocTestFinder(recurse=False).find(getattr(dit8, name), name)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_list_of_packages_is_that_of_the_tree():
    found = {
        ".".join(("dit8", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS[:1] + FOLDERS[2:]
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == found | {"dit8"}
    assert set(SETUPTOOLS["package-dir"]) == {f"dit8.{name}" for name in FOLDERS if name != "dit8"}


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory) -> Path:
    """An empty environment with the wheel in it; ours lends what dit8 depends on.

    The tree is copied first, because setuptools writes beside its sources.
    """
    tmp = tmp_path_factory.mktemp("wheel")
    tree = tmp / "tree"
    heavy = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.egg-info")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=heavy)
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    alone = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *alone, "--no-build-isolation", "-w", tmp / "dist", tree]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp / "venv"], check=True)
    [site] = (tmp / "venv").glob("lib/python*/site-packages")
    [wheel] = (tmp / "dist").glob("dit8-*.whl")
    subprocess.run([*pip, "install", *alone, "--target", site, wheel], check=True)
    return site


def test_an_installed_dit8_is_one_package_that_works_anywhere(site_packages, tmp_path):
    assert sorted(path.name for path in site_packages.iterdir()) == ["dit8", "dit8-0.1.0.dist-info"]
    # stands in for Hugging Face's package of that name, which is no dependency of ours
    (site_packages / "kernels").mkdir()
    (site_packages / "kernels" / "__init__.py").touch()
    metadata = site_packages / "kernels-0.17.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.17.2\n")
    (site_packages / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = site_packages.parents[2] / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(
        [python, "-c", PROGRAM], cwd=tmp_path, env=clean, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["light"] and found["seconds"] < 0.2
    assert Path(found["dit8"]).is_relative_to(site_packages)
    assert Path(found["kernels"]).is_relative_to(site_packages)
    assert found["diffusers_sees_kernels"]
    assert found["conf"] and found["tuned"]
    assert not found["public"]
    assert found["load_quantized"] == "dit8.quant.checkpoint.load"
    for row in found["y"]:
        assert row == pytest.approx([64.0] * 5, rel=1e-6)  # 64 x 1.0 x (2 x 0.5)
