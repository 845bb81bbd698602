import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dit8.eval.ledger import SCORES, read_table, upsert
from dit8.eval.margins import Margin
from dit8.eval.report.harmless import harmless_change, is_harmless
from dit8.eval.report.judge import identity_line, judge, measure_floors, quote, with_minus
from dit8.eval.report.load import load
from dit8.eval.run import Interval
from dit8.eval.stats import mean_interval, paired_interval
from dit8.eval.verdict import BETTER, EQUIVALENT, UNDECIDED, WORSE, Comparison, Verdict, conclude
from dit8.quant.errors import UserError

REFERENCE, GOOD, BAD, NOISE = (digit * 12 for digit in "0123")


@pytest.fixture
def evaluation(settled):
    return load(settled.folders, settled.results)


@pytest.fixture
def judged(evaluation, margins):
    return judge(evaluation, margins)


def test_each_variant_gets_the_verdict_its_scores_deserve(judged):
    assert [(v.label, v.kind) for v in judged.verdicts] == [
        ("int8", "equivalent"),
        ("q4_k", "worse"),
    ]
    good, bad = judged.verdicts
    assert good.sentence.startswith("int8 is equivalent to bf16 by ocr_exact +0.000 [")
    assert "(margin ±0.3)" in good.sentence and good.sentence.endswith(".")
    assert bad.sentence.startswith("q4_k is worse than bf16 by ocr_exact −0.50 [−0.6")
    assert len(good.by_score) == 2  # psnr and seconds judge nothing


def test_the_numbers_are_those_of_eval_stats(evaluation, judged):
    tables = {table.measure.name: table for table in judged.tables}
    assert list(tables) == ["ocr_exact", "ocr_ned", "psnr"]  # relative ones last, no times
    reference, good, bad = tables["ocr_ned"].outcomes
    scores = [column.scores["ocr_ned"] for column in evaluation.columns]
    assert reference.mean == mean_interval(scores[0]) and reference.delta is None
    assert good.delta.estimate == pytest.approx(paired_interval(scores[1], scores[0]).estimate)
    assert good.kind == EQUIVALENT and bad.kind == WORSE
    assert good.p_value < 0.05 < bad.p_value
    assert [outcome.label for outcome in tables["psnr"].outcomes] == ["int8", "q4_k"]
    assert all(o.delta is None and o.kind is None for o in tables["psnr"].outcomes)
    assert tables["ocr_ned"].measure.reason == "one letter in five"


def test_without_margins_nothing_is_called_equivalent(evaluation):
    judged = judge(evaluation, {})
    assert [verdict.kind for verdict in judged.verdicts] == [UNDECIDED, UNDECIDED]
    assert "no score with a margin" in judged.verdicts[0].sentence


def test_the_noise_floor_is_the_harmless_run_against_the_reference(evaluation, judged):
    floors = measure_floors(evaluation)
    assert set(floors) == {"ocr_exact", "ocr_ned", "psnr", "seconds"}
    expected = 0.05 / 60  # one prompt moved by 0.05
    assert floors["ocr_ned"].mean_absolute == pytest.approx(expected)
    assert floors["psnr"].shift.estimate == 40.0
    assert floors["ocr_ned"].change == "dtype bfloat16 instead of float32"
    assert judged.tables[1].measure.floor == floors["ocr_ned"]


def test_of_several_harmless_runs_the_one_that_moved_most_counts(evaluation):
    wilder = evaluation.harmless[0]
    rows = evaluation.rows.copy()
    moved = rows[(rows["run_id"] == NOISE)].copy()
    moved["run_id"] = "4" * 12
    moved["engine"] = "dit8"
    index = moved.index[moved["scorer"] == "ocr_ned"]
    moved.loc[index, "value"] += np.linspace(0, 0.5, len(index))
    key = replace(wilder.key, run_id="4" * 12)
    again = replace(wilder, run=replace(wilder.run, key=key))
    both = replace(
        evaluation, harmless=(wilder, again), rows=pd.concat([rows, moved], ignore_index=True)
    )
    assert measure_floors(both)["ocr_ned"].mean_absolute == pytest.approx(0.25 + 0.05 / 60)


