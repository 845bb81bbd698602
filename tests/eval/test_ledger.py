import csv
import errno
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from dit8.eval import ledger
from dit8.eval.ledger import (
    LATENCY,
    RUNS,
    SCORES,
    Layout,
    read_table,
    run_row,
    score_rows,
    upsert,
    write_run,
)
from dit8.eval.run import RunKey
from dit8.models.types import Prompt, Sample
from dit8.quant.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
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

    copy = tmp_path / "copy" / "scores.csv"
    upsert(copy, SCORES, frame.to_dict("records"))
    assert copy.read_bytes() == path.read_bytes()
    one_by_one = tmp_path / "one" / "scores.csv"
    for row in reversed(rows(*values)):
        upsert(one_by_one, SCORES, [row])
    assert one_by_one.read_bytes() == path.read_bytes()
    header, first, *_ = path.read_bytes().splitlines()
    assert (header, first) == (b"run_id,prompt_id,seed,psnr", b"0123456789ab,p0,0,0.1")
    header, run = (path.parent / "runs.csv").read_bytes().splitlines()
    assert header.startswith(b"run_id,model,variant,recipe,engine,dtype,backend,prompt_set,sampler")
    assert run == b"0123456789ab,mini,int8,none,diffusers,float32,triton,hard,,,,,,,,,"


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
        r"scores.csv:2 is of run 00aa, which runs.csv": good.replace("0123456789ab,p0", "00aa,p0"),
        r"scores.csv ends in the middle of a line": good.rstrip(),
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
    left = [".runs.csv.lock", ".scores.csv.lock", "runs.csv", "scores.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
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


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match="cannot lock .*No locks available.*Lustre: option flock"):
        upsert(tmp_path / "scores.csv", SCORES, rows(1.0))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot lock .*scores.csv .* choose a folder that"):
        upsert(tmp_path / "file" / "scores.csv", SCORES, rows(1.0))

    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot write .*0123456789ab.json.*Permission denied"):
        write_run(tmp_path, "0123456789ab", {})
    with pytest.raises(UserError, match=r"cannot write .*runs.csv.*Permission denied"):
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
    assert not list(tmp_path.glob("*.json"))


def old_file(path: Path, layout: Layout, given: list[dict]) -> None:
    """Write what older versions wrote: a run's columns in every row, one score a row."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, layout.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(given)


def test_a_file_of_an_older_version_is_read_and_written_anew(tmp_path):
    both = rows(1.0, 2.0) + rows(3.0, scorer="ssim")
    new, old = tmp_path / "new" / "scores.csv", tmp_path / "old" / "scores.csv"
    old_file(old, SCORES, sorted(both, key=lambda row: (row["prompt_id"], row["scorer"])))
    upsert(new, SCORES, both)
    assert read_table(old, SCORES).equals(read_table(new, SCORES))
    assert not (old.parent / "runs.csv").exists()  # reading writes nothing
    more = rows(4.0, scorer="seconds")
    assert upsert(old, SCORES, more) == upsert(new, SCORES, more) == 1
    for name in ("scores.csv", "runs.csv"):
        assert (old.parent / name).read_bytes() == (new.parent / name).read_bytes()
    assert new.read_text().splitlines()[1:] == [
        "0123456789ab,p0,0,1.0,4.0,3.0",
        "0123456789ab,p1,1,2.0,,",
    ]


def test_latency_of_an_older_version(tmp_path):
    row = vars(RUN) | {"stage": "image", "n": 5, "p20_ms": 1.0, "p50_ms": 2.0, "p80_ms": 3.5}
    old_file(tmp_path / "latency.csv", LATENCY, [row])
    assert read_table(tmp_path / "latency.csv", LATENCY).to_dict("records") == [row]
    upsert(tmp_path / "latency.csv", LATENCY, [row | {"stage": "step"}])
    assert (tmp_path / "latency.csv").read_text() == (
        "run_id,stage,n,p20_ms,p50_ms,p80_ms\n"
        "0123456789ab,image,5,1.0,2.0,3.5\n0123456789ab,step,5,1.0,2.0,3.5\n"
    )


def test_one_run_id_is_one_run(tmp_path):
    path = tmp_path / "scores.csv"
    upsert(path, SCORES, rows(1.0))
    other = [row | {"variant": "fp8", "prompt_id": "p9"} for row in rows(1.0)]
    with pytest.raises(UserError, match="run 0123456789ab must be one run"):
        upsert(path, SCORES, other)
    assert len(read_table(path, SCORES)) == 1


def test_a_record_gives_its_run_a_row(tmp_path):
    sampler = {"name": "default_20", "steps": 20, "guidance": 3.0, "size_px": 256}
    record = {
        "run": vars(RUN),
        "identity": {"sampler": sampler},
        "prompts": [["p0", 0], ["p1", 1]],
        "started": "2026-01-01",
        "hardware": {"gpu": "NVIDIA H200"},
        "git": {"commit": "0123456789abcdef"},
        "checkpoint_sha256": None,
    }
    upsert(tmp_path / "scores.csv", SCORES, rows(1.0))  # the row of a run without a record
    write_run(tmp_path / "runs", "0123456789ab", record)
    assert (tmp_path / "runs.csv").read_text().splitlines()[1] == (
        "0123456789ab,mini,int8,none,diffusers,float32,triton,hard,"
        "default_20,20,3.0,256,2,2026-01-01,NVIDIA H200,0123456789ab,"
    )


@pytest.mark.parametrize("results", ["results", "results/limits", "results/demo"])
def test_the_committed_runs_are_those_of_their_records(results):
    folder = ROOT / results
    records = [path for path in (folder / "runs").glob("*.json") if path.name.count(".") == 1]
    made = [run_row(json.loads(path.read_text(encoding="utf-8"))) for path in records]
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        committed = list(csv.DictReader(file))
    assert committed == sorted(made, key=lambda row: row["run_id"]) and committed
    assert set(read_table(folder / "scores.csv", SCORES)["run_id"]) <= {r["run_id"] for r in made}


def test_no_two_committed_runs_are_of_one_configuration():
    rows = [
        row
        for name in ("results", "results/limits")
        for row in csv.DictReader((ROOT / name / "runs.csv").read_text().splitlines())
    ]
    configuration = RUNS.values[: RUNS.values.index("started")]
    found = {tuple(row[name] for name in configuration) for row in rows}
    assert len(found) == len(rows) == 104
