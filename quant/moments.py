"""Shape of every activation, per denoising step: largest magnitude, channel maxima, kurtosis.

    kurtosis = E[(x - mu)^4] / E[(x - mu)^2]^2

over all values of an activation, rows and channels alike: 3 for a Gaussian, 1.8 for a uniform one,
up to the number of values for a single spike. Crest (channel max / channel median, see
`quant.calibrate.channel_crest`) only sees an outlier that keeps to a channel; kurtosis also sees
one that moves from token to token, which no smoothing vector can remove.

Kept are sums, so that what was recorded on two sets of prompts can be merged: the count and the
first four powers in fp64. Recovering central moments from them loses (mu / sigma)^4 of 16 digits,
so an activation whose mean is a thousand times its deviation still has four left.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dit8.quant.errors import UserError
from dit8.quant.types import Architecture

ROWS_AT_A_TIME = 512  # two fp64 copies of that many rows: 0.4 GB for the text projection's 53,248
POWERS = 5  # count, sums of x, x^2, x^3, x^4


@dataclass(frozen=True)
class Moments:
    """What was seen of every activation; both mappings have the same keys."""

    maxima: dict[str, torch.Tensor]  # "branch/group" -> (steps, K) fp32, largest magnitudes
    sums: dict[str, torch.Tensor]  # "branch/group" -> (steps, 5) fp64, see POWERS


def merge(one: Moments, other: Moments) -> Moments:
    """Join what two sets of prompts showed, as if recorded in one go.

    Raises:
        ValueError: the two are of other activations or numbers of steps.
    """
    shapes = [{key: tuple(t.shape) for key, t in m.maxima.items()} for m in (one, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"merge: both moments must have the same activations and steps, got {len(shapes[0])} "
            f"and {len(shapes[1])} activations"
        )
    return Moments(
        {key: torch.maximum(t, other.maxima[key]) for key, t in one.maxima.items()},
        {key: t + other.sums[key] for key, t in one.sums.items()},
    )


def kurtosis(sums: torch.Tensor) -> torch.Tensor:
    """Compute the equation above from power sums.

    Args:
        sums: (..., 5) fp64.

    Returns:
        (...) fp64 >= 1; NaN where there are no values or all are the same.
    """
    count, *powers = sums.unbind(dim=-1)
    mean, square, cube, fourth = (power / count for power in powers)
    variance = square - mean**2
    central = fourth - 4 * mean * cube + 6 * mean**2 * square - 3 * mean**4
    constant = variance <= 1e-14 * square  # what rounding leaves of a variance of zero
    return (central / variance**2).masked_fill(constant, torch.nan)


class MomentRecorder:
    """Running moments of every activation: memory O(steps * K), whatever the rows and prompts."""

    def __init__(self) -> None:
        self._maxima: dict[str, list[torch.Tensor]] = {}
        self._sums: dict[str, list[torch.Tensor]] = {}
        self._step: dict[str, int] = {}
        self._real: dict[str, torch.Tensor | None] = {}

    def begin_prompt(self) -> None:
        """Count the steps from zero again."""
        self._step.clear()

    def branch_hook(self, branch: str, architecture: Architecture) -> Callable:
        """Make the hook that runs before a branch: next step, and which rows are tokens."""

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            name = architecture.indicator_argument
            self._real[branch] = None
            if name is not None:
                bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                self._real[branch] = bound[name] != architecture.padding_indicator  # (B, L)
            self._step[branch] = self._step.get(branch, -1) + 1

        return hook

    def linear_hook(self, branch: str, group: str) -> Callable:
        """Make the hook that runs before the first reader of an activation."""

        def hook(_: nn.Module, args: tuple) -> None:
            rows = _informative_rows(args[0].detach(), self._real[branch])
            key, step = f"{branch}/{group}", self._step[branch]
            maxima, sums = self._maxima.setdefault(key, []), self._sums.setdefault(key, [])
            largest, powers = _channel_maxima(rows).cpu(), _power_sums(rows).cpu()
            if step == len(maxima):
                maxima.append(largest)
                sums.append(powers)
            else:
                maxima[step] = torch.maximum(maxima[step], largest)
                sums[step] = sums[step] + powers

        return hook

    def moments(self) -> Moments:
        """Return a copy of what was recorded so far.

        Raises:
            UserError: an activation was NaN or infinite.
        """
        for key, steps in self._sums.items():
            if not torch.isfinite(torch.stack(steps)).all():
                raise UserError(
                    f"moments: the activation {key} must be finite, got NaN or infinity; "
                    "run the model in a wider dtype"
                )
        return Moments(
            {key: torch.stack(steps) for key, steps in self._maxima.items()},
            {key: torch.stack(steps) for key, steps in self._sums.items()},
        )


@contextmanager
def recording_moments(
    branches: Mapping[str, nn.Module], architecture: Architecture
) -> Iterator[MomentRecorder]:
    """Keep the hooks on the branches for the length of a `with` block, whatever ends it.

    Call `begin_prompt` on what it yields before each prompt.
    """
    recorder, handles = MomentRecorder(), []
    try:
        for branch, module in branches.items():
            hook = recorder.branch_hook(branch, architecture)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            for group in architecture.groups:
                linear = module.get_submodule(group.targets[0])
                hook = recorder.linear_hook(branch, group.name)
                handles.append(linear.register_forward_pre_hook(hook))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _informative_rows(x: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Select the rows (R, K) that stand for something.

    Padding is left out where x has a row per token; adaLN's input has one per picture. So are rows
    of zeros: the text projection reads zeros in the place of image tokens, the input projection in
    that of text, and two thirds of zeros would triple a kurtosis.
    """
    rows = x[real] if real is not None and x.shape[:-1] == real.shape else x.flatten(0, -2)
    return rows[(rows != 0).any(dim=-1)]


def _channel_maxima(rows: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each channel: (K,) fp32, zeros if there are no rows."""
    if rows.shape[0] == 0:
        return rows.new_zeros(rows.shape[1], dtype=torch.float32)
    return rows.abs().amax(dim=0).float()


def _power_sums(rows: torch.Tensor) -> torch.Tensor:
    """Return (5,) fp64: count, sums of x, x^2, x^3, x^4 over all values."""
    total = torch.zeros(POWERS, dtype=torch.float64, device=rows.device)
    for part in rows.split(ROWS_AT_A_TIME):
        x = part.double().flatten()
        square = x * x
        total[0] += x.numel()
        total[1] += x.sum()
        total[2] += square.sum()
        total[3] += torch.dot(square, x)
        total[4] += torch.dot(square, square)
    return total
