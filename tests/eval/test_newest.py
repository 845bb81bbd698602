import json

import pandas as pd
import pytest

from dit8.eval.newest import newest_runs
from dit8.quant.errors import UserError

OLD, NEW, OTHER = "a" * 12, "b" * 12, "c" * 12


@pytest.fixture
def records(tmp_path):
    def add(run_id, started, steps=20, variant="int8", prompts=("p0",), **weights):
        record = {
            "run": {"run_id": run_id, "variant": variant},
            "identity": {"sampler": {"steps": steps}},
            "prompts": [[name, 0] for name in prompts],
            "config": {"lora": None, "lora_scale": 1.0, "calibration": {"n": None}} | weights,
            "started": started,
        }
        (tmp_path / f"{run_id}.json").write_text(json.dumps(record))

    add.folder = tmp_path
    return add


def kept(records, *run_ids):
    rows = pd.DataFrame({"run_id": [r for r in run_ids for _ in range(2)], "value": 1.0})
    found = newest_runs(rows, records.folder)
    assert (found.groupby("run_id").size() == 2).all()  # whole runs
    return sorted(found["run_id"].unique())


@pytest.mark.parametrize("names", [(OLD, NEW), (NEW, OLD)])
def test_of_one_configuration_the_newest_counts(records, names):
    records(names[0], "2026-01-01")
    records(names[1], "2026-01-02")
    assert kept(records, OLD, NEW) == [names[1]]


def test_three_times_the_same(records):
    for run_id, started in ((OLD, "2026-01-02"), (NEW, "2026-01-03"), (OTHER, "2026-01-01")):
        records(run_id, started)
    assert kept(records, OLD, NEW, OTHER) == [NEW]


DIFFERENT = [
    {"steps": 12},
    {"variant": "fp8"},
    {"prompts": ("p0", "p1")},
    {"lora": "a.safetensors"},
    {"lora_scale": 0.5},
    {"latency": "other.csv"},
    {"calibration": {"n": 2}},
]


@pytest.mark.parametrize("change", DIFFERENT)
def test_runs_that_differ_stay(records, change):
    records(OLD, "2026-01-01")
    records(NEW, "2026-01-02", **change)
    assert kept(records, OLD, NEW) == [OLD, NEW]


def test_a_run_without_a_record_stays(records):
    records(NEW, "2026-01-02")
    assert kept(records, OLD, NEW) == [OLD, NEW]


def test_a_damaged_record_is_named(records):
    (records.folder / f"{OLD}.json").write_text('{"run": {}}')
    with pytest.raises(UserError, match=f"{OLD}.json must be the record of a run, got KeyError"):
        kept(records, OLD)
