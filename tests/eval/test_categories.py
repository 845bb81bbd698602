from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dit8.eval.categories import (
    CategoryRow,
    categories_of,
    render_categories,
    split_by_category,
    summarize_categories,
)
from dit8.eval.exact_match import discordant_interval
from dit8.eval.stats import mean_interval
from dit8.models.types import Prompt, Sample
from dit8.quant.errors import UserError

# six signs, four covers, two of food, one without a category
KINDS = {f"p{i}": "signage" for i in range(6)} | {f"p{i}": "cover" for i in range(6, 10)}
KINDS |= {"p10": "food", "p11": "food"}
PROMPTS = [f"p{i}" for i in range(13)]


def values(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {(name, 0): float(value) for name, value in zip(PROMPTS, rng.random(13), strict=True)}


def frame(**variants: dict) -> pd.DataFrame:
    rows = [
        {"scorer": scorer, "variant": variant, "prompt_id": p, "seed": s, "value": value}
        for variant, own in variants.items()
        for scorer in ("ocr_ned", "psnr")
        for (p, s), value in own.items()
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=3)


def of(category: str, own: dict) -> dict:
    return {key: value for key, value in own.items() if KINDS.get(key[0]) == category}


A, B = values(1), values(2)


def test_reading_scores_are_split_and_paired_within_a_category():
    rows = summarize_categories(frame(int8=B, bf16=A), KINDS, reference="bf16")
    assert {row.scorer for row in rows} == {"ocr_ned"}  # reading only
    assert [(row.category, row.variant, row.prompts) for row in rows] == [
        ("cover", "bf16", 4),
        ("cover", "int8", 4),
        ("food", "bf16", 2),
        ("food", "int8", 2),
        ("signage", "bf16", 6),
        ("signage", "int8", 6),
    ]
    signs = rows[-1]
    assert signs.mean == mean_interval(of("signage", B))
    assert signs.delta == discordant_interval(of("signage", B), of("signage", A))
    assert rows[-2].mean == mean_interval(of("signage", A)) and rows[-2].delta is None
    assert rows[3] == CategoryRow("ocr_ned", "food", "int8", 2, None, None)  # too few


def test_the_table_says_where_there_are_too_few():
    rows = summarize_categories(frame(int8=B, bf16=A), KINDS, reference="bf16")
    text = render_categories(rows, "bf16")
    title, blank, *table = text.splitlines()
    assert (title, blank) == ("Reading by category", "")
    assert len({len(line) for line in table}) == 1 and len(table) == 8
    assert "Δ to bf16 [95 %]" in table[0]
    assert "| ocr_ned ↓ | food     | int8    | 2 | too few prompts" in table[5]
    estimate = np.mean(list(of("cover", B).values()))
    assert f"| cover    | int8    | 4 | {estimate:.4g} [" in table[3]
    assert text.endswith("|\n") and render_categories([], "bf16") == ""


def test_without_categories_there_is_no_table():
    assert summarize_categories(frame(int8=B, bf16=A), {}, reference="bf16") == []


def test_a_missing_partner_is_an_error():
    fewer = {key: value for key, value in A.items() if key[0] != "p2"}
    with pytest.raises(UserError, match=r"missing from the second variant, p2 \(seed 0\)"):
        summarize_categories(frame(int8=B, bf16=fewer), KINDS, reference="bf16")


def test_categories_come_with_the_samples(tmp_path):
    sample = Sample(Prompt("p0", "", (), 0, category="food"), tmp_path / "x.png", None, 1.0)
    bare = replace(sample, prompt=Prompt("p1", "", (), 0))
    assert categories_of([sample, bare]) == {"p0": "food"}
    split = split_by_category({("p0", 0): 1.0, ("p0", 1): 2.0, ("p1", 0): 3.0}, {"p0": "food"})
    assert split == {"food": {("p0", 0): 1.0, ("p0", 1): 2.0}}
    assert split_by_category({("p1", 0): 3.0}, {"p0": "food"}) == {}
