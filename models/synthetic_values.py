"""The numbers of a synthetic checkpoint and of its activation statistics: random, cheap to make.

One pattern of normal samples z is drawn, its length P a prime just below 2 Mi; row i of a matrix is
the pattern from (offset + i K) mod P on, so no two of its first P rows are equal and all that is
left to do is to copy. Rows of different matrices do repeat each other, which a quantizer that looks
at one row at a time cannot see.

    codes        = clamp(112 z, -448, 448) in float8_e4m3fn, one entry of every row set to +-448
    weight_scale = 4 std e^(0.2 z') / 448, one z' a row

So every row reaches the largest code, as where scale = rowmax / 448, and reaches it at four
deviations, about where the maximum of a few thousand normal samples lies.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from dit8.quant.types import ActStats, Architecture, TensorSpec

PATTERN = 2097143  # the largest prime below 2^21
DEVIATIONS, SPREAD = 4.0, 0.2
FP8_MAX, FP8_MAX_BITS, SIGN_BIT = 448.0, 0x7E, 7
COLUMN_STEP = 7919  # a prime, so the column with the largest code moves through all of them
STEPS, SIGMA, OUTLIERS, FACTORS = 2, 0.5, 0.001, (8.0, 64.0)  # of the activation statistics
TOKENS = 4096  # of a 1024 x 1024 picture


def number_of(*parts: object) -> int:
    """Turn a seed and names into 63 bits, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Pattern:
    """The samples of one seed, and what is made of them."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        # twice over: every window of up to P elements is contiguous
        self._samples = torch.randn(PATTERN, generator=generator).repeat(2)
        codes = (self._samples * (FP8_MAX / DEVIATIONS)).clamp_(-FP8_MAX, FP8_MAX)
        self._codes = codes.to(torch.float8_e4m3fn).view(torch.uint8)
        self._values: dict[tuple[float, float], torch.Tensor] = {}  # a few, 8 MB each

    def blocks(
        self, spec: TensorSpec, offset: int, mean: float, std: float
    ) -> Iterator[torch.Tensor]:
        """Make a tensor in blocks of rows.

        Args:
            spec: bfloat16 for values, float8_e4m3fn for codes, float32 for the codes' row scales.
            offset: where in the pattern the tensor starts.
            mean: of the values.
            std: of the values; of the dequantized weight for row scales; codes ignore both.

        Yields:
            rows in order, at most P elements at once.
        """
        k = math.prod(spec.shape[1:])
        size = max(1, PATTERN // k)
        for start in range(0, spec.shape[0], size):
            shape = (min(size, spec.shape[0] - start), *spec.shape[1:])
            first = (offset + start * k) % PATTERN
            window = slice(first, first + math.prod(shape))
            if spec.dtype == torch.float8_e4m3fn:
                yield _with_largest(self._codes[window].reshape(shape), start, offset)
            elif spec.dtype == torch.float32:
                yield torch.exp(SPREAD * self._samples[window]) * (DEVIATIONS * std / FP8_MAX)
            else:
                yield self._scaled(mean, std)[window].reshape(shape)

    def _scaled(self, mean: float, std: float) -> torch.Tensor:
        if (mean, std) not in self._values:
            self._values[mean, std] = (mean + std * self._samples).to(torch.bfloat16)
        return self._values[mean, std]


def _with_largest(codes: torch.Tensor, start: int, offset: int) -> torch.Tensor:
    """Copy rows of codes, start the number of the first, and set one entry of each to +-448."""
    rows = torch.arange(start, start + codes.shape[0])
    columns = (offset + COLUMN_STEP * rows) % codes.shape[1]
    largest = FP8_MAX_BITS + ((rows & 1) << SIGN_BIT)
    codes = codes.clone()
    codes.scatter_(1, columns[:, None], largest[:, None].to(torch.uint8))
    return codes.view(torch.float8_e4m3fn)


def synthetic_stats(
    shapes: Mapping[str, tuple[int, ...]],
    architecture: Architecture,
    branches: Sequence[str],
    *,
    seed: int,
    model_key: str,
) -> ActStats:
    """Make up activation statistics, so that a recipe can be resolved without running a model.

    Channel maxima are log-normal; in every group one channel in a thousand, at least one, is 8 to
    64 times larger, all by one factor that the group draws: a ranking has something to rank.

    Args:
        shapes: of a branch, "module.weight" -> (N, K).
        architecture: of every branch.
        branches: file prefixes.
        seed: of the numbers.
        model_key: of the model that they pass for.

    Returns:
        complete statistics of two steps, "branch/group" -> (2, K) fp32, role "rest" left out as
        calibration leaves it out.
    """
    low, high = (math.log(factor) for factor in FACTORS)
    maxima = {}
    for branch in branches:
        for group in (group for group in architecture.groups if group.role != "rest"):
            generator = torch.Generator().manual_seed(number_of(seed, branch, group.name))
            width = shapes[f"{group.targets[0]}.weight"][1]
            values = torch.exp(SIGMA * torch.randn(STEPS, width, generator=generator))
            chosen = torch.randperm(width, generator=generator)[: max(1, round(OUTLIERS * width))]
            place = float(torch.rand((), generator=generator))
            values[:, chosen] *= math.exp(low + (high - low) * place)
            maxima[f"{branch}/{group.name}"] = values
    rows = dict.fromkeys(branches, STEPS * TOKENS)
    return ActStats(maxima, rows, ("synthetic",), 1, model_key, "synthetic")
