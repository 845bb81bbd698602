import csv
import io
import re

import numpy as np
import pandas as pd
import pytest

from dit8.conf.schema import RecipeConfig
from dit8.eval.ablation import (
    ALPHAS,
    CELLS,
    RECIPES,
    REFERENCE,
    SCORERS,
    ablate,
    collect,
    is_measured,
    judge,
)
from dit8.eval.ablation_table import render_csv, render_markdown
from dit8.eval.run import Interval
from dit8.quant.errors import UserError
from dit8.scripts.cli import compose

CAPTIONS = 12
NAMED = {cell.name: cell for cell in (REFERENCE, *CELLS)}
# latent error above naive's; a shift of every caption alike, and one that differs by caption
SHIFTS = {"naive": 0.0, "smooth_only": -0.2, "rotate": 0.1, "protect_only": None}


def rows_of(model: str, name: str, scorers=SCORERS, captions=CAPTIONS, **change) -> list[dict]:
    """One cell's rows: naive errs by 0.3 to 0.41, others by their shift more."""
    cell, rows = NAMED[name], []
    shift = SHIFTS.get(name, 0.0)
    for index in range(captions):
        noise = 0.05 * (-1) ** index if shift is None else shift
        values = {
            "latent_error": 0.3 + 0.01 * index + noise,
            "psnr": 40.0 + index,
            "ssim": 0.9,
            "ocr_exact": 1.0 if name != "rotate" else float(index % 4 == 0),
            "ocr_ned": 0.0,
        }
        rows += [
            {"run_id": f"{model}-{name}", "model": model, "variant": cell.variant,
             "recipe": cell.recipe, "engine": "stock", "dtype": cell.dtype,
             "backend": "torch-cuda", "prompt_set": "mini_hard", "prompt_id": f"p{index}",
             "seed": index, "scorer": scorer, "value": values[scorer]} | change
            for scorer in scorers
        ]  # fmt: skip
    return rows


def ledger(model: str, names, **change) -> list[dict]:
    return [row for name in names for row in rows_of(model, name, **change)]


def find(rows: list[dict], models=("mini",), captions=CAPTIONS):
    # pairing must go by caption, never by position
    frame = pd.DataFrame(rows).sample(frac=1, random_state=0)
    options = {"prompt_set": "mini_hard", "backend": "torch-cuda", "captions": captions}
    return collect(frame, models, **options)


def entries_of(rows: list[dict], models=("mini",)):
    return {(e.model, e.cell.name): e for e in ablate(find(rows, models), models)}


def test_rows_are_every_recipe_and_format_once():
    assert len(NAMED) == len(CELLS) + 1 == 31
    assert len({(cell.variant, cell.recipe, cell.dtype) for cell in NAMED.values()}) == 31
    assert [cell.name for cell in CELLS if cell.variant == "int8"] == list(RECIPES)
    assert [c.name for c in CELLS if c.variant != "int8"] == [
        "bf16", "fp8", "nf4", "q8_0", "q4_k", "comfy"
    ]  # fmt: skip