def test_another_sampler_is_no_noise(place, margins):
    record = place.results / "runs" / f"{NOISE}.json"
    record.write_text(record.read_text().replace('"steps": 2', '"steps": 20'))
    match = "run 3{12} is to give the noise floor but differs from the reference in sampler"
    with pytest.raises(UserError, match=match):
        judge(load(place.folders, place.results), margins)


def test_harmless_changes_are_named():
    before, now = {"dtype": "float32", "engine": "stock"}, {"dtype": "bfloat16", "engine": "stock"}
    assert harmless_change(before, now, "x") == "dtype bfloat16 instead of float32"
    assert harmless_change({}, now, "x") == ""  # an old run without a record
    assert is_harmless(before, now)
    assert not is_harmless(before, before) and not is_harmless({}, now)
    assert not is_harmless(before, now | {"model": "other"})


def test_what_is_missing_is_said(settled, judged, margins):
    assert judged.notes == ()
    alone = judge(load([settled.runs / GOOD], settled.results), margins)
    assert any("noise floor was not measured" in note for note in alone.notes)


def test_a_variant_without_a_common_score_is_not_decided(place, margins):
    path = place.results / "scores.csv"
    rows = read_table(path, SCORES)
    kept = rows[~((rows["run_id"] == GOOD) & rows["scorer"].str.contains("ocr"))]
    path.unlink()
    upsert(path, SCORES, kept.to_dict("records"))
    verdict = judge(load(place.folders, place.results), margins).verdicts[0]
    assert verdict.kind == UNDECIDED and verdict.by_score == ()
    assert verdict.sentence == (
        "Whether int8 is equivalent to bf16 is not decided: no score with a margin was measured."
    )


def test_categories_are_broken_down_under_the_labels(judged):
    rows = {(r.scorer, r.category, r.variant): r for r in judged.categories}
    assert rows["ocr_exact", "poster", "q4_k"].delta.estimate == -1.0
    assert rows["ocr_exact", "food & drink", "q4_k"].delta.estimate == 0.0
    assert rows["ocr_exact", "poster", "bf16"].prompts == 30
    assert {scorer for scorer, _, _ in rows} == {"ocr_exact", "ocr_ned"}


def test_two_runs_of_one_variant_stay_apart_in_categories(place, margins):
    run = place.runs / BAD / "run.json"
    record = json.loads(run.read_text(encoding="utf-8"))
    record["key"].update(variant="int8", recipe="naive")
    run.write_text(json.dumps(record), encoding="utf-8")
    judged = judge(load(place.folders, place.results), margins)
    labels = {row.variant for row in judged.categories}
    assert labels == {"bf16", "int8 (none)", "int8 (naive)"}


def comparison(name, kind, margin=0.05):
    delta = Interval(-0.02, -0.05, 0.012, 200, "bca")
    declared = None if margin is None else Margin(name, margin, "u", "r")
    return Comparison(name, delta, 0.2, 0.01, declared, None, Verdict(kind, "-"))


@pytest.mark.parametrize(
    ("kind", "found", "sentence"),
    [
        (
            WORSE,
            [comparison("a", WORSE), comparison("b", EQUIVALENT), comparison("c", UNDECIDED)],
            "x is worse than y by a −0.020 [−0.050, +0.012] (margin ±0.05); not decided by c; "
            "equivalent by b.",
        ),
        (
            UNDECIDED,
            [comparison("a", UNDECIDED), comparison("b", BETTER), comparison("c", WORSE, None)],
            "Whether x is equivalent to y is not decided by a −0.020 [−0.050, +0.012] (margin "
            "±0.05); better by b.",
        ),
        (
            BETTER,
            [comparison("a", BETTER)],
            "x is better than y by a −0.020 [−0.050, +0.012] (margin ±0.05).",
        ),
    ],
)
def test_the_sentence_names_what_decided_and_what_did_not(kind, found, sentence):
    assert conclude("x", "y", found, quote=quote) == Verdict(kind, sentence)


def test_hyphens_before_numbers_become_minus_signs():
    assert with_minus("q4-k: -0.5 [-1, +2], 3-4") == "q4-k: −0.5 [−1, +2], 3-4"


def test_an_identity_is_one_line_with_short_hashes():
    identity = {"sha256": "ab" * 32, "reader": "v6", "settings": {"x": 1}, "side": 3}
    assert identity_line(identity) == "reader v6, sha256 abababababab, side 3"
