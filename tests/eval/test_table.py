from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from dit8.eval.exact_match import discordant_interval
from dit8.eval.ledger import SCORES
from dit8.eval.run import RunKey
from dit8.eval.stats import mean_interval
from dit8.eval.table import format_range, render_markdown, score_document, summarize
from dit8.quant.errors import UserError

BF16 = RunKey("00000000000a", "mini", "bf16", "none", "diffusers", "float32", "torch", "hard")
INT8 = replace(BF16, run_id="00000000000b", variant="int8", backend="fake-quant")


def frame(*groups: tuple[RunKey, str, list[float]]) -> pd.DataFrame:
    rows = [
        asdict(run) | {"prompt_id": f"p{i}", "seed": 0, "scorer": scorer, "value": value}
        for run, scorer, values in groups
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=list(SCORES.columns))


def keyed(values: list[float]) -> dict:
    return {(f"p{i}", 0): value for i, value in enumerate(values)}


A = [0.1, 0.5, 0.2, 0.9, 0.4]
B = [0.2, 0.4, 0.5, 0.9, 0.9]
PSNR = [30.0, 31.0, 35.5, 40.0, 32.0]


@pytest.fixture
def scores() -> pd.DataFrame:
    rows = frame((INT8, "ocr_ned", B), (INT8, "psnr", PSNR), (BF16, "ocr_ned", A))
    return rows.sample(frac=1, random_state=1)  # order must not matter


def test_means_and_paired_differences(scores):
    summary = summarize(scores, reference="bf16")
    assert [(row.scorer, row.variant, row.samples) for row in summary] == [
        ("ocr_ned", "bf16", 5),
        ("ocr_ned", "int8", 5),
        ("psnr", "int8", 5),
    ]
    reference, ned, psnr = summary
    assert reference.mean == mean_interval(keyed(A)) and reference.delta is None
    assert ned.mean == mean_interval(keyed(B))
    assert ned.delta == discordant_interval(keyed(B), keyed(A))  # a share, of which few changed
    assert ned.delta.method == "adjusted wald"
    assert ned.delta.estimate == pytest.approx(0.16, rel=1e-12)  # variant minus reference
    assert psnr.delta is None  # already measured against the reference
    assert (ned.model, ned.prompt_set, ned.backend) == ("mini", "hard", "fake-quant")


def test_the_markdown_is_aligned_and_marks_intervals_that_are_not_bca(scores):
    text = render_markdown(summarize(scores, reference="bf16"))
    title, blank, *table = text.splitlines()
    assert (title, blank) == ("Model mini, prompts hard", "")
    assert len({len(line) for line in table}) == 1 and len(table) == 5
    assert "Δ to bf16 [95 %]" in table[0] and set(table[1]) == {"|", "-", " "}
    assert table[3].startswith("| ocr_ned ↓ | edit distance / longer length | 0 to 1 ")
    assert "| 0 to 1   | int8 " in table[3] and "| 0 to 100 | int8 " in table[4]
    assert "| 0.58 [" in table[3] and "| +0.16 [" in table[3]
    assert table[3].count("(") == 1 and table[3].rstrip(" |").endswith("] (adjusted wald)")
    assert table[4].startswith("| psnr ↑ ") and table[4].rstrip(" |").endswith("]")
    assert text == render_markdown(summarize(scores.iloc[::-1], reference="bf16"))

    same = frame((BF16, "ocr_exact", [1.0] * 4), (INT8, "ocr_exact", [1.0] * 4))
    text = render_markdown(summarize(same, reference="bf16"))
    # four pairs that agree do not show that none ever differs
    assert "| 1 [1, 1] (degenerate) | +0 [-0.4899, +0.4899] (newcombe) |" in text
    with pytest.raises(ValueError, match=r"summary must hold at least one row"):
        render_markdown([])


def test_the_document_of_one_variant(scores):
    summary = summarize(scores, reference="bf16")
    document = score_document(summary, "int8", "float32")
    assert set(document["scores"]) == {"ocr_ned", "psnr"}
    assert set(document["paired"]) == {"ocr_ned"}
    assert set(document["paired"]["ocr_ned"]) == {"delta", "low", "high"}
    assert document["scores"]["psnr"]["mean"] == np.mean(PSNR)
    assert score_document(summary, "bf16", "float32")["paired"] == {}


def test_each_dtype_has_its_own_reference():
    bf16_half = replace(BF16, run_id="00000000000c", dtype="bfloat16")
    int8_half = replace(INT8, run_id="00000000000d", dtype="bfloat16")
    rows = frame((BF16, "ocr_ned", A), (INT8, "ocr_ned", B), (int8_half, "ocr_ned", A))
    with pytest.raises(
        UserError, match=r"reference variant 'bf16' has no ocr_ned .* bfloat16, got"
    ):
        summarize(rows, reference="bf16")
    rows = pd.concat([rows, frame((bf16_half, "ocr_ned", B))])
    summary = summarize(rows, reference="bf16")
    deltas = {(r.variant, r.dtype): r.delta.estimate for r in summary if r.delta}
    assert deltas[("int8", "float32")] == -deltas[("int8", "bfloat16")] != 0


def test_models_prompt_sets_and_runs_are_not_mixed(scores):
    for column, match in [
        ("model", r"several model values: mini, other; expected one"),
        ("prompt_set", r"several prompt_set values: hard, other"),
        ("run_id", r"several run_id values for variant 'int8' at dtype float32: 00000000000b, oth"),
    ]:
        mixed = scores.copy()
        first_int8 = mixed.index[mixed["variant"] == "int8"][0]
        mixed.loc[first_int8, column] = "other"
        with pytest.raises(UserError, match=match):
            summarize(mixed, reference="bf16")


def test_missing_rows_are_errors(scores):
    with pytest.raises(UserError, match=r"no rows to summarize; evaluate a variant first"):
        summarize(scores.iloc[:0], reference="bf16")
    with pytest.raises(UserError, match=r"reference variant 'fp8' has no ocr_ned rows"):
        summarize(scores, reference="fp8")
    lone = (scores["variant"] == "bf16") & (scores["prompt_id"] == "p3")
    with pytest.raises(UserError, match=r"missing from the second variant, p3 \(seed 0\)"):
        summarize(scores[~lone], reference="bf16")


def test_a_range_may_have_no_end():
    assert format_range((0.0, 100.0)) == "0 to 100"
    assert format_range((-1.0, 1.0)) == "-1 to 1"
    assert format_range((0.0, float("inf"))) == "≥ 0"
