from collections import Counter

import numpy as np
import pytest
import torch

from dit8.eval.score_text import content_in_words
from dit8.models.poster_drawing import draw_poster
from dit8.models.poster_words import is_held_out
from dit8.models.posters import TIERS, caption

pytest.importorskip("open_clip", reason="needs the extra: pip install -e .[clip]")

from dit8.models.clip_mini import CONTEXT, build_clip_tokenizer, encode_texts  # noqa: E402
from dit8.models.training.clip_stream import (  # noqa: E402
    GROUP,
    TIER_SHARES,
    Reservoir,
    draw_group,
    stream,
)


def test_a_group_differs_in_its_texts_and_never_shows_a_held_out_word():
    tiers = Counter()
    for seed in range(200):
        group = draw_group(seed)
        tiers[group[0].tier] += 1
        assert len({content_in_words(caption(poster)) for poster in group}) == GROUP, seed
        assert not any(is_held_out(text) for poster in group for text in poster.texts)
        assert {poster.tier for poster in group} == {group[0].tier}
    shares = np.array([tiers[tier] for tier in TIERS]) / 200
    # the standard error of a share is at most 0.034: four of them
    assert np.allclose(shares, TIER_SHARES, atol=0.14) and tiers["slot"] > 0
    assert draw_group(3) == draw_group(3) != draw_group(4)


def test_blocks_are_the_groups_of_their_seeds():
    blocks = stream(seed=2, groups=3, workers=0, words=content_in_words)
    next(blocks)
    pixels, ids = next(blocks)
    posters = [p for i in range(3, 6) for p in draw_group(2 * 10**9 + i)]
    assert pixels.shape == (24, 256, 256, 3) and pixels.dtype == torch.uint8
    for row, poster in zip(pixels, posters, strict=True):
        assert np.array_equal(row.numpy(), np.asarray(draw_poster(poster)))
    texts = [content_in_words(caption(poster)) for poster in posters]
    assert torch.equal(ids, encode_texts(build_clip_tokenizer(), texts))


@pytest.mark.slow
def test_workers_draw_what_one_process_draws():
    alone, shared = (stream(5, 1, workers, content_in_words) for workers in (0, 2))
    for _ in range(4):  # DataLoader hands the workers' blocks out in turn
        assert all(torch.equal(a, b) for a, b in zip(next(alone), next(shared), strict=True))


def block(first: int, groups: int):
    """A block whose members carry their group's number in every pixel and token."""
    number = torch.arange(first, first + groups).repeat_interleave(GROUP)
    pixels = number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 256, 256, 3)
    return pixels, (number[:, None] * 10 + torch.arange(CONTEXT) % 2).clone()


def test_a_reservoir_keeps_the_last_groups_and_draws_whole_ones():
    reservoir = Reservoir(4, CONTEXT, torch.device("cpu"))
    reservoir.put(block(1, 3))
    assert reservoir.filled == 3
    pixels, ids = reservoir.draw(8)  # all there are
    assert sorted(pixels[::GROUP, 0, 0, 0].tolist()) == [1, 2, 3]
    reservoir.put(block(4, 3))
    assert reservoir.filled == 4
    pixels, ids = reservoir.draw(3)
    numbers = pixels[:, 0, 0, 0].view(3, GROUP)
    assert (numbers == numbers[:, :1]).all() and len(set(numbers[:, 0].tolist())) == 3
    assert torch.equal(ids[:, 0], 10 * numbers.flatten().long())
    pixels, _ = reservoir.draw(4)
    assert sorted(pixels[::GROUP, 0, 0, 0].tolist()) == [3, 4, 5, 6]  # 1 and 2 were the oldest
