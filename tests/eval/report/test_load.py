import json
import shutil

import pytest

from dit8.eval.ledger import SCORES, read_table, upsert
from dit8.eval.report.load import compared_with, load
from dit8.quant.errors import UserError

REFERENCE, GOOD, BAD, NOISE = (digit * 12 for digit in "0123")


def edit_run(folder, change):
    path = folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


def drop_rows(results, wanted):
    """Remove the ledger's rows whose cells hold all of `wanted`."""
    path = results / "scores.csv"
    rows = read_table(path, SCORES).to_dict("records")
    kept = [row for row in rows if not set(wanted) <= {str(cell) for cell in row.values()}]
    assert len(kept) < len(rows)
    path.unlink()
    upsert(path, SCORES, kept)


def test_runs_come_in_the_order_given_with_what_is_known_of_them(settled):
    found = load([settled.runs / BAD, settled.runs / GOOD, settled.runs / NOISE], settled.results)
    assert [column.label for column in found.columns] == ["bf16", "q4_k", "int8"]
    assert found.reference.key.run_id == REFERENCE  # found beside the others
    assert [run.label for run in found.harmless] == ["bf16 (bfloat16)"]
    worse = found.variants[0]
    assert worse.scores["psnr"]["p-05", 105] == 20.0
    assert worse.scores["ocr_exact"]["p-00", 100] == 0.0
    assert worse.latency["image"] == {"n": 60, "p20_ms": 92, "p50_ms": 100, "p80_ms": 120}
    assert worse.record["branch_bytes"] == 1_200_000
    assert "psnr" not in found.reference.scores
    assert set(found.rows["run_id"]) == {REFERENCE, GOOD, BAD, NOISE}


def test_a_variant_that_occurs_twice_is_told_apart(place):
    edit_run(place.runs / BAD, lambda record: record["key"].update(variant="int8", recipe="naive"))
    found = load([place.runs / GOOD, place.runs / BAD], place.results)
    assert [column.label for column in found.variants] == ["int8 (none)", "int8 (naive)"]
    edit_run(place.runs / BAD, lambda record: record["key"].update(recipe="none"))
    found = load([place.runs / GOOD, place.runs / BAD], place.results)
    assert [column.label for column in found.variants] == ["int8 111111", "int8 222222"]


def test_a_run_alone_is_its_own_reference(settled):
    found = load([settled.runs / REFERENCE], settled.results)
    assert found.variants == () and found.reference.label == "bf16"


def without_pictures(place):
    min((place.runs / GOOD).glob("*.png")).unlink()


def other_reference(place):
    edit_run(place.runs / BAD, lambda record: record.update(reference="a" * 12))


def other_model(place):
    edit_run(place.runs / BAD, lambda record: record["key"].update(model="ideogram4"))


def other_prompts(place):
    edit_run(place.runs / BAD, lambda record: record["prompts"].pop())


def compared_with_nothing(place):
    edit_run(place.runs / BAD, lambda record: record.update(reference=None))


def lost_reference(place):
    shutil.rmtree(place.runs / REFERENCE)


def unscored(place):
    drop_rows(place.results, [BAD])


def half_scored(place):
    drop_rows(place.results, [BAD, "p-07", "ocr_ned"])


def damaged_record(place):
    (place.results / "runs" / f"{BAD}.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (without_pictures, "run 1{12} lacks 1 of 60 pictures, first p-00"),
        (other_reference, "are compared with 2 references, 0{12}, a{12}; expected one"),
        (other_model, "run 2{12} has model ideogram4, expected mini as in reference 0{12}"),
        (other_prompts, r"1 pictures of run 2{12} and reference 0{12} .* p-59 \(seed 159\)"),
        (compared_with_nothing, "run 2{12} of q4_k is compared with no run, expected reference 0+"),
        (lost_reference, "reference, run 0{12}, is neither given nor beside.*pass its folder"),
        (unscored, r"scores.csv has no rows of run 2{12} \(q4_k\); score it"),
        (half_scored, r"ocr_ned has no value for 1 of 60 pictures of run 2{12}, p-07 \(seed 107\)"),
        (damaged_record, r"222.json is not valid JSON .*; restore it"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(place, damage, match):
    damage(place)
    with pytest.raises(UserError, match=match):
        load([place.runs / GOOD, place.runs / BAD], place.results)


def test_the_same_run_twice_and_no_run_at_all_are_refused(settled):
    with pytest.raises(UserError, match="run 1{12} is given twice, expected each once"):
        load([settled.runs / GOOD, settled.runs / GOOD], settled.results)
    with pytest.raises(UserError, match="got no runs, expected at least one; pass folders"):
        load([], settled.results)


def test_a_reference_may_stand_alone_with_its_noise_floor(settled):
    found = load([settled.runs / REFERENCE, settled.runs / NOISE], settled.results)
    assert found.reference.key.run_id == REFERENCE and found.variants == ()
    assert [run.key.run_id for run in found.harmless] == [NOISE]


def test_variants_without_a_reference_are_refused(place):
    edit_run(place.runs / GOOD, lambda record: record.update(reference=None))
    with pytest.raises(UserError, match="none of the 2 runs is compared with another"):
        load([place.runs / GOOD, place.runs / NOISE], place.results)


def test_reading_scores_may_lack_prompts_without_text(place):
    for folder in place.folders:
        edit_run(folder, lambda record: record["prompts"][7].update(texts=[]))
    drop_rows(place.results, ["p-07", "ocr_ned"])
    found = load(place.folders, place.results)
    assert len(found.variants[0].scores["ocr_ned"]) == 59
    assert len(found.variants[0].scores["psnr"]) == 60


def test_all_that_was_compared_with_a_reference_is_found(place):
    def names():
        return [folder.name for folder in compared_with(place.runs / REFERENCE, place.results)]

    assert names() == [REFERENCE, GOOD, BAD, NOISE]  # by variant, the noise floor last
    edit_run(place.runs / BAD, lambda record: record.update(reference="a" * 12))
    assert names() == [REFERENCE, GOOD, NOISE]
    min((place.runs / GOOD).glob("*.png")).unlink()  # still being drawn
    assert names() == [REFERENCE, NOISE]
    record = place.results / "runs" / f"{NOISE}.json"
    record.write_text(record.read_text().replace('"steps": 2', '"steps": 20'))
    assert names() == [REFERENCE]  # another sampler is no noise


def test_runs_without_rows_are_not_there_yet(place):
    drop_rows(place.results, [GOOD])
    assert GOOD not in set(read_table(place.results / "scores.csv", SCORES)["run_id"])
    found = compared_with(place.runs / REFERENCE, place.results)
    assert [folder.name for folder in found] == [REFERENCE, BAD, NOISE]
