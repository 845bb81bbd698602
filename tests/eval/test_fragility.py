import io
import math

import pandas as pd
import pytest

from dit8.eval.fragility import (
    COLUMNS,
    agree,
    as_frame,
    csv_text,
    make_rows,
    rank_roles,
    render,
    scores,
    verdict,
)


def layer(number, role, damage, crest, branch="conditional", latents=0.5):
    """One linear with two steps; its score is `damage` and its crest `crest`."""
    names = {"w2": f"layers.{number}.feed_forward.w2", "o": f"layers.{number}.attention.o"}
    linear = names.get(role, f"layers.{number}.{role}")
    quantities = {
        "absmax": [1.0, 2.0],
        "crest": [crest / 2, crest],
        "kurtosis": [3.0, math.nan],
        "damage_velocity": [damage, damage],
        "damage_latents": latents,
    }
    return make_rows("m", branch, linear, role, quantities)


@pytest.fixture
def frame():
    """w2 has the largest crest, o the largest damage; adaLN tops both."""
    rows = [
        *layer(0, "o", 0.4, 3.0),
        *layer(0, "w2", 0.1, 20.0),
        *layer(1, "w2", 0.2, 10.0, latents=0.6),
        *layer(0, "adaln_modulation", 0.5, 30.0, latents=0.1),
    ]
    for row in rows:
        row["role"] = "adaln" if "adaln" in row["linear"] else row["role"]
    return as_frame(rows)


def test_rows_are_long_form_and_leave_out_what_is_undefined():
    rows = layer(0, "w2", 0.1, 4.0)
    assert all(tuple(row) == COLUMNS for row in rows)
    assert [(r["quantity"], r["step"], r["value"]) for r in rows] == [
        ("absmax", 0, 1.0),
        ("absmax", 1, 2.0),
        ("crest", 0, 2.0),
        ("crest", 1, 4.0),
        ("kurtosis", 0, 3.0),
        ("damage_velocity", 0, 0.1),
        ("damage_velocity", 1, 0.1),
        ("damage_latents", -1, 0.5),
    ]


def test_rows_are_sorted_with_layer_2_before_layer_10():
    rows = layer(10, "w2", 0.1, 4.0) + layer(2, "w2", 0.1, 4.0) + layer(2, "o", 0.1, 4.0)
    frame = as_frame(rows)
    assert list(dict.fromkeys(frame["linear"])) == [
        "layers.2.attention.o",
        "layers.2.feed_forward.w2",
        "layers.10.feed_forward.w2",
    ]
    pd.testing.assert_frame_equal(frame, as_frame(rows[::-1]))


def test_csv_reads_back_and_is_the_same_for_the_same_rows(frame):
    text = csv_text(frame)
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert csv_text(frame.copy()) == text
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), frame)


def test_scores_are_root_mean_squares_of_damages_and_maxima_of_the_rest():
    frame = as_frame(make_rows("m", "b", "l", "w2", {"damage_velocity": [3.0, 4.0, 0.0]}))
    assert scores(frame, "damage_velocity")["b", "l"] == pytest.approx((25 / 3) ** 0.5)
    frame = as_frame(make_rows("m", "b", "l", "w2", {"crest": [3.0, 4.0, 1.0]}))
    assert scores(frame, "crest")["b", "l"] == 4.0


def test_agreement_by_hand():
    index = pd.Index(list("abcde"))
    one = pd.Series([5.0, 4.0, 3.0, 2.0, 1.0], index)
    same = agree(one, 2 * one)
    assert (same.n, same.spearman, same.overlap) == (5, pytest.approx(1.0), 1.0)
    opposite = agree(one, -one)
    assert (opposite.spearman, opposite.overlap) == (pytest.approx(-1.0), 0.0)
    swapped = agree(one, pd.Series([5.0, 3.0, 4.0, 2.0, 1.0], index))
    assert swapped.spearman == pytest.approx(1 - 6 * 2 / (5 * 24))  # 1 - 6 sum d^2 / n(n^2 - 1)
    assert swapped.overlap == 0.5  # {a, b} and {a, c}


def test_agreement_is_over_common_linears_and_undefined_for_too_few():
    one = pd.Series([1.0, 2.0, 3.0], list("abc"))
    other = pd.Series([1.0, 2.0, 0.0], list("bcd"))
    agreement = agree(one, other)
    assert agreement.n == 2 and math.isnan(agreement.spearman) and agreement.overlap == 1.0
    constant = agree(one, pd.Series([1.0, 1.0, 1.0], list("abc")))
    assert math.isnan(constant.spearman)
    assert math.isnan(agree(one[:1], one).overlap)


def test_roles_by_share_of_squared_damage(frame):
    roles = rank_roles(frame)
    assert list(roles.index) == ["adaln", "o", "w2"]
    total = 0.5**2 + 0.4**2 + 0.1**2 + 0.2**2
    assert roles.loc["w2", "share"] == pytest.approx((0.1**2 + 0.2**2) / total)
    assert roles.loc["w2", "linears"] == 2
    assert roles.loc["w2", "crest_max"] == 20.0 and roles.loc["w2", "crest_median"] == 15.0


def test_verdict_follows_the_numbers(frame):
    text = verdict(frame)
    every, core, medians = text.split(". ")
    assert "largest crest (30, conditional layers.0.adaln_modulation) is not in feed_f" in every
    assert "velocity damage (0.5, conditional layers.0.adaln_modulation) is not in" in every
    assert "latents damage (0.6, conditional layers.1.feed_forward.w2) is in feed_f" in every
    assert "largest crest (20, conditional layers.0.feed_forward.w2) is in feed_forward.w2" in core
    assert "velocity damage (0.4, conditional layers.0.attention.o) is not in feed_fo" in core
    assert medians == (
        "By the median of a block's role, the largest crest is that of w2 (15), the largest "
        "velocity damage is that of o (0.4), the largest latents damage is that of w2 (0.55)."
    )
    without = verdict(frame[frame["quantity"] != "damage_latents"])
    assert "latents" not in without and "velocity" in without


def test_report_holds_every_part_and_is_determined(frame):
    text = render("Fragility of m", frame, [frame, frame])
    assert text == render("Fragility of m", frame.copy(), [frame, frame])
    assert text.startswith(f"# Fragility of m\n\n{verdict(frame)}\n")
    assert "| w2 | 2 | 15 / 20 | 3 / 3 | 0.15 / 0.2 | 0.55 / 0.6 | 10.9 % |" in text
    assert "| conditional | layers.0.attention.o | 0.4 | 0.5 | 3 | 3 | 2 |" in text
    # crest orders adaln, w2.0, w2.1, o; damage adaln, o, w2.1, w2.0: sum d^2 = 8 over n = 4
    assert "| damage_velocity | all | 4 | 0.20 | 50% |" in text
    assert "| damage_velocity | blocks and text | 3 | -1.00 | 0% |" in text
    assert "| damage_velocity | w2, conditional | 2 | – | 0% |" in text
    assert "| crest | all | 4 | 1.00 | 100% |" in text  # equal halves


def test_one_prompt_has_no_halves(frame):
    assert render("t", frame, []).endswith("One prompt has no halves.\n")
