import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest

from dit8.eval.requirements import check_requirement, imported_packages, lacking, missing_from_extra

ROOT = Path(__file__).resolve().parents[2]
PROJECT = """[project]
name = "p"
dependencies = ["numpy"]
[project.optional-dependencies]
ocr = ["nowhere-at-all>=1", "pytest"]
clip = ["shared-thing", "numpy"]
lpips = ["shared_thing>=2"]
"""


@pytest.fixture
def tree(tmp_path):
    """A repository with a scorer that reaches optional packages through another file."""
    files = {
        "pyproject.toml": PROJECT,
        "eval/scorers/text.py": (
            "import json\nfrom dit8.eval.reading import read\nimport numpy as np\n"
        ),
        "eval/reading.py": "import dit8.eval.loop\ndef read():\n    from pytest import raises\n",
        "eval/loop.py": "from dit8.eval import reading\nfrom . import sibling\nimport os.path\n",
        "eval/scorers/plain.py": "import numpy\n",
        "eval/scorers/shared.py": "from shared_thing.inner import x\n",
        "eval/scorers/other.py": "import thing_of_nobody\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_satisfied_requirement_gives_its_version():
    version = importlib.metadata.version("numpy")
    assert check_requirement("numpy>=1") == ("numpy", True, version)


def test_a_version_out_of_range_is_named():
    version = importlib.metadata.version("numpy")
    assert check_requirement("numpy<1") == ("numpy", False, f"{version}, expected <1")


def test_a_build_between_releases_counts(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0rc1+cpu")
    assert check_requirement("torch>=2.12") == ("torch", True, "2.13.0rc1+cpu")


def test_a_missing_package():
    assert check_requirement("nowhere-at-all>=1") == ("nowhere-at-all", False, "not installed")


def test_a_package_of_another_platform_is_not_missed():
    requirement = "nowhere-at-all; platform_system == 'Nowhere'"
    assert check_requirement(requirement) == ("nowhere-at-all", True, "not installed")
    assert not check_requirement("nowhere-at-all; platform_system != 'Nowhere'")[1]


def test_without_packaging_versions_are_not_compared(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    version = importlib.metadata.version("numpy")
    assert check_requirement("numpy<1") == ("numpy", True, version)
    assert not check_requirement("nowhere; platform_system == 'Nowhere'")[1]


def test_imports_are_followed_through_our_files_and_into_functions(tree):
    path = tree / "eval" / "scorers" / "text.py"
    assert imported_packages(path, tree) == {"numpy", "pytest"}


def test_an_extra_is_needed_whole(tree):
    assert missing_from_extra(["nowhere-at-all>=1", "pytest"]) == ["nowhere-at-all (not installed)"]
    # pytest is there, but the extra that lists it lacks another package
    needs = lacking([tree / "eval" / "scorers" / "text.py"], tree)
    assert needs == ["extra ocr: pip install -e '.[ocr]'"]


@pytest.mark.parametrize(
    ("scorer", "needs"),
    [
        ("plain", []),  # numpy is required anyway, whichever extra lists it too
        ("shared", ["extra clip or lpips"]),
        ("other", ["package thing-of-nobody"]),
    ],
)
def test_lacking(tree, scorer, needs):
    assert lacking([tree / "eval" / "scorers" / f"{scorer}.py"], tree) == needs


def test_nothing_is_imported_to_look_it_up(tree):
    before = set(sys.modules)
    lacking([ROOT / "eval" / "scorers" / "ocr.py"], ROOT)
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {
        "rapidocr",
        "onnxruntime",
        "cv2",
    }


def test_the_ocr_scorers_lead_to_their_extra():
    found = imported_packages(ROOT / "eval" / "scorers" / "ocr.py", ROOT)
    assert "rapidocr" in found
    assert not found & {"json", "eval", "quant"}
