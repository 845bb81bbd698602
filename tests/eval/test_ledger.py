import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from dit8.eval import ledger
from dit8.eval.ledger import LATENCY, SCORES, read_table, score_rows, upsert, write_run
from dit8.eval.records import RunKey
from dit8.models.types import Prompt, Sample
from dit8.quant.errors import UserError

RUN = RunKey("0123456789ab", "mini", "int8", "none", "diffusers", "float32", "triton", "hard")


def sample(prompt_id: str, seed: int = 0) -> Sample:
    return Sample(Prompt(prompt_id, "", (), seed), Path("x.png"), None, 0.0)


def rows(*values: float, scorer: str = "psnr") -> list[dict]:
    return score_rows(RUN, [sample(f"p{i}", i) for i in range(len(values))], scorer, values)


def test_the_columns_are_the_ledgers():
    assert ",".join(SCORES.columns) == (
        "run_id,model,variant,recipe,engine,dtype,backend,prompt_set,prompt_id,seed,scorer,value"
    )
    assert ",".join(LATENCY.columns) == (
        "run_id,model,variant,recipe,engine,dtype,backend,prompt_set,stage,n,p20_ms,p50_ms,p80_ms"
    )


def test_floats_survive_and_bytes_do_not_depend_on_the_way(tmp_path):
    values = [0.1, 1 / 3, 1e-300, -5e-324, 1.7976931348623157e308, 100.0, np.float64(2 / 3)]
    path = tmp_path / "results" / "scores.csv"
    assert upsert(path, SCORES, rows(*values)) == 7
    frame = read_table(path, SCORES)
    assert frame["value"].tolist() == [float(v) for v in values]
    assert frame["seed"].dtype == np.int64 and frame["value"].dtype == np.float64

    copy = tmp_path / "copy.csv"
    upsert(copy, SCORES, frame.to_dict("records"))
    assert copy.read_bytes() == path.read_bytes()
    one_by_one = tmp_path / "one.csv"
    for row in reversed(rows(*values)):
        upsert(one_by_one, SCORES, [row])
    assert one_by_one.read_bytes() == path.read_bytes()
    assert path.read_bytes().splitlines()[1].endswith(b",hard,p0,0,psnr,0.1")


def test_text_stays_text(tmp_path):
    path = tmp_path / "scores.csv"
    ids = ["NA", "nan", "007", 'quo"te, comma', "é"]
    upsert(path, SCORES, score_rows(RUN, [sample(i) for i in ids], "psnr", range(5)))
    assert set(read_table(path, SCORES)["prompt_id"]) == set(ids)


def test_rows_are_sorted_by_key_with_seeds_as_numbers(tmp_path):
    path = tmp_path / "scores.csv"
    samples = [sample("b", 1), sample("a", 10), sample("a", 9)]
    upsert(path, SCORES, score_rows(RUN, samples, "psnr", [1, 2, 3]))
    frame = read_table(path, SCORES)
    assert list(zip(frame["prompt_id"], frame["seed"], strict=True)) == [
        ("a", 9),
        ("a", 10),
        ("b", 1),
    ]


def test_the_same_rows_again_leave_the_file_untouched(tmp_path):
    path = tmp_path / "scores.csv"
    upsert(path, SCORES, rows(1.0, 2.0))
    before = path.stat()
    assert upsert(path, SCORES, rows(1.0, 2.0)) == 0
    assert path.stat().st_ino == before.st_ino  # a rewrite would be another file
    assert upsert(path, SCORES, rows(1.0, 2.0, 3.0)) == 1
    assert len(read_table(path, SCORES)) == 3


def test_a_differing_value_needs_overwrite(tmp_path):
    path = tmp_path / "scores.csv"
    upsert(path, SCORES, rows(1.0, 2.0))
    old = path.read_bytes()
    match = (
        r"other values for 1 rows, .*prompt_id=p1, .*stored \(2.0,\), got \(2.5,\); pass overwrite"
    )
    with pytest.raises(UserError, match=match):
        upsert(path, SCORES, rows(1.0, 2.5, 3.0))
    assert path.read_bytes() == old  # not even the new row went in
    assert upsert(path, SCORES, rows(1.0, 2.5), overwrite=True) == 1
    assert read_table(path, SCORES)["value"].tolist() == [1.0, 2.5]


