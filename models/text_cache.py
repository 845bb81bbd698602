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
# Of main memory. A caption of the real model takes 0.44 GB: 13 layers of 4096 values in fp32 for
# each of the 2048 tokens it is padded to. Captions beyond the limit are encoded again, a fraction
# of a second each.
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
        self._spared = 0.0  # a pipeline that failed in between has left what nobody asked for
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
            begin = _now(device)
            if about in self._features:
                seconds, text, others = self._features[about]
                features = text.new_zeros(
                    (len(text), max_sequence_length + grid_h * grid_w, text.shape[-1]),
                    device=device,
                )
                features[:, :max_sequence_length] = text
                found = (features, *(tensor.to(device, copy=True) for tensor in others))
                self._spared += seconds - (_now(device) - begin)
                return found
            found = encode(this(), prompt, grid_h, grid_w, max_sequence_length, device)
            seconds = _now(device) - begin
            # Text comes first; the rows of the picture, up to twice as many, are zero.
            text, others = found[0][:, :max_sequence_length], found[1:]
            size = text.nbytes + sum(tensor.nbytes for tensor in others)
            if self._bytes + size <= self._limit:  # before anything is copied
                self._bytes += size
                copies = tuple(tensor.to("cpu", copy=True) for tensor in others)
                self._features[about] = (seconds, text.to("cpu", copy=True), copies)
            return found

        pipeline.encode_prompt = encode_once

    def spared(self) -> float:
        """Return the seconds saved by remembered features since the last call, what it took to
        fetch them taken off."""
        seconds, self._spared = self._spared, 0.0
        return seconds

    def _forget(self, key: Hashable) -> None:
        self._key, self._components = key, {}
        # (seconds to encode, features of the text's rows, positions and the like)
        self._features: dict[tuple, tuple[float, torch.Tensor, tuple[torch.Tensor, ...]]] = {}
        self._bytes, self._spared = 0, 0.0


def _now(device: torch.device) -> float:
    """Return seconds of a clock, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
