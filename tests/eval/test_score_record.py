import json
import subprocess
import sys
import time

import pytest

from dit8.eval.ledger import read_record, was_only_scored, write_run
from dit8.eval.score import (
    describe_scorer,
    differing,
    read_entries,
    write_entry,
)
from dit8.eval.scorers import SCORERS
from dit8.quant.errors import UserError

RUN = "0123456789ab"


def test_entries_are_added_to_those_that_are_there(tmp_path):
    assert read_entries(tmp_path / "runs", RUN) == {}
    write_entry(tmp_path / "runs", RUN, "psnr", {"status": "measured", "pictures": 3})
    write_entry(tmp_path / "runs", RUN, "lpips", {"status": "not measured", "reason": "—"})
    path = tmp_path / "runs" / f"{RUN}.json"
    assert (
        json.loads(path.read_text(encoding="utf-8"))["scorers"]
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
    before = (tmp_path / f"{RUN}.json").stat().st_mtime_ns
    write_entry(tmp_path, RUN, "psnr", {"status": "measured"})
    assert (tmp_path / f"{RUN}.json").stat().st_mtime_ns == before


def test_what_drew_a_run_and_what_scored_it_share_one_record(tmp_path):
    """Whoever comes second, a score or a run that is drawn again, keeps what the first wrote."""
    write_entry(tmp_path / "runs", RUN, "psnr", {"status": "measured"})
    assert was_only_scored(read_record(tmp_path / "runs" / f"{RUN}.json"))
    for started in ("2026-01-01", "2026-01-02"):
        write_run(tmp_path / "runs", RUN, {"started": started})
    write_entry(tmp_path / "runs", RUN, "ssim", {"status": "measured"})
    entries = {"psnr": {"status": "measured"}, "ssim": {"status": "measured"}}
    record = read_record(tmp_path / "runs" / f"{RUN}.json")
    assert record == {"started": "2026-01-02", "scorers": entries}


def test_two_processes_lose_no_entry(tmp_path):
    """Each of two processes writes ten entries, the parent the run ten times."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom dit8.eval.score import write_entry\n"
        "for n in range(10):\n"
        f"    write_entry(Path(sys.argv[1]), '{RUN}', sys.argv[2] + str(n), {{'status': 'failed'}})"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    writers = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    for n in range(10):
        write_run(tmp_path, RUN, {"started": str(n)})
        time.sleep(0.05)
    while any(writer.poll() is None for writer in writers):
        write_run(tmp_path, RUN, {"started": "9"})
    assert [writer.returncode for writer in writers] == [0, 0]
    entries = {f"{name}{n}" for name in "ab" for n in range(10)}
    assert set(read_entries(tmp_path, RUN)) == entries
    assert read_record(tmp_path / f"{RUN}.json")["started"] == "9"


def test_entries_of_an_older_version_count_and_move(tmp_path):
    older = {"psnr": {"status": "measured"}, "ssim": {"status": "failed"}}
    (tmp_path / f"{RUN}.scorers.json").write_text(json.dumps(older))
    assert read_entries(tmp_path, RUN) == older
    write_entry(tmp_path, RUN, "ssim", {"status": "measured"})
    moved = {"psnr": {"status": "measured"}, "ssim": {"status": "measured"}}
    assert read_record(tmp_path / f"{RUN}.json") == {"scorers": moved}
    assert read_entries(tmp_path, RUN) == moved


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / f"{RUN}.json").write_text("{")
    match = rf"{RUN}.json must be the record of a run, got .*; restore it"
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