def test_latency_rows(tmp_path):
    path = tmp_path / "latency.csv"
    row = vars(RUN) | {"stage": "denoise", "n": 5, "p20_ms": 1.0, "p50_ms": 2.0, "p80_ms": 3.5}
    assert upsert(path, LATENCY, [row]) == 1
    assert read_table(path, LATENCY).to_dict("records") == [row]
    with pytest.raises(UserError, match=r"stage=denoise: stored \(5, 1.0, 2.0, 3.5\), got \(6,"):
        upsert(path, LATENCY, [row | {"n": 6}])


def test_a_file_not_there_yet_is_an_empty_table(tmp_path):
    frame = read_table(tmp_path / "none.csv", SCORES)
    assert frame.empty and list(frame.columns) == list(SCORES.columns)
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"value": float("nan")}, r"value must be a valid float, got nan"),
        ({"value": float("inf")}, r"value must be a valid float, got inf"),
        ({"value": "1.0"}, r"value must be a valid float, got '1.0'"),
        ({"seed": 1.0}, r"seed must be a valid int, got 1.0"),
        ({"seed": True}, r"seed must be a valid int, got True"),
        ({"recipe": ""}, r"recipe must be a valid str, got ''"),
        ({"prompt_id": "a\nb"}, r"prompt_id must be a valid str, got 'a\\nb'"),
        ({"variant": None}, r"variant must be a valid str, got None"),
        ({"extra": 1}, r"row has \[.*'extra'.*\], expected \['run_id'"),
    ],
)
def test_a_bad_row_is_refused(tmp_path, change, match):
    with pytest.raises(ValueError, match=match):
        upsert(tmp_path / "scores.csv", SCORES, [rows(1.0)[0] | change])
    assert not (tmp_path / "scores.csv").exists()


def test_two_given_rows_of_one_key_must_agree(tmp_path):
    path = tmp_path / "scores.csv"
    assert upsert(path, SCORES, rows(1.0) + rows(1.0)) == 1
    with pytest.raises(ValueError, match=r"two rows given for .*prompt_id=p0.* differ"):
        upsert(path, SCORES, rows(1.0) + rows(2.0), overwrite=True)


def test_a_damaged_ledger_is_named_and_not_touched(tmp_path):
    path = tmp_path / "scores.csv"
    upsert(path, SCORES, rows(1.0, 2.0))
    good = path.read_text()
    line = good.splitlines()[1]
    damaged = {
        r"scores.csv has columns \['a', 'b'\], expected \['run_id'": "a,b\n1,2\n",
        r"scores.csv has columns \[\]": "",
        r"scores.csv:4 does not parse": good + "<<<<<<< HEAD\n",
        r"scores.csv:4 repeats run_id=0123456789ab, .*prompt_id=p0": good + line + "\n",
        r"scores.csv:2 does not parse .*could not convert": good.replace(",1.0", ",one"),
    }
    for match, text in damaged.items():
        path.write_text(text)
        with pytest.raises(UserError, match=match + r".*restore it from version control"):
            upsert(path, SCORES, rows(1.0, 2.0, 3.0))
        with pytest.raises(UserError, match=match):
            read_table(path, SCORES)
        assert path.read_text() == text


class Crash(Exception):
    pass


