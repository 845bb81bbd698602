"""Read generated posters during training, in processes beside the training loop."""

import multiprocessing as mp
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dit8.models.mini_tokenizer import build_tokenizer
from dit8.models.pipeline import encode_chat
from dit8.models.poster_drawing import draw_poster
from dit8.models.posters import Poster, caption_json, make_poster
from dit8.models.training.flow import IMAGE_TOKENS, sample
from dit8.models.training.pool import decode_tokens
from dit8.models.training.text import text_features

# (pixels (H, W, 3) uint8, texts) -> (share of the texts read exactly, mean edit distance)
ReadOne = Callable[[tuple[np.ndarray, tuple[str, ...]]], tuple[float, float]]

PROBE_SEED = 5_000_000  # probe posters: held-out words, seeds apart from the published sets'


@dataclass(frozen=True)
class Probe:
    """Held-out posters of one tier with their text features and fixed noise on the device."""

    tier: str
    posters: tuple[Poster, ...]
    text: torch.Tensor  # (n, T, F)
    mask: torch.Tensor  # (n, T) bool
    noise: torch.Tensor  # (n, 256, C)


def make_probe(tier: str, n: int, encoder, channels: int, device) -> Probe:
    """Build a probe of `n` posters."""
    posters = tuple(make_poster(tier, PROBE_SEED + i, held_out=True) for i in range(n))
    tokenizer = build_tokenizer()
    ids = [encode_chat(tokenizer, caption_json(poster)) for poster in posters]
    lengths = torch.tensor([len(row) for row in ids], device=device)
    padded = torch.zeros(n, int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = torch.tensor(row)
    text = text_features(encoder, padded.to(device), lengths)
    mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]
    generator = torch.Generator().manual_seed(PROBE_SEED)
    noise = torch.randn(n, IMAGE_TOKENS, channels, generator=generator).to(device)
    return Probe(tier, posters, text, mask, noise)


def draw_probe(model, vae, probe: Probe, steps: int) -> np.ndarray:
    """Generate the probe's pictures: (n, 256, 256, 3) uint8."""
    cuda = probe.noise.is_cuda
    with torch.no_grad(), torch.autocast(probe.noise.device.type, torch.bfloat16, enabled=cuda):
        latents = sample(model, probe.noise, probe.text, probe.mask, steps)
    return decode_tokens(vae, latents).cpu().numpy()


class Reader:
    """A pool of OCR processes; results arrive through a callback while training goes on.

    Args:
        workers: processes; 0: nothing is read.
        read_one: gives a picture and its texts two numbers, such as `eval.matching.read_one`.
    """

    def __init__(self, workers: int, read_one: ReadOne):
        self._read_one = read_one
        self._pool = mp.get_context("forkserver").Pool(workers) if workers else None
        self._failures: list[BaseException] = []

    def read(
        self,
        pictures: np.ndarray,
        posters: tuple[Poster, ...],
        report: Callable[[float, float], None],
    ) -> None:
        """Read in the background and report (share read exactly, mean edit distance)."""
        if self._pool is None:
            return
        items = [(pixels, poster.texts) for pixels, poster in zip(pictures, posters, strict=True)]

        def done(rows):
            exact, ned = np.array(rows).mean(axis=0)
            report(float(exact), float(ned))

        # An error callback that raises ends the pool's own thread, and close() waits for ever.
        failed = self._failures.append
        self._pool.map_async(self._read_one, items, callback=done, error_callback=failed)

    def close(self) -> None:
        """Wait for what is under way and end the processes.

        Raises:
            RuntimeError: pictures could not be read.
        """
        if self._pool is not None:
            self._pool.close()
            self._pool.join()
        if self._failures:
            first = self._failures[0]
            raise RuntimeError(f"reading the probe failed: {first}") from first


def references(posters: tuple[Poster, ...]) -> np.ndarray:
    """Draw the probe's reference pictures."""
    return np.stack([np.asarray(draw_poster(poster)) for poster in posters])
