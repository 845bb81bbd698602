import json

import pytest

from dit8.eval.reproduce.runs import CPU, GPU, MINI, REAL, choose_recipes, choose_runs, place_in
from dit8.quant.errors import UserError

OCR = ("ocr_exact",)
VALUES = {"ocr_exact": [0, 1, 1, 0]}


def chosen(ledger, scorers=OCR, place=MINI, **options):
    found = choose_runs(ledger.results, place, scorers, **options)
    return {variant: run.run_id for variant, run in found.items()}


@pytest.fixture
def two(ledger):
    ledger.add("a" * 12, "bf16", VALUES)
    ledger.add("b" * 12, "fp8", VALUES)
    return ledger


def test_the_newest_of_two_runs_counts(two):
    two.add("0" * 12, "fp8", VALUES, started="2026-02-01")
    assert chosen(two) == {"bf16": "a" * 12, "fp8": "0" * 12}


@pytest.mark.parametrize(
    "other",
    [
        {"model": "mini_planted"},
        {"dtype": "bfloat16"},
        {"engine": "dit8"},
        {"backend": "torch-cpu"},
        {"prompt_set": "mini_easy"},
        {"prompt_set": "mini_hard-raw"},
        {"recipe": "naive"},
    ],
    ids=lambda other: next(iter(other.items())),
)
def test_rows_with_another_key_do_not_count(two, other):
    two.add("c" * 12, "fp8", VALUES, started="2026-02-01", **other)
    assert chosen(two) == {"bf16": "a" * 12, "fp8": "b" * 12}


def test_a_run_under_another_sampler_or_with_other_pictures_does_not_count(two):
    late = {"started": "2026-02-01"}
    sampler = {"name": "turbo_12", "steps": 12, "guidance": 3.0, "size_px": 256}
    two.add("c" * 12, "fp8", VALUES, sampler=sampler, **late)
    two.add("d" * 12, "fp8", {"ocr_exact": [1, 1, 1]}, **late)
    two.add("e" * 12, "fp8", VALUES, prompts=["p0", "p1", "p2", "other"], **late)
    assert chosen(two) == {"bf16": "a" * 12, "fp8": "b" * 12}


def test_a_run_of_another_size_belongs_to_another_place(two):
    sampler = {"name": "default_20", "steps": 20, "guidance": 3.0, "size_px": 128}
    for run_id, variant in (("c", "bf16"), ("d", "fp8")):
        two.add(run_id * 12, variant, VALUES, sampler=sampler, started="2026-02-01")
    assert chosen(two) == {"bf16": "a" * 12, "fp8": "b" * 12}
    assert chosen(two, place=MINI.at(128)) == {"bf16": "c" * 12, "fp8": "d" * 12}


@pytest.mark.parametrize("other", [{"steps": 12}, {"guidance": 1.0}, {"name": "turbo_12"}])
def test_runs_of_all_variants_under_another_sampler_enter_no_table(two, other):
    sampler = {"name": "default_20", "steps": 20, "guidance": 3.0, "size_px": 256} | other
    for run_id, variant in (("c", "bf16"), ("d", "fp8")):
        two.add(run_id * 12, variant, VALUES, sampler=sampler, started="2026-02-01")
    assert chosen(two) == {"bf16": "a" * 12, "fp8": "b" * 12}


def test_the_reference_with_the_most_pictures_decides(two):
    two.add("c" * 12, "bf16", {"ocr_exact": [1, 1, 1]}, started="2026-02-01")
    assert chosen(two)["bf16"] == "a" * 12


def test_scores_against_the_reference_alone_need_no_row_of_it(two):
    two.add("c" * 12, "int8", {"psnr": [40, 41, 42]}, recipe="smoothquant")
    assert chosen(two, ("psnr",)) == {"int8": "c" * 12}
    assert chosen(two, ("ssim",)) == {}


def test_captions_without_texts_have_fewer_scores_of_texts_than_pictures(two):
    scores = VALUES | {"latent_error": [0.1] * 6}
    two.add("c" * 12, "int8", scores, recipe="smoothquant")
    few = {"ocr_exact": [1, 1, 1], "latent_error": [0.1] * 6}
    two.add("d" * 12, "int8", few, recipe="smoothquant", started="2026-02-01")
    two.add("e" * 12, "nf4", {"latent_error": [0.1] * 3})
    found = chosen(two, ("ocr_exact", "latent_error"))
    assert found == {"bf16": "a" * 12, "fp8": "b" * 12, "int8": "c" * 12}


def test_raw_captions_are_runs_of_their_own(two):
    two.add("c" * 12, "bf16", VALUES, prompt_set="mini_hard-raw")
    assert chosen(two, is_raw=True) == {"bf16": "c" * 12}


def test_recipes_of_int8_fused_or_not(two):
    two.add("c" * 12, "int8", VALUES, recipe="naive")
    two.add("d" * 12, "fused_int8", VALUES, recipe="rotate", backend="triton")
    two.add("e" * 12, "comfy", VALUES, recipe="published")
    found = choose_recipes(two.results, MINI, OCR, ("naive", "rotate", "published"))
    assert {name: run.run_id for name, run in found.items()} == {
        "naive": "c" * 12,
        "rotate": "d" * 12,
    }


def test_a_run_without_its_record_is_named(two):
    (two.results / "runs" / f"{'b' * 12}.json").unlink()
    with pytest.raises(UserError, match=r"bbbb.json must say when run b+ started, .*got FileNot"):
        chosen(two)
    (two.results / "runs" / f"{'b' * 12}.json").write_text(json.dumps({"started": "x"}))
    with pytest.raises(UserError, match="got KeyError; restore it, or remove the run's rows"):
        chosen(two)


def test_the_command_of_an_empty_cell_names_table_model_and_hardware():
    assert REAL.command(3) == (
        "python scripts/reproduce.py --run table=3 model=ideogram4 hardware=cuda_24gb"
    )
    assert "model mini, prompts mini_hard, 256 px, sampler default_20 with 20 steps" in MINI.rule


def test_a_place_stays_where_the_ledger_has_a_row_of_it(two):
    for index in range(3):
        two.add(str(index) * 12, "int8", VALUES, backend="torch-cpu", prompt_set="mini_easy")
    assert place_in(two.results, MINI) is MINI
    assert place_in(two.results, REAL) == REAL  # no row of that model: nowhere else to look


def test_a_place_without_rows_moves_to_the_most_pictures_under_its_sampler(ledger):
    assert place_in(ledger.results, MINI) == MINI
    ledger.add("a" * 12, "bf16", VALUES, backend="torch-cpu", prompt_set="mini_easy")
    moved = place_in(ledger.results, MINI)
    assert (moved.prompt_set, moved.backends) == ("mini_easy", CPU)
    assert "prompts mini_easy, 256 px" in moved.rule and "torch-cpu or cpu-ref" in moved.rule
    ledger.add("b" * 12, "bf16", {"ocr_exact": [1] * 5}, prompt_set="mini_medium-raw")
    moved = place_in(ledger.results, MINI)
    assert (moved.prompt_set, moved.backends) == ("mini_medium", GPU)
    other = {"sampler": {"name": "turbo_12", "steps": 12, "guidance": 3.0, "size_px": 256}}
    ledger.add("c" * 12, "bf16", {"ocr_exact": [1] * 9}, prompt_set="mini_easy", **other)
    assert place_in(ledger.results, MINI) == moved
    assert chosen(ledger, place=moved, is_raw=True) == {"bf16": "b" * 12}
