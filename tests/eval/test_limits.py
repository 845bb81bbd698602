"""eval/limits.py and its table: which run is taken, what a change is, what the sentences say."""

import json

import numpy as np
import pandas as pd
import pytest

from eval.ablation import Run
from eval.limits import (
    DEFAULT,
    REFERENCE,
    SETTINGS,
    VARIANTS,
    Setting,
    collect,
    examine,
    missing,
    read_records,
)
from eval.limits_table import answer, render
from eval.margins import Margin
from quant.errors import UserError

N = 60
MARGINS = {
    "ocr_exact": Margin("ocr_exact", 0.1, "fraction of texts", "for these tests"),
    "ocr_ned": Margin("ocr_ned", 0.1, "edit distance / longer length", "for these tests"),
}
NAMED = {setting.name: setting for setting in SETTINGS}


def keyed(values):
    return {(f"p{i:02}", i): float(value) for i, value in enumerate(values)}


def run(exact, error=None, name="run"):
    values = {"ocr_exact": keyed(exact), "ocr_ned": keyed(1.0 - np.asarray(exact))}
    if error is not None:
        values |= {"latent_error": keyed(error), "psnr": keyed(30.0 + np.asarray(error))}
    return Run(name, values)


def exact(wrong):
    values = np.ones(N)
    values[:wrong] = 0.0
    return values


@pytest.fixture
def runs():
    """bf16 misreads ten everywhere; q4_k ten more at the default and thirty more at guidance 7."""
    spread = np.linspace(0.1, 0.2, N)
    found = {(setting.name, REFERENCE): run(exact(10)) for setting in SETTINGS}
    for setting in SETTINGS:
        for variant in VARIANTS:
            worse = 0
            if variant == "q4_k":
                worse = 30 if setting.name == "guidance 7" else 10
            error = spread * (3.0 if setting.name == "guidance 7" else 1.0)
            found[setting.name, variant] = run(exact(10 + worse), error)
    return found


def entry_of(entries, setting, variant):
    (found,) = (e for e in entries if (e.setting.name, e.variant) == (setting, variant))
    return found


def test_one_factor_is_moved_at_a_time():
    for setting in SETTINGS[1:]:
        fields = ("model", "steps", "guidance")
        moved = [name for name in fields if getattr(setting, name) != getattr(DEFAULT, name)]
        assert len(moved) == 1
    assert NAMED["guidance 7"].words == ("model=mini", "steps=20", "guidance=7")


def test_a_variant_is_compared_with_the_reference_at_its_own_setting(runs):
    entries = examine(runs, MARGINS)
    assert len(entries) == len(SETTINGS) * len(VARIANTS)
    assert entry_of(entries, "default", "q4_k").exact.estimate == pytest.approx(-10 / N)
    assert entry_of(entries, "guidance 7", "q4_k").exact.estimate == pytest.approx(-30 / N)
    assert entry_of(entries, "guidance 7", "q4_k").verdict.kind == "worse"
    assert "bf16 at guidance 7" in entry_of(entries, "guidance 7", "q4_k").verdict.sentence
    assert entry_of(entries, "guidance 7", "fp8").verdict.kind == "equivalent"


def test_a_change_is_the_difference_of_two_differences(runs):
    entries = examine(runs, MARGINS)
    change = entry_of(entries, "guidance 7", "q4_k").exact_change
    # -30/60 - (-10/60): twenty captions of sixty, none the other way
    assert change.estimate == pytest.approx(-20 / N)
    assert change.low < -20 / N < change.high < 0.0
    steps = entry_of(entries, "12 steps", "q4_k").exact_change
    assert steps.estimate == 0.0 and steps.low < 0.0 < steps.high
    error = entry_of(entries, "guidance 7", "fp8").error_change
    assert error.estimate == pytest.approx(2 * 0.15) and error.low > 0.0
    assert entry_of(entries, "default", "fp8").error_change is None
    assert entry_of(entries, "default", "fp8").exact_change is None


def test_a_change_of_the_reference_alone_is_no_loss_of_the_variant(runs):
    """At guidance 1 both misread twenty more: the variant's difference stays what it was."""
    runs["guidance 1", REFERENCE] = run(exact(30))
    runs["guidance 1", "q8_0"] = run(exact(30), np.linspace(0.1, 0.2, N))
    entry = entry_of(examine(runs, MARGINS), "guidance 1", "q8_0")
    assert entry.exact.estimate == 0.0 and entry.exact_change.estimate == 0.0


def test_the_sentences_say_what_the_numbers_do(runs):
    lines = answer(examine(runs, MARGINS))
    assert lines[2] == "fp8: equivalent at 6 of 6 settings, the same at all measured."
    changes, moved, *_ = lines
    assert "that leave out zero: 1 of 20, q4_k at guidance 7 (-0.333 [" in changes
    assert "fp8 more at guidance 7; q8_0 more at guidance 7" in moved and "less" not in moved
    assert not any(line.startswith("Not measured") for line in lines)
    runs["48 steps", "int8"] = run(exact(40), np.linspace(0.1, 0.2, N))
    lines = answer(examine(runs, MARGINS))
    (int8,) = (line for line in lines if line.startswith("int8: "))
    assert int8.startswith("int8: equivalent at default, 12 steps, guidance 1")
    assert int8.endswith("worse at 48 steps.")