@pytest.mark.parametrize("at", ["writing", "renaming"])
def test_a_failure_in_the_middle_leaves_the_old_file_whole(tmp_path, monkeypatch, at):
    path = tmp_path / "scores.csv"
    upsert(path, SCORES, rows(1.0, 2.0))
    old = path.read_bytes()
    seen = []

    class HalfWriter:
        """Write the header and one row, look at what a reader sees, then fail."""

        def __init__(self, file, **_):
            self.file = file

        def writerow(self, row):
            self.file.write(",".join(row) + "\n")

        def writerows(self, all_rows):
            self.writerow(map(str, next(iter(all_rows))))
            self.file.flush()
            seen.append(path.read_bytes())
            raise Crash

    def fail_to_rename(source, target):
        assert Path(source).parent == path.parent  # else the rename could not be atomic
        seen.append(path.read_bytes())
        raise Crash

    if at == "writing":
        monkeypatch.setattr(ledger.csv, "writer", HalfWriter)
    else:
        monkeypatch.setattr(os, "replace", fail_to_rename)
    with pytest.raises(Crash):
        upsert(path, SCORES, rows(1.0, 2.0, 3.0))
    monkeypatch.undo()
    assert seen == [old] and path.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == [".scores.csv.lock", "scores.csv"]
    assert upsert(path, SCORES, rows(1.0, 2.0, 3.0)) == 1  # the lock was given back


def insert_many(path: Path, worker: int) -> None:
    for i in range(20):
        upsert(path, SCORES, score_rows(RUN, [sample(f"w{worker}", i)], "psnr", [i]))


def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "scores.csv"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=insert_many, args=(path, w)) for w in range(3)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        read_table(path, SCORES)  # a partial file would not parse, or lack its columns
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(read_table(path, SCORES)) == 60


def test_who_waits_for_a_lock_is_told(tmp_path):
    told = []
    with ledger.locked(tmp_path / "run", lambda: told.append("nobody has it")):
        assert told == []
        start, have = threading.Event(), []

        def second():
            with ledger.locked(tmp_path / "run", start.set):
                have.append(True)

        thread = threading.Thread(target=second)
        thread.start()
        assert start.wait(10) and have == []
    thread.join(10)
    assert have == [True]


def test_a_shared_lock_keeps_out_only_who_wants_it_alone(tmp_path):
    path, waits = tmp_path / "run", []
    with (
        ledger.locked(path, shared=True),
        ledger.locked(path, lambda: waits.append(1), shared=True),
    ):
        start, have = threading.Event(), []

        def alone():
            with ledger.locked(path, start.set):
                have.append(True)

        thread = threading.Thread(target=alone)
        thread.start()
        assert start.wait(10) and have == [] and waits == []
    thread.join(10)
    assert have == [True]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match="cannot lock .*No locks available.*Lustre: option flock"):
        upsert(tmp_path / "scores.csv", SCORES, rows(1.0))


def test_what_the_holder_of_a_lock_raises_is_its_own(tmp_path):
    with pytest.raises(OSError, match="disk on fire"), ledger.locked(tmp_path / "run"):
        raise OSError("disk on fire")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot lock .*scores.csv .* choose a folder that"):
        upsert(tmp_path / "file" / "scores.csv", SCORES, rows(1.0))

    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot write .*0123456789ab.json.*Permission denied"):
        write_run(tmp_path, "0123456789ab", {})
    with pytest.raises(UserError, match=r"cannot write .*scores.csv.*Permission denied"):
        upsert(tmp_path / "scores.csv", SCORES, rows(1.0))


def test_the_run_record_is_sorted_json_with_a_newline(tmp_path):
    record = {"b": [1, 0.1], "a": {"name": "é", "none": None}}
    path = write_run(tmp_path / "runs", "0123456789ab", record)
    assert path == tmp_path / "runs" / "0123456789ab.json"
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n  "a": {\n    "name": "é",') and text.endswith("\n}\n")
    assert json.loads(text) == record
    write_run(tmp_path / "runs", "0123456789ab", {})
    assert path.read_text() == "{}\n"


def test_the_run_record_must_be_strict_json_with_a_proper_name(tmp_path):
    for name in ("../evil", "0123456789AB", "0123"):
        with pytest.raises(ValueError, match=r"run_id must be 12 hexadecimal digits, got"):
            write_run(tmp_path, name, {})
    for value in (float("nan"), Path("x"), {1, 2}):
        with pytest.raises(ValueError, match=r"record of 0123456789ab is no strict JSON"):
            write_run(tmp_path, "0123456789ab", {"value": value})
    assert list(tmp_path.iterdir()) == []
