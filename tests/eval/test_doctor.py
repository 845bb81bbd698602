import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from dit8.eval import doctor
from dit8.eval.doctor import (
    Row,
    checkpoint_names,
    examine,
    extra_rows,
    package_rows,
    report,
    scorer_rows,
    variant_rows,
    weight_rows,
)
from dit8.models.mini import TOY, build_pipeline, save_pipeline

ROOT = Path(__file__).resolve().parents[2]
PROJECT = """[project]
requires-python = ">=3.11"
dependencies = ["numpy>=1", "missing-thing", "torch<1"]
[project.optional-dependencies]
gguf = ["nowhere-at-all>=1"]
nf4 = ["nothing-at-all"]
test = ["pytest"]
"""
MODELS = {
    "mini": {"path": "models/mini", "build_missing": True},
    "planted": {"path": "made/planted", "build_missing": True, "plant": {"seed": 0}},
    "big": {"path": "made/big"},
}
VARIANTS = {
    "bf16": {"format": "source"},
    "int8": {"format": "w8a8", "gemm": "fake_quant"},
    "fused": {"format": "w8a8", "gemm": "fused"},
    "nf4": {"format": "nf4"},
    "q4": {"format": "q4_k"},
}


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "mini"
    save_pipeline(build_pipeline(TOY, seed=0), folder)
    return folder


