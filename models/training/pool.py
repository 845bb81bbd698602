"""A pool of posters on the training device: pixels while the VAE trains, latents and text after.

Worker processes draw into shared memory, one block at a time; the parent copies finished blocks to
the device. Every poster belongs to a tier, and a tier's posters lie next to each other, so drawing
a batch with any mixture of tiers is one gather.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.multiprocessing as mp

from dit8.models.mini_tokenizer import build_tokenizer
from dit8.models.pipeline import encode_chat
from dit8.models.poster_drawing import draw_poster
from dit8.models.posters import GRID, IMAGE_PX, TIERS, caption_json, make_poster

BLOCK = 256  # posters a block: 50 MB of pixels, a third of a second of one core
TOKEN_GRID = 16
TEXT_WEIGHT = 3  # loss weight of image tokens under a text box


@dataclass
class Pool:
    """Posters of all tiers. `pixels` is freed once `latents` stand."""

    first: torch.Tensor  # (tiers,) index of each tier's first poster
    count: torch.Tensor  # (tiers,) posters of each tier
    token_ids: torch.Tensor  # (P, T) int16, right-padded with 0
    lengths: torch.Tensor  # (P,) int64
    weight: torch.Tensor  # (P, 256) uint8, 1 or TEXT_WEIGHT
    pixels: torch.Tensor | None  # (P, 256, 256, 3) uint8
    latents: torch.Tensor | None = None  # (P, 256, C) bf16
    features: torch.Tensor | None = None  # (sum of lengths, F) bf16
    offset: torch.Tensor | None = None  # (P,) first feature row of each poster

    def draw(self, shares: torch.Tensor, batch: int, ready: torch.Tensor | None = None):
        """Draw `batch` poster indices: a tier by `shares` (tiers,), then uniformly within it."""
        tier = torch.multinomial(shares, batch, replacement=True)
        count = self.count if ready is None else ready
        place = torch.rand(batch, device=tier.device, dtype=torch.float64)
        return self.first[tier] + (place * count[tier]).long()

    def text(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather text features: (B, T, F) right-padded with zeros, and their mask (B, T)."""
        column = torch.arange(self.token_ids.shape[1], device=index.device)
        mask = column < self.lengths[index, None]
        rows = (self.offset[index, None] + column) * mask  # padded places read row 0, masked out
        return self.features[rows] * mask[..., None], mask


