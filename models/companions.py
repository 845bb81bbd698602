"""Keep between the variants of one process what does not depend on the variant.

Variants of a model differ in their two branches. Text encoder, tokenizer and VAE are the same
modules, and a caption's features the same numbers, so a sweep loads the first once and computes
the second once. Features come back as the bits that were computed, and the seconds that this saves
are counted (`spared`), so that a picture's time means the same whichever variant came first.
"""

import time
import weakref
from collections.abc import Hashable
from typing import Any

import torch

SHARED = ("text_encoder", "tokenizer", "vae")
# Of main memory. A caption of the real model takes 0.1 to 0.4 GB (13 layers of 4096 values a token,
# up to 2048 tokens); captions beyond the limit are encoded again, a fraction of a second each.
LIMIT_BYTES = 4 << 30


class Companions:
    """Remember the shared components of the last model, and its captions' features.

    Args:
        limit_bytes: of features.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES):
        self._limit = limit_bytes
        self._forget(None)

    def components(self, key: Hashable) -> dict[str, Any]:
        """Return what an earlier pipeline of this key loaded; of another key nothing is kept.

        Args:
            key: everything on which these components depend: files, dtype, device.
        """
        if key != self._key:
            self._forget(key)
        return dict(self._components)

    def attach(self, key: Hashable, pipeline: Any) -> None:
        """Take a pipeline's components, and let it look for features here before it computes them.

        Args:
            key: as for `components`.
            pipeline: an Ideogram4Pipeline made with these components, or the first of its key.
        """
        if key != self._key:
            self._forget(key)
        self._components = {name: getattr(pipeline, name) for name in SHARED}
        encode = type(pipeline).encode_prompt
        this = weakref.ref(pipeline)  # a cycle would keep the branches on the GPU

        def encode_once(
            prompt: str | list[str],
            grid_h: int,
            grid_w: int,
            max_sequence_length: int,
            device: torch.device,
        ) -> tuple[torch.Tensor, ...]:
            texts = prompt if isinstance(prompt, str) else tuple(prompt)
            about = (texts, grid_h, grid_w, max_sequence_length, str(device))
            if about in self._features:
                seconds, tensors = self._features[about]
                self._spared += seconds
                return tuple(tensor.to(device, copy=True) for tensor in tensors)
            begin = time.perf_counter()
            found = encode(this(), prompt, grid_h, grid_w, max_sequence_length, device)
            kept = tuple(tensor.to("cpu", copy=True) for tensor in found)  # waits for the GPU
            size = sum(tensor.nbytes for tensor in kept)
            if self._bytes + size <= self._limit:
                self._bytes += size
                self._features[about] = (time.perf_counter() - begin, kept)
            return found

        pipeline.encode_prompt = encode_once

    def spared(self) -> float:
        """Return the seconds saved by remembered features since the last call."""
        seconds, self._spared = self._spared, 0.0
        return seconds

    def _forget(self, key: Hashable) -> None:
        self._key, self._components = key, {}
        self._features: dict[tuple, tuple[float, tuple[torch.Tensor, ...]]] = {}
        self._bytes, self._spared = 0, 0.0
