import json
from dataclasses import replace

import pytest

from dit8.eval.report import build
from dit8.eval.report.build import make_page, make_report
from dit8.eval.report.data import Measure
from dit8.eval.report.gallery import size_of_change
from dit8.eval.report.load import load
from dit8.eval.report.origins import describe_origins, page_facts, weight_sizes
from dit8.eval.score import FAILED, MEASURED, NOT_MEASURED, write_entry

REFERENCE, GOOD, BAD, NOISE = (digit * 12 for digit in "0123")


@pytest.fixture
def evaluation(settled):
    return load(settled.folders, settled.results)


def test_the_gallery_shows_every_prompt_the_largest_change_first(page):
    assert len(page.exhibits) == 60 and page.ranked_by == "psnr"
    first, second = page.exhibits[:2]
    assert (first.key, first.change) == (("p-05", 105), 80.0)
    assert (second.key, second.change) == (("p-03", 103), 70.0)
    rest = [exhibit.key[0] for exhibit in page.exhibits[2:]]
    assert rest == sorted(rest)  # ties stay in the prompts' order
    assert [picture.label for picture in first.pictures] == ["bf16", "int8", "q4_k"]
    assert first.pictures[0].difference is None and first.pictures[0].changes == {}
    assert first.pictures[2].scores["ocr_ned"] == 0.0
    assert json.loads(first.caption)["n"] == 5 and "\n" in first.caption
    lost = next(exhibit for exhibit in page.exhibits if exhibit.key[0] == "p-04")
    assert [picture.found for picture in lost.pictures] == [(True,), (True,), (False,)]
    assert lost.pictures[2].lines == ("SMUDGE",)
    assert "All 60 prompts, the largest change in psnr first" in page.gallery_note


@pytest.mark.parametrize(
    ("measure", "value", "reference", "size"),
    [
        (Measure("psnr", "dB", True, (0.0, 100.0), "", True), 42.0, None, 58.0),
        (Measure("latent_error", "", False, (0.0, float("inf")), "", True), 0.25, None, 0.25),
        (Measure("ocr_exact", "", True, (0.0, 1.0), "", False), 0.25, 1.0, 0.75),
    ],
)
def test_changes_are_distances(measure, value, reference, size):
    assert size_of_change(measure, value, reference) == size


def test_speeds_are_compared_with_the_reference(page):
    image = [speed for speed in page.speeds if speed.stage == "image"]
    assert [(speed.label, speed.p20_ms, speed.ratio) for speed in image] == [
        *(("bf16", 90.0, 1.0), ("int8", 91.0, 1.0), ("q4_k", 92.0, 1.0)),
    ]


def test_a_reference_with_its_noise_floor_alone_makes_a_page(settled, margins, tmp_path):
    alone = load([settled.runs / REFERENCE, settled.runs / NOISE], settled.results)
    path, page = make_report(alone, tmp_path, margins=margins)
    assert page.verdicts == () and len(page.exhibits) == 60 and path.stat().st_size > 0


def test_without_a_reader_the_page_says_so(evaluation, monkeypatch, margins):
    monkeypatch.setattr(build, "reading_obstacle", lambda: "rapidocr is not installed; get it")
    page = make_page(evaluation, margins, 1e7)
    assert (
        "The texts in the pictures were not read: rapidocr is not installed; get it" in page.notes
    )
    assert page.exhibits[0].pictures[0].lines is None


def test_scores_that_are_missing_are_named_once(place, margins, fake_reader):
    for run_id in ("0" * 12, GOOD):
        entry = {"status": NOT_MEASURED, "reason": "no weights; get them with `x`"}
        write_entry(place.results / "runs", run_id, "clipscore", entry)
    entry = {"status": FAILED, "reason": "lpips: prompt p-03 is NaN"}
    write_entry(place.results / "runs", BAD, "lpips", entry)
    write_entry(place.results / "runs", BAD, "psnr", entry)  # failed once, its rows are there
    notes = make_page(load(place.folders, place.results), margins, 1e7).notes
    assert not any(note.startswith("psnr") for note in notes)
    assert "clipscore not measured (bf16, int8): no weights; get them with `x`" in notes
    assert "lpips failed (q4_k): lpips: prompt p-03 is NaN" in notes


def test_what_a_score_depends_on_is_shown(place, margins, fake_reader):
    identity = {"reader": "v6", "weights": "ab" * 32, "settings": {"side": 512}}
    entry = {"status": MEASURED, "identity": identity}
    write_entry(place.results / "runs", GOOD, "ocr_ned", entry)
    page = make_page(load(place.folders, place.results), margins, 1e7)
    shown = {table.measure.name: table.measure.identity for table in page.tables}
    assert shown == {"ocr_exact": "", "ocr_ned": "reader v6, weights abababababab", "psnr": ""}


def test_unknown_sizes_are_said_and_nothing_is_drawn(place, margins, fake_reader):
    for record in (place.results / "runs").glob("*.json"):
        kept = json.loads(record.read_text())
        del kept["branch_bytes"]
        record.write_text(json.dumps(kept))
    page = make_page(load(place.folders, place.results), margins, 1e7)
    assert page.sizes == {}
    assert any(note.startswith("Quality over memory is not drawn") for note in page.notes)


def test_only_the_mini_carries_its_caveat(evaluation, page, margins, fake_reader):
    assert page.caveat and page.title == "mini, tiny: 2 variants against bf16"
    run = evaluation.reference.run
    real = replace(evaluation.reference, run=replace(run, key=replace(run.key, model="ideogram4")))
    other = make_page(replace(evaluation, reference=real), margins, 1e7)
    assert other.caveat == "" and other.title.startswith("ideogram4, tiny")


def test_a_report_is_written(evaluation, tmp_path, margins, fake_reader):
    path, page = make_report(evaluation, tmp_path / "out", margins=margins, limit_mb=1.0)
    assert path == tmp_path / "out" / "report.html"
    assert page.verdicts[0].sentence in path.read_text(encoding="utf-8")
    assert path.stat().st_size < 2e6  # the pictures' limit, and as much again for the rest


def test_origins_tell_what_made_a_run(evaluation):
    origins = {origin.label: origin for origin in describe_origins(evaluation)}
    assert list(origins) == ["bf16", "int8", "q4_k", "bf16 (bfloat16)"]
    facts = dict(origins["q4_k"].facts)
    assert facts["run"] == BAD and facts["commit"] == "0123456789ab"
    assert facts["hardware"] == "a test" and "recipe" not in facts
    assert json.loads(origins["q4_k"].record)["branch_bytes"] == 1_200_000


def test_changed_files_are_told(evaluation):
    dirty = replace(
        evaluation.reference,
        record=dict(evaluation.reference.record) | {"git": {"commit": "abc", "dirty": True}},
    )
    origin = describe_origins(replace(evaluation, reference=dirty))[0]
    assert dict(origin.facts)["commit"] == "abc and changes"


def test_a_run_without_a_record_has_an_origin(place):
    (place.results / "runs" / f"{GOOD}.json").unlink()
    found = load(place.folders, place.results)
    origin = describe_origins(found)[1]
    assert dict(origin.facts)["run"] == GOOD and "there is none" in origin.record
    assert set(weight_sizes(found)) == {"bf16", "q4_k"}


def test_facts_of_the_head(evaluation):
    facts = dict(page_facts(evaluation))
    assert facts["model"] == "mini" and facts["prompts"] == "tiny, 60"
    assert facts["drawn"] == "2026-01-02" and facts["arithmetic"] == "float32"
