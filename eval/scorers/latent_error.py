"""Measure how far the final latents moved from the reference's: ||a - b|| / ||b|| in fp64.

b is the reference. The most sensitive score: it moves long before a picture looks different,
and it involves no VAE decoder and no rounding to 8 bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dit8.eval.run import pair_samples
from dit8.models.types import Sample
from dit8.quant.errors import UserError

TENSOR = "latents"


def relative_error(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """Return ||latents - reference|| / ||reference|| over two tensors of one shape, in fp64."""
    a, b = latents.to(torch.float64), reference.to(torch.float64)
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


@dataclass(frozen=True)
class LatentError:
    """Score pictures by the relative error of their final latents."""

    name: str = "latent_error"
    higher_is_better: bool = False
    unit: str = "relative L2"
    bounds: tuple[float, float] = (0.0, math.inf)
    preprocessing: str = "none: final latents as the sampler left them, before the VAE"
    needs_reference: bool = True

    def obstacle(self) -> str | None:
        """Return None: everything needed belongs to the core."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return the arithmetic of the norm."""
        return {"arithmetic": "float64"}

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,).

        Raises:
            UserError: a partner or a latents file is missing, damaged, non-finite or of
                another shape, or the reference is all zeros.
        """
        values = []
        for sample, partner in pair_samples(samples, references, self.name):
            latents, reference = _latents(sample), _latents(partner)
            if latents.shape != reference.shape:
                raise UserError(
                    f"latent_error: {sample.latents_path} is {tuple(latents.shape)}, expected"
                    f" {tuple(reference.shape)} as in {partner.latents_path};"
                    " generate both at one size"
                )
            if not reference.any():
                raise UserError(
                    f"latent_error: {partner.latents_path} is all zeros, expected the final"
                    " latents of a reference picture; generate it again"
                )
            values.append(relative_error(latents, reference))
        return np.array(values, dtype=np.float64)


def _latents(sample: Sample) -> torch.Tensor:
    path = sample.latents_path
    if path is None:
        raise UserError(
            f"latent_error: no latents were saved for prompt {sample.prompt.id}"
            f" (seed {sample.prompt.seed}); generate it again with latents kept"
        )
    try:
        with safe_open(path, framework="pt") as file:
            latents = file.get_tensor(TENSOR)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"latent_error: cannot read tensor {TENSOR!r} of {path} ({error}); generate it again"
        ) from error
    if not torch.isfinite(latents).all():
        raise UserError(f"latent_error: {path} holds non-finite values; generate it again")
    return latents


SCORERS = (LatentError(),)