@pytest.fixture
def tree(tmp_path, toy_folder):
    """A repository with a mini, and formats of which two need packages that nobody has."""
    for group, configs in (("model", MODELS), ("variant", VARIANTS)):
        (tmp_path / "conf" / group).mkdir(parents=True)
        for name, config in configs.items():
            (tmp_path / "conf" / group / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "quant" / "formats").mkdir(parents=True)
    sources = {
        "formats/w8a8.py": "import torch\n",
        "formats/nf4.py": "def encode():\n    from nothing_at_all import x\n",
        "formats/q4_k.py": "import torch\n",
        "gguf_writer.py": "import nowhere_at_all\n",
    }
    for name, text in sources.items():
        (tmp_path / "quant" / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    shutil.copytree(toy_folder, tmp_path / "models" / "mini")
    return tmp_path


def by_name(rows) -> dict[str, Row]:
    named = {row.name: row for row in rows}
    assert len(named) == len(rows), "two rows of one name would hide each other in the JSON"
    return named


def test_packages_are_compared_with_what_is_asked_for(tree):
    rows = by_name(package_rows(tree))
    assert rows["python"].detail == f"{sys.version.split()[0]}, >=3.11"
    assert rows["numpy"].ok
    assert rows["missing-thing"].detail == "not installed; pip install -e ."
    assert not rows["torch"].ok and "expected <1; pip install -e ." in rows["torch"].detail


def test_extras_say_what_they_lack(tree):
    rows = by_name(extra_rows(tree))
    assert rows["test"] == Row("extras", "test", True, "installed")
    assert not rows["gguf"].ok
    assert rows["gguf"].detail == ("needs nowhere-at-all (not installed): pip install -e '.[gguf]'")


def test_weights_say_what_is_there_and_how_to_get_the_rest(tree):
    rows = by_name(weight_rows(tree))
    assert rows["mini"].ok and rows["mini"].detail.startswith("bf16, ")
    assert rows["planted"] == Row(
        "weights",
        "planted",
        False,
        "not in made/planted: python scripts/plant_outliers.py model=planted",
    )
    assert "python scripts/download.py fp8 --to made/big" in rows["big"].detail
    assert set(rows) == {"mini", "planted", "big"}


def test_a_bundled_model_that_is_gone(tree):
    shutil.rmtree(tree / "models" / "mini")
    row = by_name(weight_rows(tree))["mini"]
    assert not row.ok
    assert "comes with the repository, restore it from there" in row.detail


def test_a_damaged_model_is_a_row(tree):
    (tree / "models" / "mini" / "transformer" / "config.json").unlink()
    row = by_name(weight_rows(tree))["mini"]
    assert not row.ok
    assert "transformer/config.json does not exist" in row.detail


def test_calibrations_and_checkpoints_are_listed(tree):
    made = tree / "checkpoints" / "mini"
    for name in ("a-1/model.safetensors", "fp8-2/transformer/x.safetensors", "q4_k-3/model.gguf"):
        (made / name).parent.mkdir(parents=True)
        (made / name).touch()
    (made / ".half-4.12.partial").mkdir()
    (made / ".half-4.12.partial" / "model.safetensors").touch()
    (made / "empty-5").mkdir()
    (made / "calibration-1.safetensors").touch()
    (made / "calibration-2.safetensors").touch()
    assert checkpoint_names(tree, "mini") == ["a-1", "fp8-2", "q4_k-3"]
    rows = by_name(weight_rows(tree))
    assert rows["mini: checkpoints"] == Row(
        "weights", "mini: checkpoints", None, "a-1, fp8-2, q4_k-3"
    )
    assert rows["mini: calibrations"].detail == "2"


def test_variants_say_with_what_they_run_and_what_they_need(tree):
    rows = by_name(variant_rows(tree))
    assert rows["int8"] == Row("variants", "int8", True, "with mini; big, planted: needs weights")
    assert rows["bf16"].ok
    assert "Triton kernels on a GPU, their reference elsewhere" in rows["fused"].detail
    assert not rows["q4"].ok
    assert rows["q4"].detail.startswith("needs extra gguf: pip install -e '.[gguf]'")


def test_an_extra_that_only_makes_files_is_not_needed_to_read_one(tree):
    row = by_name(variant_rows(tree))["nf4"]
    assert not row.ok and row.detail.startswith("needs extra nf4")
    path = tree / "checkpoints" / "mini" / "nf4-0123" / "transformer" / "x.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    row = by_name(variant_rows(tree))["nf4"]
    assert row.ok
    assert row.detail.endswith("making another file needs extra nf4: pip install -e '.[nf4]'")
    assert not by_name(variant_rows(tree))["q4"].ok  # a file of another format does not help


def test_without_any_weights_no_variant_runs(tree):
    shutil.rmtree(tree / "models" / "mini")
    rows = by_name(variant_rows(tree))
    assert not any(row.ok for row in rows.values())
    assert rows["bf16"].detail == "needs weights of a model"


def test_scorers_of_this_repository():
    from dit8.eval.scorers import SCORERS

    rows = by_name(scorer_rows())
    assert list(rows) == list(SCORERS)
    assert rows["psnr"] == Row("scorers", "psnr", True, "dB, against a reference variant")
    assert "reference" not in rows["seconds"].detail


def test_a_scorer_that_cannot_run_says_why(monkeypatch, tmp_path):
    from dit8.eval import reading

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(reading.READERS, "rapidocr", NoReader)
    rows = by_name(scorer_rows())
    assert rows["ocr_exact"] == Row("scorers", "ocr_exact", False, "not measured: x; get it with y")
    assert not rows["lpips"].ok and rows["lpips"].detail.startswith("not measured: ")
    assert rows["psnr"].ok


class NoReader:
    @staticmethod
    def obstacle():
        return "x; get it with y"


def test_every_section_of_this_repository_can_be_examined():
    rows = examine(ROOT)
    sections = [row.section for row in rows]
    assert list(dict.fromkeys(sections)) == [
        "machine",
        "packages",
        "extras",
        "weights",
        "variants",
        "scorers",
    ]
    assert not [row for row in rows if row.name == "examination"]
    names = {row.name for row in rows if row.section == "variants"}
    assert names == {path.stem for path in (ROOT / "conf" / "variant").glob("*.yaml")}
    assert by_name([row for row in rows if row.section == "weights"])["mini"].ok


def test_what_breaks_in_one_section_is_a_row_of_it(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("several\n  lines")

    monkeypatch.setattr(doctor, "torch_rows", fail)
    monkeypatch.setattr(doctor, "query_gpus", lambda: None)
    rows = examine(tmp_path)  # an empty folder: no pyproject.toml, no conf
    assert Row("machine", "examination", False, "failed (RuntimeError: several lines)") in rows
    broken = {row.section for row in rows if row.name == "examination"}
    assert broken == {"machine", "packages", "extras"}
    assert "memory" in {row.name for row in rows}


def test_a_broken_yaml_is_a_row(tree):
    (tree / "conf" / "variant" / "bad.yaml").write_text("a: [")
    rows = {(row.section, row.name): row for row in examine(tree)}
    assert "ParserError" in rows["variants", "examination"].detail
    assert rows["weights", "mini"].ok


def test_report_is_json_by_section():
    rows = [Row("a", "x", True, "1"), Row("b", "x", None, "2"), Row("a", "y", False, "3")]
    document = report(rows)
    assert document == {
        "a": {"x": {"ok": True, "detail": "1"}, "y": {"ok": False, "detail": "3"}},
        "b": {"x": {"ok": None, "detail": "2"}},
    }
    assert json.loads(json.dumps(document)) == document
