import dataclasses

import numpy as np
import pytest

from dit8.eval.scorers import get_scorer
from dit8.quant.errors import UserError

pytest.importorskip("rapidocr", reason="needs the extra: pip install -e .[ocr]")


def test_the_three_scores_of_known_posters(make_sample, draw_poster):
    poster = draw_poster({"RIVER": (60, 40, 40), "stone 42": (30, 180, 32)})
    samples = [
        make_sample(poster, "both", texts=("stone 42", "RIVER")),
        make_sample(poster, "half", texts=("River", "TIGER")),
        make_sample(np.full_like(poster, 60), "blank", texts=("RIVER",)),
    ]
    assert get_scorer("ocr_exact").score(samples).tolist() == [1.0, 0.5, 0.0]
    assert get_scorer("ocr_strict").score(samples).tolist() == [1.0, 0.0, 0.0]
    # tiger -> stone42 keeps t and e of 7 letters: insert s and 2, replace i, g, r
    values = get_scorer("ocr_ned").score(samples)
    assert values[0] == 0 and values[2] == 1
    assert values[1] == pytest.approx(0.5 * 5 / 7, abs=1e-12)


def test_workers_do_not_change_the_scores(make_sample, draw_poster, monkeypatch):
    samples = [
        make_sample(draw_poster({text: (40, 100, 40)}), text, texts=(text,))
        for text in ("LEMON", "MANGO")
    ]
    alone = get_scorer("ocr_ned").score(samples)
    monkeypatch.setattr("dit8.eval.reading._READINGS", {})
    parallel = dataclasses.replace(get_scorer("ocr_ned"), workers=2)
    assert np.array_equal(parallel.score(samples), alone)


def test_a_prompt_without_expected_texts_is_named(make_sample, draw_poster):
    sample = make_sample(draw_poster({}), "bare", texts=())
    with pytest.raises(UserError, match=r"ocr_exact: prompt bare expects no text"):
        get_scorer("ocr_exact").score([sample])
