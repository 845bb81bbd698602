"""scripts/verdicts.py: what the ledger says of every variant."""

import numpy as np
import pytest

from dit8.eval.ledger import SCORES, upsert

N = 60


def rows_for(variant, values, *, dtype="float32", run=None, scorer="ocr_exact", **change):
    shared = {"model": "mini", "variant": variant, "recipe": "none", "engine": "stock"}
    shared |= {"dtype": dtype, "backend": "torch-cuda", "prompt_set": "mini_hard"}
    shared |= {"run_id": run or f"run-{variant}-{dtype}", "scorer": scorer} | change
    return [
        shared | {"prompt_id": f"p{i:02}", "seed": i, "value": float(value)}
        for i, value in enumerate(values)
    ]


@pytest.fixture
def ledger(tmp_path):
    base = np.ones(N)
    base[:10] = 0.0
    broken = base.copy()
    broken[20:50] = 0.0
    noisy = base.copy()
    noisy[:2] = 1.0
    rows = rows_for("bf16", base) + rows_for("bf16", noisy, dtype="bfloat16")
    rows += rows_for("nf4", broken) + rows_for("q8_0", base)
    rows += rows_for("int8", base, recipe="naive")  # another recipe than the one asked for
    upsert(tmp_path / "scores.csv", SCORES, rows)
    return tmp_path


def test_every_variant_is_judged_beside_the_noise_floor(ledger, run_here):
    ended = run_here("verdicts", "--results", str(ledger))
    assert ended.document["verdicts"] == {"nf4": "worse", "q8_0": "not decided"}
    text = (ledger / "tables" / "verdicts_mini.md").read_text(encoding="utf-8")
    assert text.startswith(
        "Model mini, prompts mini_hard, float32, engine stock, torch-cuda; recipe"
    )
    assert "it says nothing about Ideogram 4" in text
    assert "- nf4 is worse than bf16 by ocr_exact -0.5 [" in text and "naive" not in text
    (worse,) = (line for line in text.splitlines() if line.startswith("| nf4"))
    cells = [cell.strip() for cell in worse.strip("|").split("|")]
    # two of sixty pictures became exact: half of Newcombe's interval of +0.033
    assert cells[4] and 0.03 < float(cells[4]) < 0.08
    assert cells[5] == "0.05" and float(cells[6]) < 1e-6 and cells[-1] == "worse"


def test_without_another_arithmetic_there_is_no_floor(ledger, run_here, tmp_path):
    rows = rows_for("bf16", np.ones(N)) + rows_for("q8_0", np.ones(N))
    upsert(tmp_path / "bare" / "scores.csv", SCORES, rows)
    ended = run_here("verdicts", "--results", str(tmp_path / "bare"))
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("| q8_0"))
    assert line.split("|")[5].strip() == ""


def test_what_is_lacking_or_ambiguous_is_one_sentence(ledger, run_here, one_sentence):
    ended = run_here("verdicts", "--results", str(ledger), "--engine", "dit8")
    one_sentence(ended, "verdicts", "the ledger must have rows of bf16 with .* got none; run")
    upsert(ledger / "scores.csv", SCORES, rows_for("nf4", np.ones(N), run="again"))
    ended = run_here("verdicts", "--results", str(ledger))
    one_sentence(ended, "verdicts", "variant nf4 must have one run, got again, run-nf4-float32; ")
