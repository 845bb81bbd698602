"""eval/limits.py and its table: which run is taken, what a change is, what the sentences say."""

import json

import numpy as np
import pandas as pd
import pytest

from dit8.eval.ablation import Run
from dit8.eval.limits import (
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
from dit8.eval.limits_table import answer, render
from dit8.eval.margins import Margin
from dit8.quant.errors import UserError

N = 60
UNIT = "100 x cosine (clip-mini)"
MARGINS = {
    "ocr_exact": Margin("ocr_exact", 0.1, "fraction of texts", "for these tests"),
    "ocr_ned": Margin("ocr_ned", 0.1, "edit distance / longer length", "for these tests"),
}
NAMED = {setting.name: setting for setting in SETTINGS}


def keyed(values):
    return {(f"p{i:02}", i): float(value) for i, value in enumerate(values)}


def run(exact, error=None, name="run", ned=None):
    ned = 1.0 - np.asarray(exact) if ned is None else ned
    values = {"ocr_exact": keyed(exact), "ocr_ned": keyed(ned)}
    if error is not None:
        values |= {"latent_error": keyed(error), "psnr": keyed(30.0 + np.asarray(error))}
    return Run(name, values)


def exact(wrong):
    values = np.ones(N)
    values[:wrong] = 0.0
    return values


@pytest.fixture(scope="module")
def measured():
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


@pytest.fixture
def runs(measured):
    return dict(measured)


@pytest.fixture(scope="module")
def examined(measured):
    return examine(measured, MARGINS)


def entry_of(examined, setting, variant):
    (found,) = (e for e in examined.entries if (e.setting.name, e.variant) == (setting, variant))
    return found


def test_one_factor_is_moved_at_a_time():
    for setting in SETTINGS[1:]:
        fields = ("model", "steps", "guidance")
        moved = [name for name in fields if getattr(setting, name) != getattr(DEFAULT, name)]
        assert len(moved) == 1
    assert NAMED["guidance 7"].words == ("model=mini", "steps=20", "guidance=7")


def test_a_variant_is_compared_with_the_reference_at_its_own_setting(examined):
    assert len(examined.entries) == len(SETTINGS) * len(VARIANTS)
    before, now = (entry_of(examined, name, "q4_k") for name in ("default", "guidance 7"))
    assert before.judged.scores["ocr_exact"].delta.estimate == pytest.approx(-10 / N)
    assert now.judged.scores["ocr_exact"].delta.estimate == pytest.approx(-30 / N)
    assert now.judged.scores["ocr_ned"].delta.estimate == pytest.approx(30 / N)
    assert now.kind == "worse" and now.judged.deciding == ("ocr_exact", "ocr_ned")
    assert now.judged.captions == {"ocr_exact": (0, 30), "ocr_ned": (0, 30)}
    assert "bf16 at guidance 7" in now.judged.verdict.sentence
    assert entry_of(examined, "guidance 7", "fp8").kind == "equivalent"


def test_a_change_is_the_difference_of_two_differences(examined):
    change = entry_of(examined, "guidance 7", "q4_k").changes["ocr_exact"]
    # -30/60 - (-10/60): twenty captions of sixty, none the other way
    assert change.estimate == pytest.approx(-20 / N)
    assert change.low < -20 / N < change.high < 0.0
    distance = entry_of(examined, "guidance 7", "q4_k").changes["ocr_ned"]
    assert distance.estimate == pytest.approx(20 / N) and distance.low > 0.0
    steps = entry_of(examined, "12 steps", "q4_k").changes["ocr_exact"]
    assert steps.estimate == 0.0 and steps.low < 0.0 < steps.high
    error = entry_of(examined, "guidance 7", "fp8").error_change
    assert error.estimate == pytest.approx(2 * 0.15) and error.low > 0.0
    assert entry_of(examined, "default", "fp8").error_change is None
    assert entry_of(examined, "default", "fp8").changes == {}


def test_a_change_of_the_reference_alone_is_no_loss_of_the_variant(runs):
    """At guidance 1 both misread twenty more: the variant's difference stays what it was."""
    runs["guidance 1", REFERENCE] = run(exact(30))
    runs["guidance 1", "q8_0"] = run(exact(30), np.linspace(0.1, 0.2, N))
    entry = entry_of(examine(runs, MARGINS), "guidance 1", "q8_0")
    assert entry.judged.scores["ocr_exact"].delta.estimate == 0.0
    assert entry.changes["ocr_exact"].estimate == 0.0


def sentence(examined, start):
    (found,) = (line for line in answer(examined) if line.startswith(start))
    return found


def cells(page, setting, variant):
    """The cells of one row of the first table."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    (found,) = (line for line in lines if line[:2] == [setting, variant])
    return found


def test_the_sentences_say_what_the_numbers_do(runs, examined):
    """q4_k is worse everywhere: that it loses more at guidance 7 is no other verdict."""
    first, same, *_ = answer(examined)
    assert first.startswith("No verdict is shown to depend on the setting, in none of 20 ")
    assert same.startswith(
        "The same verdict, though the change leaves out zero: q4_k at guidance 7"
    )
    assert "(worse; change -0.333 [" in same
    assert (
        sentence(examined, "fp8") == "fp8: equivalent at 6 of 6 settings, the same at all measured."
    )
    told = sentence(examined, "Latents")
    assert (
        told
        == "Latents lie, against the default, farther from bf16's at guidance 7 (4 of 4 variants)."
    )
    assert not any(
        line.startswith(("Not measured", "Another verdict")) for line in answer(examined)
    )


def test_a_verdict_that_is_another_and_whose_change_shows_it_comes_first(runs):
    runs["48 steps", "int8"] = run(exact(40), np.linspace(0.1, 0.2, N))
    examined = examine(runs, MARGINS)
    first = answer(examined)[0]
    assert first.startswith("A verdict depends on the setting in 1 of 20 comparisons")
    assert "int8 at 48 steps is worse, equivalent at the default (change -0.500 [" in first
    assert "int8" not in sentence(examined, "The same verdict")
    int8 = sentence(examined, "int8: ")
    assert int8.startswith("int8: equivalent at default, 12 steps, guidance 1")
    assert int8.endswith("worse at 48 steps.")


def test_another_verdict_alone_is_not_shown_to_differ(runs):
    """Four captions more are misread: too few for the change, too many for equivalence."""
    runs["48 steps", "int8"] = run(exact(14), np.linspace(0.1, 0.2, N))
    examined = examine(runs, MARGINS)
    assert "in none of 20 comparisons" in answer(examined)[0]
    told = sentence(examined, "Another verdict")
    assert "holds zero, as does that in edit distance: int8 at 48 steps (not decided)." in told
    # the distance grows by 0.05 for every caption: worse by it, and the change leaves out zero
    far = 1.0 - exact(14) + np.where(exact(14) == 1.0, 0.15, 0.0)
    runs["48 steps", "int8"] = run(exact(14), np.linspace(0.1, 0.2, N), ned=far)
    told = sentence(examine(runs, MARGINS), "Another verdict")
    assert "though not that in edit distance of int8 at 48 steps: int8 at 48 steps (worse)" in told


def test_a_verdict_names_the_scores_and_captions_it_hangs_on(runs):
    """Twelve distances shrink and one grows, no text is read that was not: better by ocr_ned."""
    narrow = {**MARGINS, "ocr_ned": Margin("ocr_ned", 0.02, MARGINS["ocr_ned"].unit, "narrow")}
    ned = 1.0 - exact(10)
    base = ned + np.where(np.arange(N) >= 20, 0.4, 0.0)
    ned = base - np.where(np.arange(N) >= 48, 0.3, 0.0)
    ned[20] += 0.3
    runs["guidance 1", REFERENCE] = run(exact(10), ned=base)
    runs["guidance 1", "q8_0"] = run(exact(10), np.linspace(0.1, 0.2, N), ned=ned)
    page = render(examine(runs, narrow), "title")
    row = cells(page, "guidance 1", "q8_0")
    assert row[-1] == "better (ocr_ned: 12 captions better, 1 worse)"
    assert row[5].startswith("+0.000 [") and row[7].startswith("-0.055 [")
    assert row[8].startswith("-0.055 [")  # no difference at the default
    wide = render(examine(runs, MARGINS), "title")
    assert cells(wide, "default", "q8_0")[-1] == "equivalent"
    worse = cells(page, "default", "q4_k")[-1]
    assert worse == (
        "worse (ocr_exact: 0 captions better, 10 worse; ocr_ned: 0 captions better, 10 worse)"
    )
    runs["12 steps", "q4_k"] = run(exact(14), np.linspace(0.1, 0.2, N))
    again = render(examine(runs, narrow), "title")
    assert cells(again, "12 steps", "q4_k")[-1] == "not decided (ocr_exact, ocr_ned)"
    assert "over the two scores of a setting, not over the 24 verdicts of this page" in again


def test_the_references_own_level_stands_beside_its_differences(runs, examined):
    told = "bf16 itself reads 0.833 ["
    assert "and is shown to read fewer at no setting." in sentence(examined, told)
    runs["guidance 7", REFERENCE] = run(exact(40))
    told = sentence(examine(runs, MARGINS), told)
    assert "and fewer, 0.333 [" in told and "at guidance 7: a difference there is judged" in told
    assert "own guidance" not in told  # at guidance 1 it reads what it does at the default
    runs["guidance 1", REFERENCE] = run(exact(30))
    examined = examine(runs, MARGINS)
    told = sentence(examined, "bf16 itself")
    assert "0.500 [" in told and "Of the guidances tried it reads most at its own, 3." in told
    assert "not comparable with Ideogram 4's default of 7" in told
    page = render(examined, "title")
    levels = page[page.index("The reference, bf16, by itself at each setting") :].splitlines()
    (row,) = (line for line in levels if line.startswith("| guidance 7"))
    values = [cell.strip() for cell in row.split("|")[1:-1]]
    starts = zip(values, ("guidance 7", "0.333 [", "-0.500 [", "0.667 ["), strict=True)
    assert all(value.startswith(start) for value, start in starts)


def test_scores_that_have_no_say_here_are_named(runs, examined):
    assert not any(line.startswith("Judged here") for line in answer(examined))
    margins = {**MARGINS, "clip_mini": Margin("clip_mini", 1.0, UNIT, "for these tests")}
    level = np.linspace(40.0, 50.0, N)
    for name, loss in ((REFERENCE, 0.0), ("fp8", 2.0), ("int8", 0.01)):
        values = runs["default", name].values | {"clip_mini": keyed(level - loss * level / 45.0)}
        runs["default", name] = Run(name, values)
    examined = examine(runs, margins)
    told = sentence(
        examined, "Judged here by ocr_exact and ocr_ned only; verdicts_mini.md's verdicts"
    )
    assert told.endswith("also by clip_mini: there fp8 is worse (by clip_mini).")
    assert entry_of(examined, "default", "fp8").kind == "equivalent"
    runs["48 steps", "fp8"] = run(exact(40), np.linspace(0.1, 0.2, N))
    told = sentence(examine(runs, margins), "Judged here")
    assert told.endswith(", so that fp8 at 48 steps has the verdict that verdicts_mini.md gives.")
    runs["default", "fp8"] = runs["default", "int8"]
    told = sentence(examine(runs, margins), "Judged here")
    assert told.endswith("also by clip_mini: there no variant has another verdict.")


def test_latents_that_move_both_ways(runs):
    spread = np.linspace(0.1, 0.2, N)
    for variant, factor in zip(VARIANTS, (2.0, 0.5, 0.5, 1.0), strict=True):
        runs["12 steps", variant] = run(exact(10), spread * factor)
    told = sentence(examine(runs, MARGINS), "Latents")
    assert "nearer to bf16's at 12 steps (2 of 4 variants); farther from bf16's at guid" in told
    runs["12 steps", "q4_k"] = run(exact(10), spread)
    told = sentence(examine(runs, MARGINS), "Latents")
    assert "as often farther from as nearer to bf16's at 12 steps (1 of 4 variants)" in told
    for setting in SETTINGS[1:]:
        for variant in VARIANTS:
            runs[setting.name, variant] = runs["default", variant]
    assert sentence(examine(runs, MARGINS), "No variant's") == (
        "No variant's latents are moved against the default."
    )


def test_what_is_not_measured_is_named_and_nothing_is_made_up(runs):
    del runs["48 steps", "fp8"]
    del runs["guidance 7", REFERENCE]
    only = runs["12 steps", "int8"].values
    runs["12 steps", "int8"] = Run("r", {"psnr": only["psnr"]})
    entries = examine(runs, MARGINS)
    assert entry_of(entries, "48 steps", "fp8").kind is None
    assert entry_of(entries, "guidance 7", "q8_0").judged is None
    assert entry_of(entries, "guidance 7", "q8_0").distances["latent_error"].n == N
    page = render(entries, "title")
    assert cells(page, "48 steps", "fp8")[2:] == ["not measured"] * 8
    levels = page[page.index("The reference, bf16, by itself at each setting") :].splitlines()
    (row,) = (line for line in levels if line.startswith("| guidance 7"))
    assert row.count("not measured") == 3
    assert "in none of 14 comparisons" in answer(entries)[0]
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
    assert empty[0] == "Whether a verdict depends on the setting is not measured."
    assert empty[1] == "fp8: no setting is measured."


def test_the_page_says_what_it_is_about(examined):
    text = render(examined, "title")
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
        (tmp_path / folder / "c.json").write_text('{"scorers": {}}')  # drawn elsewhere
    found = read_records([tmp_path / "one", tmp_path / "two"])
    assert list(found) == ["a"] and found["a"]["identity"]["sampler"]["steps"] == 12
    (tmp_path / "one" / "b.json").write_text('{"identity": {}}')
    with pytest.raises(UserError, match=r"b.json must be the record of a run, got KeyError"):
        read_records([tmp_path / "one"])


def test_settings_are_values():
    assert Setting("default") == DEFAULT and len(set(SETTINGS)) == len(SETTINGS)
