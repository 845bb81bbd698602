import numpy as np
import pandas as pd
import pytest

from dit8.eval.ledger import SCORES, upsert
from dit8.eval.stats import paired_interval
from dit8.quant.errors import UserError
from dit8.scripts.compare import compare


def rows_for(variant, values, scorer="psnr", run=None):
    shared = {"model": "mini", "variant": variant, "recipe": "none", "engine": "stock"}
    shared |= {"dtype": "float32", "backend": "cpu", "prompt_set": "mini_hard"}
    shared |= {"run_id": run or f"run-{variant}", "scorer": scorer}
    return [
        shared | {"prompt_id": f"p{i}", "seed": i, "value": float(value)}
        for i, value in enumerate(values)
    ]


def arms(rows):
    table = pd.DataFrame(rows)
    return {name: table[table["variant"] == name] for name in ("a", "b")}


A, B = np.arange(20.0), np.arange(20.0)[::-1] / 2


def test_the_difference_is_paired_and_only_shared_scores_count():
    rows = rows_for("a", A) + rows_for("b", B) + rows_for("a", A, "ssim")
    rows += rows_for("a", A, "seconds") + rows_for("b", B, "seconds")  # differs by machine
    lines = compare(arms(rows[::-1])).splitlines()
    assert lines[0] == "| score | unit | n | a | b | a - b [95 %] |" and len(lines) == 3
    keys = [(f"p{i}", i) for i in range(20)]
    expected = paired_interval(dict(zip(keys, A, strict=True)), dict(zip(keys, B, strict=True)))
    assert lines[2].startswith("| psnr ↑ | dB | 20 | 9.5 [")
    assert lines[2].endswith(f"| +4.75 [{expected.low:+.3g}, {expected.high:+.3g}] |")


def test_what_cannot_be_compared():
    rows = rows_for("a", A) + rows_for("b", B, "ssim")
    with pytest.raises(UserError, match=r"must have a score in common, got \['psnr'\] and"):
        compare(arms(rows))
    rows = rows_for("a", A) + rows_for("b", B) + rows_for("b", B, run="again")
    with pytest.raises(UserError, match="psnr of b must come from one run, got again, run"):
        compare(arms(rows))
    rows = rows_for("a", A) + rows_for("b", B[:-1])
    with pytest.raises(UserError, match="1 samples are missing from the second variant"):
        compare(arms(rows))


def test_the_script_writes_the_table(tmp_path, run_here, one_sentence):
    upsert(tmp_path / "scores.csv", SCORES, rows_for("a", A) + rows_for("b", B))
    ended = run_here("compare", "a", "b", "--results", str(tmp_path))
    page = tmp_path / "tables" / "a_against_b_mini.md"
    assert ended.document == {"table": str(page)}
    text = page.read_text(encoding="utf-8")
    assert text.startswith(
        "Model mini, prompts mini_hard, float32, engine stock, backends: a cpu, b cpu\n\n| score |"
    )
    ended = run_here("compare", "a", "b", "--results", str(tmp_path), "--engine", "dit8")
    one_sentence(ended, "compare", "must have a score in common, got")


def test_two_ways_to_prompt_one_variant(tmp_path, run_here, one_sentence):
    raw = [row | {"prompt_set": "mini_hard-raw", "run_id": "raw"} for row in rows_for("a", B)]
    elsewhere = [row | {"backend": "cuda", "run_id": "gpu"} for row in rows_for("a", A)]
    upsert(tmp_path / "scores.csv", SCORES, rows_for("a", A) + raw + elsewhere)
    words = ["a", "a", "--results", str(tmp_path), "--other-prompts", "mini_hard-raw"]
    one_sentence(run_here("compare", *words), "compare", "narrow the choice with --engine")
    assert run_here("compare", *words, "--backend", "cpu").code == 0
    page = tmp_path / "tables" / "a_mini_hard_against_a_mini_hard-raw_mini.md"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Model mini, prompts mini_hard and mini_hard-raw, float32, engine stock")
    assert "backends: a mini_hard cpu, a mini_hard-raw cpu" in text and "| +4.75 [" in text
    ended = run_here("compare", "a", "a", "--results", str(tmp_path))
    one_sentence(ended, "compare", "the two must differ, got a twice; name another variant, or")
