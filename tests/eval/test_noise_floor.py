"""The noise floor from two runs of the same weights."""

import numpy as np
import pandas as pd
import pytest

from dit8.eval.exact_match import discordant_interval
from dit8.eval.noise_floor import noise_floor
from dit8.eval.stats import mean_interval, paired_interval
from dit8.quant.errors import UserError

RUN = {
    "model": "mini",
    "variant": "bf16",
    "recipe": "none",
    "engine": "stock",
    "dtype": "float32",
    "backend": "torch-cpu",
    "prompt_set": "hard",
}


def run(run_id: str, scores: dict[str, np.ndarray], **columns: str) -> pd.DataFrame:
    """Return ledger rows of one run, one seed a prompt."""
    rows = [
        RUN
        | columns
        | {"run_id": run_id, "scorer": name, "prompt_id": f"p{i:03d}", "seed": i}
        | {"value": float(value)}
        for name, values in scores.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    return {
        "exact": (rng.random(40) < 0.5).astype(float),
        "pick": rng.normal(20.0, 1.0, size=40),
        "other": rng.normal(20.0, 1.0, size=40),
        "ssim": rng.random(40),
    }


@pytest.fixture
def rows(values) -> pd.DataFrame:
    exact = values["exact"].copy()
    exact[:3] = 1 - exact[:3]
    unchanged = {"ocr_exact": values["exact"], "pickscore": values["pick"]}
    changed = {"ocr_exact": exact, "pickscore": values["other"], "ssim": values["ssim"]}
    return pd.concat([run("one", unchanged), run("two", changed, dtype="bfloat16")])


def keyed(values: np.ndarray) -> dict:
    return {(f"p{i:03d}", i): float(v) for i, v in enumerate(values)}


def test_every_score_is_paired_and_relative_ones_are_averaged(rows, values):
    floors = noise_floor(rows, "one", "two")
    assert list(floors) == ["ocr_exact", "pickscore", "ssim"]
    assert {floor.change for floor in floors.values()} == {"dtype bfloat16 instead of float32"}
    pick = floors["pickscore"]
    assert pick.shift == paired_interval(keyed(values["other"]), keyed(values["pick"]))
    expected = np.mean(np.abs(values["other"] - values["pick"]))
    assert pick.mean_absolute == pytest.approx(expected, rel=1e-12)
    assert pick.half_width == (pick.shift.high - pick.shift.low) / 2
    assert floors["ssim"].shift == mean_interval(keyed(values["ssim"]))
    assert floors["ssim"].mean_absolute == pytest.approx(values["ssim"].mean(), rel=1e-12)


def test_few_changed_pictures_take_the_interval_for_few(rows, values):
    floor = noise_floor(rows, "one", "two")["ocr_exact"]
    changed = keyed(np.concatenate([1 - values["exact"][:3], values["exact"][3:]]))
    assert floor.shift == discordant_interval(changed, keyed(values["exact"]))
    assert floor.shift.method == "newcombe"
    assert floor.mean_absolute == pytest.approx(3 / 40, rel=1e-12)


def test_a_change_that_the_ledger_does_not_show_is_told(rows, values):
    same = run("three", {"pickscore": values["other"]})
    rows = pd.concat([rows, same])
    floors = noise_floor(rows, "one", "three", change="attention backend math")
    assert floors["pickscore"].change == "attention backend math"
    with pytest.raises(UserError, match=r"one and three must differ in engine, dtype, backend"):
        noise_floor(rows, "one", "three")
    with pytest.raises(UserError, match=r"one and one must differ"):
        noise_floor(rows, "one", "one", change="nothing")


@pytest.mark.parametrize("column", ["model", "variant", "recipe", "prompt_set"])
def test_other_weights_or_prompts_are_no_noise(rows, values, column):
    other = run("three", {"pickscore": values["other"]}, **{column: "x"})
    with pytest.raises(UserError, match=rf"must be of one {column}, got .* and x; .* is no noise"):
        noise_floor(pd.concat([rows, other]), "one", "three")


def test_runs_without_rows_or_partners_are_named(rows):
    with pytest.raises(UserError, match=r"run none has no rows in the ledger; score it first"):
        noise_floor(rows, "none", "two")
    lost = (rows["run_id"] == "two") & (rows["scorer"] == "pickscore") & (rows["seed"] == 7)
    with pytest.raises(UserError, match=r"missing from the first variant, p007 \(seed 7\)"):
        noise_floor(rows[~lost], "one", "two")
