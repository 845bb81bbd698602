"""scripts/score.py: the rows of evaluate, from pictures alone, folders or archives."""

import csv
import shutil
from pathlib import Path

import pytest


def rows_of(ledger: Path, *run_ids: str) -> list[list[str]]:
    with open(ledger, newline="", encoding="utf-8") as file:
        return [row for row in csv.reader(file) if row[0] in run_ids]


@pytest.fixture
def ids(drawn):
    return [drawn.documents[variant]["run_id"] for variant in ("int8", "bf16")]


def test_folders_give_the_rows_of_evaluate(drawn, ids, tmp_path, run_here):
    folders = [str(drawn.folder("int8")), "--reference", str(drawn.folder("bf16"))]
    ended = run_here("score", *folders, "--results", str(tmp_path))
    assert ended.code == 0, ended.stderr
    assert ended.lines == []
    expected = rows_of(drawn.place.results / "scores.csv", *ids)
    assert len(expected) == 4 * (4 + 7)
    assert rows_of(tmp_path / "scores.csv", *ids) == expected  # seconds come with the pictures
    document = drawn.documents["int8"]
    assert ended.document == {key: document[key] for key in ended.document}
    assert set(ended.document) == {"variant", "n", "backend", "scores", "paired"}


def test_archives_give_the_same_rows_where_nothing_else_is(drawn, ids, tmp_path, run_script):
    for variant in ("int8", "bf16"):
        shutil.copy(drawn.documents[variant]["archive"], tmp_path / f"{variant}.tar")
    results = tmp_path / "results"
    options = ["--scorers", "psnr", "latent_error", "ocr_ned", "--results", str(results)]
    ended = run_script("score", "int8.tar", "--reference", "bf16.tar", *options, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    wanted = {"psnr", "latent_error", "ocr_ned"}
    expected = rows_of(drawn.place.results / "scores.csv", *ids)
    assert rows_of(results / "scores.csv", *ids) == [row for row in expected if row[10] in wanted]
    assert set(ended.document["scores"]) == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"int8.tar", "bf16.tar", "results"}


def test_the_reference_alone_needs_no_partner(drawn, tmp_path, run_here):
    ended = run_here("score", str(drawn.folder("bf16")), "--results", str(tmp_path))
    assert ended.code == 0, ended.stderr
    assert ended.document == {"variant": "bf16", "n": 4, "backend": "torch-cpu"}
    run_id = drawn.documents["bf16"]["run_id"]
    expected = rows_of(drawn.place.results / "scores.csv", run_id)
    assert rows_of(tmp_path / "scores.csv", run_id) == expected


def test_a_changed_picture_is_scored_again_only_on_request(drawn, ids, tmp_path, run_here):
    run, reference = tmp_path / ids[0], drawn.folder("bf16")
    shutil.copytree(drawn.folder("int8"), run)
    command = [str(run), "--reference", str(reference), "--results", str(tmp_path / "results")]
    command += ["--scorers", "latent_error"]
    assert run_here("score", *command).document["scores"]["latent_error"]["mean"] > 0
    for path in reference.glob("*.safetensors"):
        shutil.copy(path, run / path.name)
    assert run_here("score", *command).document["scores"]["latent_error"]["mean"] > 0
    again = run_here("score", *command, "--overwrite")
    assert again.document["scores"]["latent_error"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def mistakes(drawn, tmp_path):
    int8, bf16, fused = (str(drawn.folder(v)) for v in ("int8", "bf16", "fused_int8"))
    (tmp_path / "no.tar").write_bytes(b"not an archive")
    partial = tmp_path / "partial"
    shutil.copytree(int8, partial)
    min(partial.glob("*.png")).unlink()
    return {
        "missing reference": ([int8], "need the pictures of run .*pass them with --reference"),
        "another reference": ([int8, "--reference", fused], "must be compared with run .*pass"),
        "no such run": ([str(tmp_path / "none")], "must describe a run.*pass a folder"),
        "no archive": ([str(tmp_path / "no.tar")], "must be a packed run.*pack it again"),
        "unfinished": ([str(partial), "--reference", bf16], "lacks 1 of 4 pictures.*finish it"),
        "unknown scorer": ([bf16, "--scorers", "taste"], "scorer 'taste' does not exist, expected"),
    }


@pytest.mark.parametrize(
    "mistake",
    [
        *("missing reference", "another reference", "no such run", "no archive", "unfinished"),
        "unknown scorer",
    ],
)
def test_one_sentence(drawn, tmp_path, run_here, one_sentence, mistake):
    arguments, pattern = mistakes(drawn, tmp_path)[mistake]
    results = tmp_path / "results"
    one_sentence(run_here("score", *arguments, "--results", str(results)), "score", pattern)
    assert not (results / "scores.csv").exists()
