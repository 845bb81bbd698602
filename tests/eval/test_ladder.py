import pandas as pd
import pytest

from dit8.eval.ladder import climb, render_ladder
from dit8.quant.errors import UserError


def ledger(offsets: dict[str, float]) -> pd.DataFrame:
    """One run a recipe; picture i scores i plus the recipe's offset."""
    rows = [
        {"run_id": recipe, "recipe": recipe, "scorer": "latent_error", "prompt_id": f"p{i}",
         "seed": i, "value": i + offset + 0.01 * (i % 3)}
        for recipe, offset in offsets.items()
        for i in range(12)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_each_step_is_paired_with_the_recipe_before():
    rows = ledger({"naive": 5.0, "smooth_only": 3.0, "smoothquant": 2.5})
    shuffled = rows.sample(frac=1, random_state=0)  # pairing is by prompt, not by position
    rungs = climb(shuffled, ("naive", "smooth_only", "smoothquant"), ("latent_error",))
    assert [rung.recipe for rung in rungs] == ["naive", "smooth_only", "smoothquant"]
    assert rungs[0].step is None
    assert rungs[1].step.estimate == pytest.approx(-2.0)
    assert rungs[2].step.estimate == pytest.approx(-0.5)
    text = render_ladder("Title", rungs)
    assert text.startswith("Title\n\n| scorer |") and "| latent_error ↓ | naive | 12 |" in text
    assert "-0.5 [-0.5, -0.5] (degenerate)" in text


def test_a_recipe_needs_exactly_one_run():
    rows = ledger({"naive": 5.0})
    with pytest.raises(UserError, match=r"recipe smoothquant must have .*got 0 runs"):
        climb(rows, ("naive", "smoothquant"), ("latent_error",))
    twice = pd.concat([rows, rows.assign(run_id="again")])
    with pytest.raises(UserError, match=r"got 2 runs again, naive; run scripts/evaluate.py recipe"):
        climb(twice, ("naive",), ("latent_error",))
