import json

import pytest

from dit8.eval.score import (
    describe_scorer,
    differing,
    read_entries,
    record_path,
    write_entry,
)
from dit8.eval.scorers import SCORERS
from dit8.quant.errors import UserError

RUN = "0123456789ab"


def test_entries_are_added_to_those_that_are_there(tmp_path):
    assert read_entries(tmp_path / "runs", RUN) == {}
    write_entry(tmp_path / "runs", RUN, "psnr", {"status": "measured", "pictures": 3})
    write_entry(tmp_path / "runs", RUN, "lpips", {"status": "not measured", "reason": "—"})
    path = tmp_path / "runs" / f"{RUN}.scorers.json"
    assert path == record_path(tmp_path / "runs", RUN)
    assert (
        json.loads(path.read_text(encoding="utf-8"))
        == read_entries(tmp_path / "runs", RUN)
        == {
            "psnr": {"status": "measured", "pictures": 3},
            "lpips": {"status": "not measured", "reason": "—"},
        }
    )
    assert "—" in path.read_text(encoding="utf-8") and path.read_text().endswith("}\n")


def test_a_measurement_is_replaced_by_another_one_only(tmp_path):
    def entry():
        return read_entries(tmp_path, RUN)["psnr"]

    write_entry(tmp_path, RUN, "psnr", {"status": "failed", "reason": "x"})
    write_entry(tmp_path, RUN, "psnr", {"status": "measured", "pictures": 1})
    for status in ("failed", "not measured"):
        write_entry(tmp_path, RUN, "psnr", {"status": status, "reason": "y"})
        assert entry() == {"status": "measured", "pictures": 1}
    write_entry(tmp_path, RUN, "psnr", {"status": "measured", "pictures": 2})
    assert entry()["pictures"] == 2


def test_nothing_is_written_where_nothing_changes(tmp_path):
    write_entry(tmp_path, RUN, "psnr", {"status": "measured"})
    before = record_path(tmp_path, RUN).stat().st_mtime_ns
    write_entry(tmp_path, RUN, "psnr", {"status": "measured"})
    assert record_path(tmp_path, RUN).stat().st_mtime_ns == before


def test_a_damaged_record_is_named(tmp_path):
    record_path(tmp_path, RUN).write_text("{")
    match = f"{RUN}.scorers.json must be the JSON record of a run's scorers, got .*; restore it"
    with pytest.raises(UserError, match=match):
        read_entries(tmp_path, RUN)


def test_every_scorer_can_be_described():
    for name, scorer in SCORERS.items():
        entry = describe_scorer(scorer)
        json.dumps(entry, allow_nan=False)
        assert entry["direction"].split()[0] == ("higher" if scorer.higher_is_better else "lower")
        assert entry["unit"] == scorer.unit and len(entry["range"]) == 2, name


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"a": 1, "b": 2}, None),
        ({"a": 1, "b": 3}, "b was 2, is 3"),
        ({"a": 1}, "b was 2, is None"),
        ({"a": 1, "b": 2, "c": "x"}, "c was None, is 'x'"),
        ({"a": 1, "b": 2, "environment": {"torch": "9"}}, None),
    ],
)
def test_identities_are_compared_without_versions(now, said):
    assert differing({"a": 1, "b": 2}, now) == said
