"""Forward hooks that keep the largest magnitude of every channel, per denoising step.

Only real tokens count. The pipeline pads text on the left up to a fixed length; those rows belong
to no segment of the image, attend to each other and never reach the output, yet their activations
are as large as any. The branch's own `indicator` argument says which rows they are.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from quant.errors import UserError
from quant.types import Architecture


class ChannelMaxima:
    """Running maxima of every activation: memory O(steps * K), whatever the rows and prompts."""

    def __init__(self, initial: Mapping[str, torch.Tensor], rows: Mapping[str, int]) -> None:
        self._maxima = {key: list(tensor) for key, tensor in initial.items()}
        self._rows = dict(rows)
        self._step: dict[str, int] = {}
        self._real: dict[str, torch.Tensor] = {}

    def begin_prompt(self) -> None:
        """Count the steps from zero again."""
        self._step.clear()

    def branch_hook(self, branch: str, architecture: Architecture) -> Callable:
        """Make the hook that runs before a branch: next step, and which rows are tokens."""

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            name = architecture.indicator_argument
            bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            self._real[branch] = bound[name] != architecture.padding_indicator  # (B, L)
            self._step[branch] = self._step.get(branch, -1) + 1
            self._rows[branch] = self._rows.get(branch, 0) + int(self._real[branch].sum())

        return hook

    def linear_hook(self, branch: str, fold: str) -> Callable:
        """Make the hook that runs before the first reader of an activation."""

        def hook(_: nn.Module, args: tuple) -> None:
            x, real, step = args[0].detach(), self._real[branch], self._step[branch]
            if x.shape[:-1] != real.shape:
                raise ValueError(
                    f"ChannelMaxima: {branch}/{fold} must read {(*real.shape, 'K')}, "
                    f"got {tuple(x.shape)}"
                )
            largest = x.abs().masked_fill(~real[..., None], 0).flatten(0, -2).amax(dim=0)
            largest = largest.float().cpu()  # exact upcast; (K,)
            steps = self._maxima.setdefault(f"{branch}/{fold}", [])
            if step == len(steps):
                steps.append(largest)
            else:
                steps[step] = torch.maximum(steps[step], largest)

        return hook

    def step_absmax(self) -> dict[str, torch.Tensor]:
        """Return a copy: "branch/fold" -> (steps, K) fp32.

        Raises:
            UserError: an activation was NaN or infinite.
        """
        result = {key: torch.stack(steps) for key, steps in self._maxima.items()}
        for key, tensor in result.items():
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"calibrate: the activation {key} must be finite, got NaN or infinity; "
                    "run the model in a wider dtype"
                )
        return result

    def rows(self) -> dict[str, int]:
        """Return the real rows seen per branch, all steps counted."""
        return dict(self._rows)


@contextmanager
def recording(
    branches: Mapping[str, nn.Module], architecture: Architecture, maxima: ChannelMaxima
) -> Iterator[None]:
    """Keep the hooks on the branches for the length of a `with` block, whatever ends it."""
    handles = []
    try:
        for branch, module in branches.items():
            hook = maxima.branch_hook(branch, architecture)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            for fold in architecture.folds:
                linear = module.get_submodule(fold.targets[0])
                handles.append(
                    linear.register_forward_pre_hook(maxima.linear_hook(branch, fold.name))
                )
        yield
    finally:
        for handle in handles:
            handle.remove()
