"""Posters for contrastive training, drawn in worker processes: groups that differ in one thing.

In a batch of unlike posters a colour and a place are enough to tell which text belongs to which
picture, and nothing makes a model read. So posters come in groups of eight: one as it was drawn,
and seven that differ from it in one thing each, every one with its own text. Two have another
word, one another colour, in one something has moved, and three or more have another letter. Words
are from the training side of the split throughout.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dit8.models.clip_mini import build_clip_tokenizer, encode_texts
from dit8.models.poster_drawing import draw_poster
from dit8.models.poster_variants import moved, other_color, other_letter, other_word
from dit8.models.posters import IMAGE_PX, TIERS, Poster, caption, make_poster

GROUP = 8
TIER_SHARES = (0.05, 0.25, 0.35, 0.35)  # in the order of TIERS

Block = tuple[torch.Tensor, torch.Tensor]
Words = Callable[[dict[str, Any]], str]  # a caption in words, such as score_text.content_in_words


def draw_group(seed: int) -> list[Poster]:
    """Make a poster and its seven variants; the same seed always gives the same ones."""
    rng = random.Random(seed)
    (tier,) = rng.choices(TIERS, TIER_SHARES)
    poster = make_poster(tier, seed, held_out=False)
    words = [other_word(poster, rng, held_out=False) for _ in range(2)]
    # a dict keeps the order and drops what came twice: a text may have one picture only
    group = dict.fromkeys([poster, *words, other_color(poster, rng), moved(poster, rng)])
    group.pop(None, None)  # nothing could be moved
    while len(group) < GROUP:
        group.setdefault(other_letter(poster, rng, held_out=False))
    return list(group)


class PosterStream(IterableDataset):
    """Yield blocks of groups without end: pixels (groups * 8, H, W, 3) uint8, ids (., T) int64.

    Worker w of n draws the blocks w, w + n, w + 2n, ..., so the blocks depend on the seed alone and
    no two workers draw the same one.
    """

    def __init__(self, seed: int, groups: int, words: Words):
        self.seed, self.groups, self.words = seed, groups, words

    def __iter__(self) -> Iterator[Block]:
        worker = get_worker_info()
        block, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        tokenizer = build_clip_tokenizer()
        while True:
            start = self.seed * 10**9 + block * self.groups
            posters = [p for i in range(self.groups) for p in draw_group(start + i)]
            pixels = np.stack([np.asarray(draw_poster(poster)) for poster in posters])
            texts = [self.words(caption(poster)) for poster in posters]
            yield torch.from_numpy(pixels), encode_texts(tokenizer, texts)
            block += stride


def stream(seed: int, groups: int, workers: int, words: Words) -> Iterator[Block]:
    """Draw blocks in `workers` processes (0: in this one), some of them ahead."""
    # not a fork of this process, which has started CUDA or threads
    options = {"multiprocessing_context": "forkserver", "prefetch_factor": 2} if workers else {}
    return iter(
        DataLoader(
            PosterStream(seed, groups, words), batch_size=None, num_workers=workers, **options
        )
    )


class Reservoir:
    """Keep the last groups on the training device, so that each is seen several times.

    A GPU trains on posters faster than the processors beside it draw them.
    """

    def __init__(self, groups: int, context: int, device: torch.device):
        shape = (groups * GROUP, IMAGE_PX, IMAGE_PX, 3)
        self.pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.ids = torch.zeros(groups * GROUP, context, dtype=torch.int64, device=device)
        self.groups, self.filled, self.next = groups, 0, 0

    def put(self, block: Block) -> None:
        """Store a block over the oldest groups."""
        pixels, ids = block
        count = len(ids) // GROUP
        places = torch.arange(self.next, self.next + count) % self.groups
        rows = _members(places).to(self.ids.device)
        self.pixels[rows] = pixels.to(self.pixels.device)
        self.ids[rows] = ids.to(self.ids.device)
        self.next = (self.next + count) % self.groups
        self.filled = min(self.groups, self.filled + count)

    def draw(self, groups: int) -> Block:
        """Draw whole groups without repeats: pixels (groups * 8, H, W, 3) and ids."""
        rows = _members(torch.randperm(self.filled)[:groups]).to(self.ids.device)
        return self.pixels[rows], self.ids[rows]


def _members(groups: torch.Tensor) -> torch.Tensor:
    """Return the rows of groups: (n,) -> (8 n,)."""
    return (groups[:, None] * GROUP + torch.arange(GROUP)).flatten()
