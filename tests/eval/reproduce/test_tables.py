"""What each table shows of rows whose answer is known, and what of rows that are not there."""

import pandas as pd
import pytest

from dit8.eval.reproduce import (
    ablation,
    fidelity,
    frontier,
    quality,
    text,
)
from dit8.eval.reproduce.runs import VARIANTS
from dit8.eval.reproduce.table import MEASURED, PREDICTED, REPORTED, tally
from dit8.eval.reproduce.tables import BUILDERS, build_tables
from dit8.quant.errors import UserError


def test_an_empty_ledger_gives_all_tables_with_reasons(ledger, cells, pick):
    tables = build_tables(ledger.results)
    assert [table.number for table in tables] == list(range(1, 10)) == list(BUILDERS)
    for table in tables:
        for row in table.rows:
            for cell in row:
                assert not cell.is_empty or cell.reason
    scores = cells(tables[2], "clip_mini ↑", "100 x cosine (clip-mini)", "int8")
    lacking = pick(scores, "mini", "mean")
    assert lacking.reason == "not measured"
    assert lacking.command.endswith("--run table=3 model=mini hardware=cuda")
    assert pick(scores, "Ideogram 4", "mean").reason.startswith("does not apply")
    hps = cells(tables[2], "hpsv2 ↑", "cosine", "int8")
    large = "needs the gated weights and a card of more than 24 GB"
    assert pick(hps, "Ideogram 4", "mean").reason == large
    nf4 = cells(tables[2], "hpsv2 ↑", "cosine", "nf4")
    assert pick(nf4, "Ideogram 4", "mean").reason == "needs the gated weights"
    assert pick(hps, "mini", "mean").command.startswith("python scripts/evaluate.py -m variant=")


def test_quality_is_paired_with_fp8_and_judged(ledger, cells, pick):
    base = [50.0, 60.0, 70.0, 55.0, 65.0]
    ledger.add("a" * 12, "bf16", {"clip_mini": base})
    ledger.add("b" * 12, "fp8", {"clip_mini": [value + 1 for value in base]})
    worse = [value - 9 + index / 10 for index, value in enumerate(base)]
    ledger.add("c" * 12, "nf4", {"clip_mini": worse})
    table = quality.build(ledger.results)
    row = ("clip_mini ↑", "100 x cosine (clip-mini)")
    assert pick(cells(table, *row, "fp8"), "mini", "Δ to fp8").text == "reference"
    bf16 = cells(table, *row, "bf16")
    assert pick(bf16, "mini", "mean").value == 60.0
    assert pick(bf16, "mini", "Δ to fp8").value == -1.0
    assert pick(cells(table, *row, "nf4"), "mini", "verdict").text == "worse"
    assert pick(cells(table, *row, "int8"), "mini", "mean").reason == "not measured"
    nf4 = cells(table, "clipscore ↑", "100 x cosine", "nf4")
    assert pick(nf4, "Ideogram 4", "mean", "reported").value == 15.75


def test_quality_without_fp8_has_means_alone(ledger, cells, pick):
    ledger.add("a" * 12, "bf16", {"clip_mini": [50.0, 60.0, 70.0]})
    row = cells(quality.build(ledger.results), "clip_mini ↑", "100 x cosine (clip-mini)", "bf16")
    assert pick(row, "mini", "mean").value == 60.0
    assert pick(row, "mini", "Δ to fp8").reason == "fp8 is not measured"


def test_texts_json_against_raw(ledger, cells, pick):
    def add(run_id, variant, exact, **key):
        scores = {"ocr_exact": exact, "ocr_ned": [1 - value for value in exact]}
        ledger.add(run_id * 12, variant, scores, **key)

    add("a", "bf16", [1, 1, 1, 0])
    add("b", "fp8", [1, 1, 0, 0])
    add("c", "bf16", [0, 0, 1, 0], prompt_set="mini_hard-raw")
    table = text.build(ledger.results)
    json = cells(table, "JSON", "all", "bf16")
    assert pick(json, "mini", "exact").value == 0.75
    assert pick(json, "mini", "exact, Δ to fp8").value == 0.25
    assert pick(json, "mini", "NED, Δ to fp8").value == -0.25
    assert pick(cells(table, "raw", "all", "bf16"), "mini", "exact").value == 0.25
    change = pick(cells(table, "JSON − raw", "all", "bf16"), "mini", "exact")
    assert (change.value, change.spec, change.method) == (0.5, "+.3f", "newcombe")
    lacking = pick(cells(table, "raw", "all", "fp8"), "mini", "exact")
    assert lacking.command.endswith("--run table=4 model=mini hardware=cuda")
    reported = cells(table, "JSON", "all", "not stated")
    assert pick(reported, "Ideogram 4", "exact", "reported").value == 0.55
    old = cells(table, "of version 1", "all", "nf4")
    assert pick(old, "Ideogram 4", "NED", "reported").value == 0.76


