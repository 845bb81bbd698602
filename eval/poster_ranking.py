"""Ask of a score of posters whether it ranks: the right poster above one with one thing wrong.

A rate is the share of posters whose right picture scores strictly higher, with Wilson's interval.
Chance is one half.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dit8.eval.score_text import content_in_words
from dit8.eval.stats import wilson_interval
from dit8.models.poster_drawing import draw_poster
from dit8.models.poster_variants import PERTURBATIONS, perturbed_picture
from dit8.models.posters import Poster, caption

# pictures and one text for each -> float (n,)
ScorePictures = Callable[[Sequence[Image.Image], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Rank:
    """How a score ranks posters with one kind of mistake.

    Args:
        kind: one of PERTURBATIONS.
        n: posters compared; those in which nothing can be moved are left out.
        rate, low, high: share ranked rightly and its 95 % interval.
        right: mean score of the right pictures.
        drop: mean of right minus wrong, in the score's unit.
    """

    kind: str
    n: int
    rate: float
    low: float
    high: float
    right: float
    drop: float


def rank_posters(posters: Sequence[Poster], score: ScorePictures) -> list[Rank]:
    """Score every poster right and wrong in each way, always against the right text.

    What is changed in a poster depends on the poster alone, not on the others.
    """
    texts = [content_in_words(caption(poster)) for poster in posters]
    right = score([draw_poster(poster) for poster in posters], texts)
    return [_rank(kind, posters, texts, right, score) for kind in PERTURBATIONS]


def _rank(
    kind: str,
    posters: Sequence[Poster],
    texts: Sequence[str],
    right: np.ndarray,
    score: ScorePictures,
) -> Rank:
    pictures = [
        perturbed_picture(poster, kind, random.Random(f"{kind}/{poster.tier}/{poster.seed}"))
        for poster in posters
    ]
    kept = [i for i, picture in enumerate(pictures) if picture is not None]
    wrong = score([pictures[i] for i in kept], [texts[i] for i in kept])
    drop = right[kept] - wrong
    interval = wilson_interval(int((drop > 0).sum()), len(kept))
    means = float(right[kept].mean()), float(drop.mean())
    return Rank(kind, len(kept), interval.estimate, interval.low, interval.high, *means)
