"""scripts/report.py: from drawn runs or their archives to one page, offline."""

import json
import re
import shutil

import pytest


@pytest.fixture
def options(drawn, tmp_path):
    return ["--results", str(drawn.place.results), "--out", str(tmp_path / "out")]


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_page_of_what_evaluate_drew(drawn, options, tmp_path, run_here):
    folders = [str(drawn.folder(variant)) for variant in ("fused_int8", "int8")]
    ended = run_here("report", *folders, *options)
    assert ended.code == 0, ended.stderr
    assert ended.lines == []
    document = ended.document
    assert document["report"] == str(tmp_path / "out" / "report.html")
    assert document["prompts"] == 4
    assert list(document["verdicts"]) == ["fused_int8", "int8"]  # in the order given
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert document["megabytes"] == round(len(page.encode()) / 1e6, 1)
    assert page.count("<article") == 4 and page.count('alt="Difference of int8 to bf16"') == 4
    assert 'class="read' in page  # the genuine reader, the pictures show nothing legible
    for variant in ("bf16", "int8", "fused_int8"):
        assert drawn.documents[variant]["run_id"] in page
        assert (drawn.folder(variant) / "readings.json").exists()
    assert {"report.html", "forest_psnr.svg", "latency_image.svg"} <= names_in(tmp_path / "out")


def test_all_of_a_reference_in_one_option(drawn, options, run_here):
    ended = run_here("report", "--all-of", str(drawn.folder("bf16")), *options)
    assert ended.code == 0, ended.stderr
    assert set(ended.document["verdicts"]) == {"int8", "fused_int8"}


def test_archives_travel(drawn, options, tmp_path, run_here):
    for variant in ("int8", "bf16"):
        shutil.copy(drawn.documents[variant]["archive"], tmp_path / f"{variant}.tar")
    archives = [str(tmp_path / "int8.tar"), str(tmp_path / "bf16.tar")]
    ended = run_here("report", *archives, *options)
    assert ended.code == 0, ended.stderr
    assert list(ended.document["verdicts"]) == ["int8"]
    assert names_in(tmp_path) == {"int8.tar", "bf16.tar", "out"}


def test_made_twice_the_page_is_the_same(drawn, options, tmp_path, run_here):
    command = [str(drawn.folder("int8")), *options]
    pages = []
    for _ in range(2):
        assert run_here("report", *command).code == 0
        pages.append((tmp_path / "out" / "report.html").read_bytes())
    assert pages[0] == pages[1]


def mistakes(drawn, tmp_path):
    int8 = str(drawn.folder("int8"))
    unscored = tmp_path / "unscored"
    unscored.mkdir()
    lonely = tmp_path / "lonely" / "run"
    shutil.copytree(int8, lonely)
    torn = tmp_path / "torn"
    for variant in ("int8", "bf16"):
        shutil.copytree(drawn.folder(variant), torn / drawn.documents[variant]["run_id"])
    folder = torn / drawn.documents["int8"]["run_id"]
    picture = min(folder.glob("*.png"))
    # long enough that its metadata is whole, which is all that reading a run looks at
    data = picture.read_bytes()
    picture.write_bytes(data[: len(data) - 200])
    return {
        "no runs": ([], "got no runs, expected at least one; pass folders of runs"),
        "twice": ([int8, int8], "run [0-9a-f]{12} is given twice"),
        "no such run": ([str(tmp_path / "none")], "must describe a run.*pass a folder"),
        "lonely": ([str(lonely)], "reference, run .* is neither given nor beside"),
        "torn": ([str(folder)], re.escape(picture.name)),
        "unscored": ([int8, "--results", str(unscored)], "has no rows of run .*score it with"),
        "too small": ([int8, "--limit-mb", "0.0001"], "pictures take more than 0.0001 MB even at"),
        "no megabytes": ([int8, "--limit-mb", "0"], "limit-mb above 0, got 1 and 0; correct"),
        "no readers": ([int8, "--readers", "0"], "readers must be at least 1 .* got 0 and 16"),
    }


@pytest.mark.parametrize(
    "mistake",
    [
        *("no runs", "twice", "no such run", "lonely", "torn", "unscored", "too small"),
        *("no megabytes", "no readers"),
    ],
)
def test_one_sentence(drawn, options, tmp_path, run_here, one_sentence, mistake):
    arguments, pattern = mistakes(drawn, tmp_path)[mistake]
    one_sentence(run_here("report", *options, *arguments), "report", pattern)
    assert not (tmp_path / "out").exists()


def test_the_document_is_one_compact_line(drawn, options, run_here):
    last = run_here("report", str(drawn.folder("int8")), *options).stdout.splitlines()[-1]
    assert set(json.loads(last)) == {"report", "megabytes", "prompts", "verdicts"}