def test_texts_per_kind_of_content_of_the_real_prompts(ledger, cells, pick, real):
    rows = pd.read_json(text.PROMPTS / "bench300.jsonl", lines=True)
    rows = rows[rows["texts"].str.len() > 0]
    kinds = ("poster", "cover")
    posters, covers = (list(rows[rows["category"] == kind]["id"][:4]) for kind in kinds)
    scores = {"ocr_exact": [1, 1, 1, 0, 0, 0, 0, 0], "ocr_ned": [0.0] * 8}
    ledger.add("a" * 12, "fp8", scores, prompts=[*posters, *covers], **real)
    table = text.build(ledger.results)
    assert pick(cells(table, "JSON", "poster", "fp8"), "Ideogram 4", "exact").value == 0.75
    assert pick(cells(table, "JSON", "cover", "fp8"), "Ideogram 4", "exact").value == 0.0
    contents = {row[1].text for row in table.rows} - {"all"}
    assert contents == set(rows["category"])  # kinds without texts have nothing to be read
    few = pick(cells(table, "JSON", "signage", "fp8"), "Ideogram 4", "exact")
    assert few.reason == "fewer than 3 captions of this kind"
    assert "one kind" in pick(cells(table, "JSON", "poster", "fp8"), "mini", "exact").reason


def test_fidelity_and_its_difference_to_int8(ledger, cells, pick):
    ledger.add("a" * 12, "int8", {"latent_error": [0.1, 0.2, 0.3]}, recipe="smoothquant")
    ledger.add("b" * 12, "nf4", {"latent_error": [0.5, 0.7, 0.6], "psnr": [20, 21, 22]})
    table = fidelity.build(ledger.results)
    nf4 = cells(table, "nf4")
    assert pick(nf4, "mini", "PSNR ↑").value == 21.0
    assert pick(nf4, "mini", "latent error, Δ to int8").value == pytest.approx(0.4)
    assert pick(nf4, "mini", "SSIM ↑").reason == "not measured"
    assert pick(nf4, "mini", "LPIPS ↓").reason == "needs the extra lpips and its backbone"
    assert pick(cells(table, "bf16"), "mini", "PSNR ↑").text == "reference"
    assert pick(cells(table, "fp8"), "Ideogram 4,", "PSNR ↑").text == "reference"
    assert pick(cells(table, "bf16"), "Ideogram 4,", "PSNR ↑").reason == (
        "does not apply: no public bf16 weights"
    )
    # on a card of 24 GB the unfused int8 is left out
    large = pick(cells(table, "int8"), "Ideogram 4,", "latent error, Δ to fused_int8")
    assert large.reason == "needs the gated weights and a card of more than 24 GB"
    base = pick(cells(table, "fused_int8"), "Ideogram 4,", "latent error, Δ to fused_int8")
    assert base.text == "reference"
    assert pick(cells(table, "int8"), "Ideogram 4 against", "LPIPS ↓", "reported").value == 0.243
    both = pick(cells(table, "nf4 and q4_k"), "Ideogram 4 against", "LPIPS ↓", "reported")
    assert (both.low, both.high) == (0.277, 0.306)


def test_the_ladder_is_that_of_the_ablation(committed, built, cells, pick):
    table = built[6]
    rows = pd.read_csv(committed / "tables" / "ablation.csv", keep_default_na=False)
    rows = rows[(rows["model"] == "mini") & (rows["measure"] == "latent_error_change")]
    for row in rows.itertuples():
        found = cells(table, row.row)
        change = pick(found, "mini (not", "change against naive")
        assert f"{change.value:.6g} {change.low:.6g}" == f"{row.estimate} {row.low}"
        assert pick(found, "mini (not", "verdict").text == row.verdict
    reported = pick(cells(table, "naive"), "Ideogram 4", "CLIPScore, Δ", "reported")
    assert reported.value == -3


def test_the_ladder_of_the_real_model(ledger, cells, pick, real):
    scores = {"clipscore": [20.0, 22.0, 24.0]}
    ledger.add("a" * 12, "fp8", scores, **real)
    ledger.add("b" * 12, "fused_int8", scores, **real, recipe="naive", backend="triton")
    table = ablation.build(ledger.results)
    assert pick(cells(table, "naive"), "Ideogram 4", "CLIPScore ↑").value == 22.0
    rotate = pick(cells(table, "rotate"), "Ideogram 4", "CLIPScore ↑")
    assert rotate.reason == "needs the gated weights"
    assert rotate.command == ablation.direct_command("rotate") and "recipe=rotate" in rotate.command
    planned = pick(cells(table, "smooth_only"), "Ideogram 4", "CLIPScore ↑")
    assert planned.command.endswith("--run table=6 model=ideogram4 hardware=cuda_24gb")
    comfy, bf16 = (pick(cells(table, n), "Ideogram 4", "CLIPScore ↑") for n in ("comfy", "bf16"))
    assert comfy.reason.startswith("does not apply") and "no public bf16" in bf16.reason
    assert pick(cells(table, "fp8"), "Ideogram 4", "CLIPScore ↑").reason == "see tables 3 and 5"