def _token_weight(poster) -> np.ndarray:
    """Mark the 16 x 16 image tokens that a text box touches."""
    weight = np.ones((TOKEN_GRID, TOKEN_GRID), dtype=np.uint8)
    for element in poster.elements:
        if element.kind == "text":
            y0, x0, y1, x1 = (cell * TOKEN_GRID / GRID for cell in element.box)
            weight[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = TEXT_WEIGHT
    return weight.reshape(-1)


def _draw_blocks(tasks, finished, slots, width: int) -> None:
    """Worker: draw blocks of posters into shared slots until the task queue gives None."""
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    while (task := tasks.get()) is not None:
        slot, start, posters = task
        ids = np.zeros((len(posters), width), dtype=np.int16)
        lengths = np.zeros(len(posters), dtype=np.int64)
        weight = np.zeros((len(posters), TOKEN_GRID**2), dtype=np.uint8)
        pixels = slots[slot].numpy()
        for i, (tier, seed) in enumerate(posters):
            poster = make_poster(tier, seed, held_out=False)
            pixels[i] = np.asarray(draw_poster(poster))
            tokens = encode_chat(tokenizer, caption_json(poster))
            ids[i, : len(tokens)] = tokens
            lengths[i] = len(tokens)
            weight[i] = _token_weight(poster)
        finished.put((slot, start, ids, lengths, weight))


class PoolFiller:
    """Fill a pool in the background; `collect()` moves what is finished to the device."""

    def __init__(self, counts: dict[str, int], seed: int, workers: int, device, width: int = 80):
        sizes = torch.tensor([counts[tier] for tier in TIERS])
        self.total = int(sizes.sum())
        first = torch.cumsum(sizes, 0) - sizes
        self.pool = Pool(
            first=first.to(device),
            count=sizes.to(device),
            token_ids=torch.zeros(self.total, width, dtype=torch.int16, device=device),
            lengths=torch.zeros(self.total, dtype=torch.int64, device=device),
            weight=torch.zeros(self.total, TOKEN_GRID**2, dtype=torch.uint8, device=device),
            pixels=torch.zeros(self.total, IMAGE_PX, IMAGE_PX, 3, dtype=torch.uint8, device=device),
        )
        self.ready = 0
        self._todo = self._blocks(first.tolist(), sizes.tolist(), seed)
        context = mp.get_context("forkserver")
        self._tasks, self._finished = context.Queue(), context.Queue()
        slots = torch.empty(workers + 4, BLOCK, IMAGE_PX, IMAGE_PX, 3, dtype=torch.uint8)
        self._slots = slots.share_memory_()
        self._workers = [
            context.Process(
                target=_draw_blocks,
                args=(self._tasks, self._finished, self._slots, width),
                daemon=True,
            )
            for _ in range(workers)
        ]
        for worker in self._workers:
            worker.start()
        for slot in range(len(self._slots)):
            self._give(slot)

    @staticmethod
    def _blocks(first: list[int], sizes: list[int], seed: int):
        """List (start, posters) of every block, tiers interleaved so that all of them fill up."""
        blocks = []
        for tier, start, size in zip(TIERS, first, sizes, strict=True):
            for low in range(0, size, BLOCK):
                posters = [(tier, seed * 10**9 + i) for i in range(low, min(low + BLOCK, size))]
                blocks.append((low / max(size, 1), start + low, posters))
        return [(start, posters) for _, start, posters in sorted(blocks, reverse=True)]

    def _give(self, slot: int) -> None:
        if self._todo:
            self._tasks.put((slot, *self._todo.pop()))

    def collect(self) -> None:
        """Move every finished block to the device; ends the workers after the last one."""
        while self.ready < self.total and not self._finished.empty():
            slot, start, ids, lengths, weight = self._finished.get()
            rows = slice(start, start + len(ids))
            self.pool.pixels[rows].copy_(self._slots[slot][: len(ids)])
            self.pool.token_ids[rows] = torch.from_numpy(ids).to(self.pool.token_ids.device)
            self.pool.lengths[rows] = torch.from_numpy(lengths).to(self.pool.lengths.device)
            self.pool.weight[rows] = torch.from_numpy(weight).to(self.pool.weight.device)
            self.ready += len(ids)
            self._give(slot)
        if self.ready == self.total and self._workers:
            self.stop()

    def wait(self) -> Pool:
        """Block until every poster stands on the device."""
        while self.ready < self.total:
            self.collect()
            dead = [w.exitcode for w in self._workers if w.exitcode not in (None, 0)]
            if dead:
                raise RuntimeError(f"pool: a drawing worker died with exit code {dead[0]}")
            time.sleep(0.02)
        return self.pool

    def stop(self) -> None:
        """End the workers and free the shared slots."""
        for _ in self._workers:
            self._tasks.put(None)
        for worker in self._workers:
            worker.join(timeout=5)
        self._workers = []

    def drawn(self) -> torch.Tensor:
        """Count per tier the posters that are surely drawn: (tiers,) on the pool's device.

        Blocks are given out in order and at most one a slot is under way, so all but the last
        few of the finished ones are contiguous from each tier's start.
        """
        if self.ready == self.total:
            return self.pool.count
        safe = max(0.0, (self.ready - len(self._slots) * BLOCK) / self.total)
        return (self.pool.count * safe).long()


@torch.no_grad()
def encode_latents(pool: Pool, vae, batch: int = 256, keep_statistics: bool = False) -> None:
    """Replace pixels by normalized latents (posterior means) and set the VAE's statistics.

        z = (patchify(E(x)) - mean) / sqrt(var + eps),   channels ordered (p_h, p_w, C)

    Unless `keep_statistics`, the mean and variance of each of the 4C channels are measured anew on
    up to 16 k posters spread evenly over the pool.
    """
    device = pool.pixels.device
    total = len(pool.pixels)
    channels = 4 * vae.config.latent_channels
    pool.latents = torch.empty(total, TOKEN_GRID**2, channels, dtype=torch.bfloat16, device=device)
    if not keep_statistics:
        _measure_statistics(pool, vae, channels, batch)
    mean = vae.bn.running_mean
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    for low in range(0, total, batch):
        tokens = encode_tokens(vae, pool.pixels[low : low + batch])
        pool.latents[low : low + batch] = ((tokens - mean) / std).to(torch.bfloat16)
    pool.pixels = None


def _measure_statistics(pool: Pool, vae, channels: int, batch: int) -> None:
    total = len(pool.pixels)
    chosen = torch.linspace(0, total - 1, min(total, 16384), device=pool.pixels.device).long()
    mean = torch.zeros(channels, dtype=torch.float64, device=pool.pixels.device)
    square = torch.zeros_like(mean)
    for index in chosen.split(batch):
        tokens = encode_tokens(vae, pool.pixels[index]).double().reshape(-1, channels)
        mean += tokens.sum(0)
        square += tokens.square().sum(0)
    rows = len(chosen) * TOKEN_GRID**2
    vae.bn.running_mean.copy_(mean / rows)
    vae.bn.running_var.copy_(square / rows - (mean / rows).square())


def encode_tokens(vae, pixels: torch.Tensor) -> torch.Tensor:
    """Encode (B, H, W, 3) uint8 to unnormalized tokens (B, H/16 * W/16, 4C) fp32."""
    x = to_signal(pixels)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
        z = vae.encode(x).latent_dist.mode()
    batch, channels, height, width = z.shape
    z = z.float().view(batch, channels, height // 2, 2, width // 2, 2)
    return z.permute(0, 2, 4, 3, 5, 1).reshape(batch, height * width // 4, 4 * channels)


def decode_tokens(vae, latents: torch.Tensor) -> torch.Tensor:
    """Decode normalized tokens (B, 256, 4C) to (B, H, W, 3) uint8, as the pipeline does."""
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    z = latents.float() * std + vae.bn.running_mean
    batch, channels = len(z), z.shape[-1] // 4
    z = z.view(batch, TOKEN_GRID, TOKEN_GRID, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
    z = z.reshape(batch, channels, 2 * TOKEN_GRID, 2 * TOKEN_GRID)
    with torch.autocast(z.device.type, torch.bfloat16, enabled=z.is_cuda):
        x = vae.decode(z).sample
    return to_pixels(x)


def to_signal(pixels: torch.Tensor) -> torch.Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) fp32 in [-1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(signal: torch.Tensor) -> torch.Tensor:
    """Turn (B, 3, H, W) signals into (B, H, W, 3) uint8, clipping and rounding to the nearest."""
    return ((signal.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
