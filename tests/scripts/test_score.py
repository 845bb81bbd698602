"""scripts/score.py: the rows of evaluate, from pictures alone, folders or archives."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from dit8.eval.ledger import SCORES, read_record, read_table


def rows_of(ledger: Path, *run_ids: str) -> list[list]:
    rows = read_table(ledger, SCORES)
    return rows[rows["run_id"].isin(run_ids)].to_numpy().tolist()


@pytest.fixture
def ids(drawn):
    return [drawn.documents[variant]["run_id"] for variant in ("int8", "bf16")]


def test_folders_give_the_rows_of_evaluate(drawn, ids, tmp_path, run_here):
    folders = [str(drawn.folder("int8")), "--reference", str(drawn.folder("bf16"))]
    ended = run_here("score", *folders, "--results", str(tmp_path))
    assert ended.code == 0, ended.stderr
    assert ended.lines == []
    expected = rows_of(drawn.place.results / "scores.csv", *ids)
    clip_mini = find_spec("open_clip") is not None  # one of the defaults, with the extra clip
    assert len(expected) == 4 * (4 + 7 + 2 * clip_mini)
    assert rows_of(tmp_path / "scores.csv", *ids) == expected  # seconds come with the pictures
    document = drawn.documents["int8"]
    assert ended.document == {key: document[key] for key in ended.document}
    lacking = {"not_measured", "failed"}
    assert set(ended.document) == {"variant", "n", "backend", "scores", "paired"} | lacking
    assert ended.document["not_measured"] == ended.document["failed"] == {}
    folders = (tmp_path / "runs", drawn.place.results / "runs")
    own, first = (read_record(folder / f"{ids[0]}.json") for folder in folders)
    assert own == {"scorers": first["scorers"]}


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
    assert ended.document == {
        "variant": "bf16", "n": 4, "backend": "torch-cpu", "not_measured": {}, "failed": {}
    }  # fmt: skip
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


def test_a_damaged_picture_is_named_and_the_rest_is_scored(drawn, ids, tmp_path, run_here):
    run = tmp_path / ids[0]
    shutil.copytree(drawn.folder("int8"), run)
    picture = min(run.glob("*.png"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[: 2 * len(whole) // 3])
    results = tmp_path / "results"
    command = [str(run), "--reference", str(drawn.folder("bf16")), "--results", str(results)]
    ended = run_here("score", *command, "--scorers", "psnr", "ocr_ned", "latent_error", "seconds")
    assert ended.code == 1
    document = ended.document
    assert set(document["failed"]) == {"psnr", "ocr_ned"}
    assert all(f"image {picture}: cannot be read" in why for why in document["failed"].values())
    assert set(document["scores"]) == {"latent_error", "seconds"}
    assert [line.partition(": ")[0] for line in ended.lines] == ["psnr failed", "ocr_ned failed"]
    assert "| latent_error" in ended.stdout and "| psnr" not in ended.stdout
    # once it is whole again, only what is missing is computed
    picture.write_bytes(whole)
    ended = run_here("score", *command, "--scorers", "psnr", "ocr_ned", "latent_error", "seconds")
    assert ended.code == 0 and ended.document["failed"] == {}
    assert ended.document["scores"].keys() == {"psnr", "ocr_ned", "latent_error", "seconds"}


def test_what_cannot_run_here_is_reported_and_not_an_error(drawn, tmp_path, run_here, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    command = [str(drawn.folder("int8")), "--reference", str(drawn.folder("bf16"))]
    options = ["--scorers", "lpips", "psnr", "--results", str(tmp_path / "results")]
    ended = run_here("score", *command, *options)
    assert ended.code == 0, ended.stderr
    assert set(ended.document["not_measured"]) == {"lpips"}
    assert set(ended.document["scores"]) == {"psnr"}
    (line,) = ended.lines
    assert line.startswith("lpips not measured: ") and "; get it with " in line
    ended = run_here("score", *command, *options[:2], *options[3:])
    assert ended.code == 0 and ended.document["scores"] == {}
    assert "mean [95 %]" not in ended.stdout


def test_settings_of_a_scorer(drawn, tmp_path, run_here):
    missing = tmp_path / "none.pth"
    command = [str(drawn.folder("int8")), "--reference", str(drawn.folder("bf16"))]
    command += ["--results", str(tmp_path), "--scorers", "lpips"]
    ended = run_here("score", *command, "--set", f"lpips.checkpoint={missing}")
    assert ended.code == 0, ended.stderr
    reason = ended.document["not_measured"]["lpips"]
    assert f"checkpoint {missing} of lpips does not exist" in reason or "not installed" in reason


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
        "unknown text": ([bf16, "--score-text", "poem"], "score_text must be one of .*got 'poem'"),
        "setting": ([bf16, "--set", "psnr.cap=1"], "scorer psnr has no setting 'cap', expected"),
        "no setting": ([bf16, "--set", "psnr"], "must look like clipscore.backbone=.*got 'psnr'"),
    }


@pytest.mark.parametrize(
    "mistake",
    [
        *("missing reference", "another reference", "no such run", "no archive", "unfinished"),
        *("unknown scorer", "unknown text", "setting", "no setting"),
    ],
)
def test_one_sentence(drawn, tmp_path, run_here, one_sentence, mistake):
    arguments, pattern = mistakes(drawn, tmp_path)[mistake]
    results = tmp_path / "results"
    one_sentence(run_here("score", *arguments, "--results", str(results)), "score", pattern)
    assert not (results / "scores.csv").exists()