def test_the_frontier_by_size_and_distance(ledger, cells, pick):
    for index, (variant, error) in enumerate((("fp8", 0.2), ("q8_0", 0.1), ("q4_k", 0.4))):
        values = {"latent_error": [error, error + 0.01, error + 0.02]}
        ledger.add(f"{index}" * 12, variant, values)
    values = {"latent_error": [0.3, 0.31, 0.32]}
    ledger.add("9" * 12, "int8", values, recipe="smoothquant")
    table = frontier.build(ledger.results)
    shown = {
        name: pick(cells(table, name), "mini", "on the frontier").text
        for name in ("bf16", "fp8", "q8_0", "q4_k", "int8")
    }
    assert shown == {"bf16": "reference", "fp8": "yes", "q8_0": "yes", "q4_k": "yes", "int8": "no"}
    size = pick(cells(table, "q4_k"), "full size", "size")
    assert size.value == pytest.approx(10.48, abs=0.005) and "extrapolated" in size.note
    assert pick(cells(table, "int8"), "published", "size", "reported").value == 20.4


def test_a_file_that_was_not_written_has_no_size(ledger, cells, pick):
    rows = pd.read_csv(ledger.results / "convert" / "convert.csv")
    (ledger.results / "convert").unlink()
    (ledger.results / "convert").mkdir()
    rows[rows["target"] != "nf4"].to_csv(ledger.results / "convert" / "convert.csv", index=False)
    ledger.add("9" * 12, "bf16", {"latent_error": [0.3, 0.31, 0.32]})
    table = frontier.build(ledger.results)
    assert pick(cells(table, "nf4"), "full size", "size").reason == "not measured"
    assert pick(cells(table, "fp8"), "full size", "size").value > 19


@pytest.mark.parametrize("variant", ["bf16", "fp8", "int8", "q8_0", "nf4", "q4_k"])
def test_counted_sizes_are_those_of_the_files(built, variant, cells, pick):
    found = cells(built[7], variant)
    counted = pick(found, "full size", "size", "counted").value
    # scales, norms and headers are below a per mille; q4_k is extrapolated from 4 of 34 blocks
    bound = 0.005 if variant == "q4_k" else 0.001
    assert pick(found, "full size", "size").value == pytest.approx(counted, rel=bound)


def test_every_variant_of_the_papers_is_in_every_table_of_variants(built):
    for number in (1, 3, 4, 5, 7):  # speed, quality, text, fidelity, frontier
        texts = {cell.text for row in built[number].rows for cell in row}
        assert set(VARIANTS) <= texts


def test_an_unknown_table_and_damaged_rows_are_named(ledger):
    with pytest.raises(UserError, match=r"table must be one of 1, 2, .*, 9, got 10; correct it"):
        build_tables(ledger.results, (10,))
    (ledger.results / "bench").unlink()
    (ledger.results / "bench").mkdir()
    (ledger.results / "bench" / "model.csv").write_text("")
    with pytest.raises(UserError, match=r"model.csv must be a readable CSV, got EmptyData"):
        build_tables(ledger.results, (1,))
    (ledger.results / "bench" / "model.csv").write_text("run_id,gpu\n")
    with pytest.raises(UserError, match=r"got none called variant, engine"):
        build_tables(ledger.results, (9,))
    (ledger.results / "convert").unlink()
    (ledger.results / "convert").mkdir()
    (ledger.results / "convert" / "convert.csv").write_text("target\n")
    with pytest.raises(UserError, match=r"convert.csv must have target, weights and size_bytes"):
        build_tables(ledger.results, (7,))


def test_without_any_row_nothing_is_measured_and_the_papers_figures_stand(tmp_path):
    counts = tally(build_tables(tmp_path))
    assert counts[MEASURED] == counts[PREDICTED] == 0 and counts[REPORTED] == 57


def test_the_ablation_takes_the_runs_with_the_most_captions(ledger, cells, pick):
    """On a CPU where no row is from a GPU, however many captions there are."""
    few = {"backend": "torch-cpu", "variant": "int8", "prompt_set": "mini_easy"}
    for run_id, recipe, n in (("a", "naive", 4), ("b", "smoothquant", 4), ("c", "rotate", 3)):
        ledger.add(run_id * 12, values={"latent_error": [0.1] * n}, recipe=recipe, **few)
    table = ablation.build(ledger.results)
    assert "prompts mini_easy, 4 captions, torch-cpu, engine stock" in table.notes[0]
    found = {n: pick(cells(table, n), "mini (not", "latent error ↓") for n in ("naive", "rotate")}
    assert found["naive"].value == pytest.approx(0.1) and found["rotate"].is_empty