@pytest.mark.parametrize("cell", NAMED.values(), ids=NAMED)
def test_a_row_exists_in_conf(cell):
    overrides = [f"variant={cell.variant}"]
    if cell.recipe != "none" and cell.recipe not in ALPHAS:
        overrides.append(f"recipe={cell.recipe}")
    config = compose("evaluate", overrides)
    assert config.variant.name == cell.variant
    assert isinstance(config.recipe, RecipeConfig)
    if len(overrides) == 2:
        assert config.recipe.name == cell.recipe
    # an int8 format has a recipe in the ledger, every other has none
    assert (config.variant.gemm == "fake_quant") == (cell.recipe != "none")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.2, -0.1, "helps"),
        (0.1, 0.2, "hurts"),
        (-0.1, 0.1, "no difference seen"),
        (0.0, 0.0, "no difference seen"),
        (0.0, 0.1, "no difference seen"),
        (-0.1, 0.0, "no difference seen"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(low, high, verdict):
    assert judge(Interval((low + high) / 2, low, high, 5, "bca")) == verdict
    assert judge(None) == "not measured"


def test_scores_are_means_or_paired_differences_to_fp32():
    found = entries_of(ledger("mini", ["fp32", "naive", "rotate"]))
    naive, rotate = found["mini", "naive"], found["mini", "rotate"]
    assert naive.scores["latent_error"].estimate == pytest.approx(0.355)
    assert naive.scores["psnr"].estimate == pytest.approx(45.5)
    assert naive.scores["psnr"].low < 45.5 < naive.scores["psnr"].high
    assert naive.scores["ocr_exact"] == Interval(0, 0, 0, CAPTIONS, "degenerate")
    assert rotate.scores["ocr_exact"].estimate == pytest.approx(0.25 - 1)
    assert rotate.run_id == "mini-rotate"


def test_the_change_is_paired_with_naive_of_the_same_model():
    names = ["fp32", *SHIFTS]
    planted = ledger("mini_planted", ["fp32", "naive", "rotate"])
    for row in planted:
        row["value"] += 0.5 * (row["recipe"] == "rotate") - 0.7 * (row["recipe"] == "naive")
    found = entries_of(ledger("mini", names) + planted, ("mini", "mini_planted"))
    changes = {name: found["mini", name].change for name in SHIFTS}
    assert changes["naive"] is None and found["mini", "naive"].verdict == ""
    # every caption changes alike: without pairing 0.1 of spread would widen the interval
    assert changes["smooth_only"].low == pytest.approx(-0.2)
    assert changes["smooth_only"].high == pytest.approx(-0.2)
    assert changes["rotate"].estimate == pytest.approx(0.1)
    assert changes["protect_only"].low < 0 < changes["protect_only"].high
    assert found["mini_planted", "rotate"].change.estimate == pytest.approx(0.1 + 0.5 + 0.7)
    verdicts = {name: found["mini", name].verdict for name in SHIFTS if name != "naive"}
    assert verdicts == {
        "smooth_only": "helps", "rotate": "hurts", "protect_only": "no difference seen"
    }  # fmt: skip


def test_rows_of_another_kind_are_not_seen():
    for change in (
        {"backend": "torch-cpu"},
        {"prompt_set": "mini_easy"},
        {"engine": "turbo"},
        {"variant": "fused_int8"},
        {"dtype": "bfloat16"},
        {"recipe": "none"},
    ):
        assert find(rows_of("mini", "naive", **change)) == {}
    assert find(rows_of("maxi", "naive")) == {}
    # a run that was only timed is no second run
    timed = rows_of("mini", "naive", ["psnr"], scorer="seconds", run_id="timed")
    assert find(timed) == {} and set(find(timed + rows_of("mini", "naive"))) == {("mini", "naive")}
    assert set(find(rows_of("mini", "naive"))) == {("mini", "naive")}
    assert set(find(rows_of("mini", "bf16"))) == {("mini", "bf16")}
    assert set(find(rows_of("mini", "fp32"))) == {("mini", "fp32")}


def test_only_runs_of_the_asked_size_are_seen():
    rows = rows_of("mini", "naive") + rows_of("mini", "naive", captions=5, run_id="short")
    assert find(rows)["mini", "naive"].run_id == "mini-naive"
    assert find(rows, captions=5)["mini", "naive"].run_id == "short"
    assert find(rows, captions=6) == {}


def test_two_runs_of_one_cell_are_refused():
    rows = rows_of("mini", "naive") + rows_of("mini", "naive", run_id="again")
    with pytest.raises(
        UserError, match=r"mini naive must have the rows of one run .* got runs again and mini-naiv"
    ):
        find(rows)
    # also where each run has only some of the scores
    parts = rows_of("mini", "naive", ["psnr"]) + rows_of("mini", "naive", ["ssim"], run_id="again")
    with pytest.raises(UserError, match="must have the rows of one run with 12 captions"):
        find(parts)


def test_a_cell_is_measured_when_all_its_scores_are_there():
    alone = ["ocr_exact", "ocr_ned"]
    runs = find(rows_of("mini", "naive", alone) + rows_of("mini", "fp32", alone))
    assert is_measured(runs, "mini", REFERENCE)
    assert not is_measured(runs, "mini", NAMED["naive"])
    assert not is_measured(runs, "mini_planted", REFERENCE)
    assert not is_measured(find(rows_of("mini", "fp32", alone[:1])), "mini", REFERENCE)
    assert is_measured(find(rows_of("mini", "naive")), "mini", NAMED["naive"])
    for left_out in SCORERS:
        rest = [scorer for scorer in SCORERS if scorer != left_out]
        assert not is_measured(find(rows_of("mini", "naive", rest)), "mini", NAMED["naive"])


def test_what_is_missing_costs_only_what_needs_it():
    found = entries_of(ledger("mini", ["smooth_only"]))  # neither naive nor the reference
    entry = found["mini", "smooth_only"]
    assert set(entry.scores) == {"latent_error", "psnr", "ssim"}
    assert entry.change is None and entry.verdict == "not measured"
    assert found["mini", "rotate"].scores == {} and found["mini", "rotate"].run_id is None


def test_equal_rows_stay_apart_and_are_named():
    rows = ledger("mini", ["naive", "smooth_only"])
    rows += [r | {"recipe": "ladder_0", "run_id": "l"} for r in rows_of("mini", "smooth_only")]
    rows += [r | {"recipe": "ladder_2", "run_id": "n"} for r in rows_of("mini", "smooth_only")]
    almost = [r | {"recipe": "ladder_1", "run_id": "m"} for r in rows_of("mini", "smooth_only")]
    almost[0]["value"] += 1e-9
    found = entries_of(rows + almost)
    assert found["mini", "ladder_0"].same_as == "smooth_only"
    assert found["mini", "ladder_1"].same_as is None
    assert found["mini", "ladder_2"].same_as == "smooth_only"
    assert found["mini", "smooth_only"].same_as is None
    # rows without values are not equal to each other
    assert found["mini", "rotate"].same_as is None
    text = render_markdown(list(found.values()), "T")
    equal = "ladder_0 = smooth_only, ladder_2 = smooth_only"
    assert f"Equal latent errors on every caption of mini: {equal}.\n" in text
    assert re.search(r"^\| ladder_0 +\| 0.155 \[", text, re.MULTILINE)


def cells_of(text: str, row: str) -> list[list[str]]:
    """The cells of a row in both tables."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {row} ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def both() -> list:
    models = ("mini", "mini_planted")
    rows = ledger("mini", ["fp32", *SHIFTS]) + ledger("mini_planted", ["fp32", "naive", "rotate"])
    return list(entries_of(rows, models).values())


def test_markdown_has_the_models_side_by_side():
    text = render_markdown(both(), "Title")
    assert text.startswith("Title\n\n| row ")
    first, second = cells_of(text, "row")
    assert first == [
        "row",
        "mini: latent error ↓",
        "mini_planted (outliers planted): latent error ↓",
        "mini: change against naive",
        "mini_planted (outliers planted): change against naive",
    ]
    assert [h.split(":")[0] for h in second[1:]] == ["mini", "mini_planted"] * 3
    assert [cell.name for cell in CELLS] == re.findall(r"^\| (\w+) +\|", text, re.MULTILINE)[1:31]
    naive, naive_pictures = cells_of(text, "naive")
    assert re.fullmatch(r"0.355 \[0.33\d, 0.37\d\]", naive[1]) and naive[3] == ""
    assert naive_pictures[1].startswith("45.5 [4") and "(degenerate)" in naive_pictures[3]
    smooth, _ = cells_of(text, "smooth_only")
    assert smooth[2] == "not measured" == smooth[4]
    assert smooth[3] == "helps, -0.2 [-0.2, -0.2] (degenerate)"
    rotate, pictures = cells_of(text, "rotate")
    assert rotate[3].startswith("hurts, +0.1 [") and rotate[4].startswith("hurts, +0.1 [")
    assert pictures[5].startswith("-0.750 [-0.9")
    assert cells_of(text, "fp8") == [["fp8"] + 4 * ["not measured"], ["fp8"] + 6 * ["not measured"]]
    assert "lies below zero, *hurts* if it lies above; else *no difference seen*" in text


def test_words_say_which_recipes_do_not_help():
    text = render_markdown(both(), "Title")
    assert "\nRecipes that help on mini, 1 of 3: smooth_only.\n" in text
    reasons = "no difference is seen for protect_only; naive is better than rotate"
    assert f"\nRecipes that do not help on mini, 2 of 3: {reasons}.\n" in text
    assert "\nNot measured on mini: bf16, per_tensor, ladder_0, " in text
    planted = "mini_planted (outliers planted)"
    assert f"\nNo recipe of 1 helps on {planted}.\n" in text
    assert (
        f"\nRecipes that do not help on {planted}, 1 of 1: naive is better than rotate.\n" in text
    )
    nothing = render_markdown(ablate({}, ("mini",)), "Title")
    assert nothing.endswith("\nNothing is measured on mini yet.\n")
    helping = render_markdown(
        list(entries_of(ledger("mini", ["naive", "smooth_only"])).values()), ""
    )
    assert "do not help" not in helping
    # a format that does not help is no recipe
    rows = ledger("mini", ["fp32", "naive", "fp8", "comfy", "bf16"])
    assert "ecipe" not in render_markdown(list(entries_of(rows).values()), "").partition("Rule")[2]


def test_csv_holds_every_number():
    lines = list(csv.DictReader(io.StringIO(render_csv(both()))))
    # latent error, PSNR, SSIM, two OCR deltas, and the change of all rows but naive
    assert len(lines) == 2 * (len(CELLS) * 6 - 1)
    keyed = {(row["model"], row["row"], row["measure"]): row for row in lines}
    assert len(keyed) == len(lines)
    change = keyed["mini", "smooth_only", "latent_error_change"]
    assert change == {
        "model": "mini", "row": "smooth_only", "variant": "int8", "recipe": "smooth_only",
        "dtype": "float32", "run_id": "mini-smooth_only", "measure": "latent_error_change",
        "estimate": "-0.2", "low": "-0.2", "high": "-0.2", "method": "degenerate",
        "verdict": "helps",
    }  # fmt: skip
    assert keyed["mini", "rotate", "ocr_exact_delta"]["estimate"] == "-0.75"
    mean = keyed["mini", "naive", "latent_error"]
    assert (mean["estimate"], mean["method"], mean["verdict"]) == ("0.355", "bca", "")
    absent = keyed["mini_planted", "smooth_only", "latent_error_change"]
    assert (absent["estimate"], absent["method"], absent["verdict"]) == (
        "", "not measured", "not measured"
    )  # fmt: skip


def test_equal_rows_give_equal_bytes_in_any_order():
    rows = ledger("mini", ["fp32", *SHIFTS])
    texts = set()
    for order in (rows, rows[::-1], list(np.random.default_rng(1).permutation(rows))):
        entries = list(entries_of(order).values())
        texts.add((render_markdown(entries, "T"), render_csv(entries)))
    assert len(texts) == 1