def test_what_is_not_measured_is_named_and_nothing_is_made_up(runs):
    del runs["48 steps", "fp8"]
    del runs["guidance 7", REFERENCE]
    only = runs["12 steps", "int8"].values
    runs["12 steps", "int8"] = Run("r", {"psnr": only["psnr"]})
    entries = examine(runs, MARGINS)
    assert entry_of(entries, "48 steps", "fp8").verdict is None
    assert entry_of(entries, "guidance 7", "q8_0").exact is None
    assert entry_of(entries, "guidance 7", "q8_0").distances["latent_error"].n == N
    page = render(entries, "title")
    (row,) = (line for line in page.splitlines() if line.startswith("| 48 steps") and "fp8" in line)
    assert row.count("not measured") == 6
    (last,) = (line for line in answer(entries) if line.startswith("Not measured: "))
    assert "fp8 at 48 steps" in last and "q8_0 at guidance 7" in last
    assert last.endswith("run `python scripts/limits.py --run hardware=cuda`.")
    lacking = missing(runs)
    assert lacking == {
        NAMED["12 steps"]: ("int8",),
        NAMED["48 steps"]: ("fp8",),
        NAMED["guidance 7"]: (REFERENCE,),
    }
    empty = answer(examine({}, MARGINS))
    assert empty[0] == "fp8: no setting is measured."


def test_the_page_says_what_it_is_about(runs):
    text = render(examine(runs, MARGINS), "title")
    assert text.startswith("title\n\n") and "it says nothing about Ideogram 4" in text


def test_runs_on_other_captions_are_refused(runs):
    values = {
        name: dict(list(v.items())[1:]) for name, v in runs["12 steps", REFERENCE].values.items()
    }
    runs["12 steps", REFERENCE] = Run("other", values)
    with pytest.raises(UserError, match="samples are missing"):
        examine(runs, MARGINS)


def ledger(run_id, variant="fp8", model="mini", n=4, **change):
    row = {"run_id": run_id, "model": model, "variant": variant, "recipe": "none"}
    row |= {"engine": "stock", "dtype": "float32", "backend": "torch-cuda"}
    row |= {"prompt_set": "mini_hard", "scorer": "ocr_exact", "value": 1.0} | change
    return pd.DataFrame([row | {"prompt_id": f"p{i}", "seed": i} for i in range(n)])


def record(steps=20, guidance=3.0, final=None, started="2026-01-01"):
    final = guidance if final is None else final
    sampler = {"steps": steps, "guidance": guidance, "final_guidance": final}
    return {"identity": {"sampler": sampler}, "started": started}


def find(rows, records, captions=4):
    given = {"prompt_set": "mini_hard", "backend": "torch-cuda", "captions": captions}
    return {key: each.run_id for key, each in collect(pd.concat(rows), records, **given).items()}


def test_runs_are_told_apart_by_their_records():
    rows = [ledger(name) for name in ("a", "b", "c", "d", "e")] + [
        ledger("f", model="mini_planted")
    ]
    records = {
        "a": record(), "b": record(steps=12), "c": record(guidance=7.0),
        "d": record(steps=30), "f": record(),
        "e": record(guidance=7.0, final=3.0, started="2026-01-02"),
    }  # fmt: skip
    assert find(rows, records) == {
        ("default", "fp8"): "a",
        ("12 steps", "fp8"): "b",
        ("guidance 7", "fp8"): "c",
        ("planted outliers", "fp8"): "f",
    }


def test_of_two_runs_the_one_started_last_is_taken():
    records = {"a": record(started="2026-01-02"), "b": record(started="2026-01-01")}
    assert find([ledger("a"), ledger("b")], records) == {("default", "fp8"): "a"}
    records["b"]["started"] = "2026-01-03"
    assert find([ledger("a"), ledger("b")], records) == {("default", "fp8"): "b"}


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "dit8"},
        {"dtype": "bfloat16"},
        {"backend": "torch-cpu"},
        {"prompt_set": "mini_hard-raw"},
        {"recipe": "naive"},
        {"variant": "int8", "recipe": "smoothquant+alpha=0.3"},
        {"variant": "nf4"},
        {"n": 3},
    ],
)
def test_rows_of_another_kind_do_not_count(change):
    assert find([ledger("a", **change)], {"a": record()}) == {}


def test_a_row_that_stands_in_both_ledgers_counts_once():
    rows = pd.concat([ledger("a"), ledger("a", value=0.0)])
    given = {"prompt_set": "mini_hard", "backend": "torch-cuda", "captions": 4}
    found = collect(rows, {"a": record()}, **given)["default", "fp8"]
    assert set(found.values["ocr_exact"].values()) == {1.0}


def test_a_run_without_its_record_is_named():
    with pytest.raises(UserError, match=r"run a must have its record .* restore runs/a.json"):
        find([ledger("a")], {})


def test_records_of_the_first_folder_count(tmp_path):
    for folder, steps in (("one", 12), ("two", 48)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text(json.dumps(record(steps=steps)))
        (tmp_path / folder / "a.scorers.json").write_text("{}")
    found = read_records([tmp_path / "one", tmp_path / "two"])
    assert list(found) == ["a"] and found["a"]["identity"]["sampler"]["steps"] == 12
    (tmp_path / "one" / "b.json").write_text('{"identity": {}}')
    with pytest.raises(UserError, match=r"b.json must be the record of a run, got KeyError"):
        read_records([tmp_path / "one"])


def test_settings_are_values():
    assert Setting("default") == DEFAULT and len(set(SETTINGS)) == len(SETTINGS)
