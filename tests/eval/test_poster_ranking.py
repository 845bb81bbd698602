import numpy as np
import pytest

from dit8.eval.poster_ranking import rank_posters
from dit8.eval.score_text import content_in_words
from dit8.models.poster_drawing import draw_poster
from dit8.models.poster_variants import PERTURBATIONS
from dit8.models.posters import caption, make_poster

POSTERS = [make_poster("easy", seed, held_out=True) for seed in range(12)]
RIGHT = {content_in_words(caption(poster)): draw_poster(poster).tobytes() for poster in POSTERS}


def judge(pictures, texts):
    """Give 1 to the right picture of a text, else 0.25."""
    pairs = zip(pictures, texts, strict=True)
    return np.array([1.0 if RIGHT[text] == picture.tobytes() else 0.25 for picture, text in pairs])


def test_a_score_that_knows_ranks_everything():
    ranks = rank_posters(POSTERS, judge)
    assert [rank.kind for rank in ranks] == list(PERTURBATIONS)
    for rank in ranks:
        assert (rank.n, rank.rate, rank.right, rank.drop) == (12, 1.0, 1.0, 0.75)
        assert 0.7 < rank.low < 1.0 and rank.high == pytest.approx(1.0)


def test_a_score_that_does_not_look_ranks_nothing():
    for rank in rank_posters(POSTERS, lambda pictures, texts: np.full(len(texts), 0.5)):
        assert rank.rate == 0.0 and rank.drop == 0.0  # a tie is no rank


def test_a_score_that_is_upside_down_ranks_nothing():
    for rank in rank_posters(POSTERS, lambda pictures, texts: -judge(pictures, texts)):
        assert rank.rate == 0.0 and rank.drop == -0.75


def test_what_cannot_be_moved_is_left_out(monkeypatch):
    from dit8.eval import poster_ranking

    genuine = poster_ranking.perturbed_picture

    def some(poster, kind, rng):
        stuck = kind == "moved" and poster.seed < 4
        return None if stuck else genuine(poster, kind, rng)

    monkeypatch.setattr(poster_ranking, "perturbed_picture", some)
    counts = {rank.kind: rank.n for rank in rank_posters(POSTERS, judge)}
    assert counts == dict.fromkeys(PERTURBATIONS, 12) | {"moved": 8}
    assert all(rank.rate == 1.0 for rank in rank_posters(POSTERS, judge))


def test_a_posters_mistake_does_not_depend_on_the_others():
    seen = []

    def watch(pictures, texts):
        seen.append([picture.tobytes() for picture in pictures])
        return np.zeros(len(texts))

    rank_posters(POSTERS[:1], watch)
    rank_posters(POSTERS[::-1], watch)
    one, all_of_them = seen[:6], seen[6:]
    assert [a[0] for a in one] == [b[-1] for b in all_of_them]
