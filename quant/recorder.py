"""Forward hooks that keep the largest magnitude of every channel, per denoising step, and samples.

Only real tokens count. The pipeline pads text on the left up to a fixed length; those rows belong
to no segment of the image, attend to each other and never reach the output, yet their activations
are as large as any. The branch's own `indicator` argument says which rows they are.
"""

import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from dit8.quant.errors import UserError
from dit8.quant.types import Architecture


class ChannelMaxima:
    """Running maxima of every activation, and a few whole rows: memory O(steps * K).

    Args:
        initial: "branch/group" -> (steps, K), what an earlier run left.
        rows: branch -> real rows seen so far.
        samples: "branch/group" -> (R, K) bf16, as far as they are.
        sample_steps: denoising steps of every prompt at which one row is kept.
    """

    def __init__(
        self,
        initial: Mapping[str, torch.Tensor],
        rows: Mapping[str, int],
        samples: Mapping[str, torch.Tensor],
        sample_steps: Collection[int],
    ) -> None:
        self._maxima = {key: list(tensor) for key, tensor in initial.items()}
        self._rows = dict(rows)
        self._samples = {key: list(tensor) for key, tensor in samples.items()}
        self._sample_steps = frozenset(sample_steps)
        self._prompt = ""
        self._step: dict[str, int] = {}
        self._real: dict[str, torch.Tensor | None] = {}

    def begin_prompt(self, name: str) -> None:
        """Count the steps from zero again."""
        self._prompt = name
        self._step.clear()

    def branch_hook(self, branch: str, architecture: Architecture) -> Callable:
        """Make the hook that runs before a branch: next step, and which rows are tokens."""

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            name = architecture.indicator_argument
            self._step[branch] = self._step.get(branch, -1) + 1
            self._real[branch] = None
            if name is not None:
                bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                self._real[branch] = bound[name] != architecture.padding_indicator  # (B, L)
                self._rows[branch] = self._rows.get(branch, 0) + int(self._real[branch].sum())

        return hook

    def linear_hook(self, branch: str, group: str) -> Callable:
        """Make the hook that runs before the first reader of an activation."""

        def hook(_: nn.Module, args: tuple) -> None:
            x, real, step = args[0].detach(), self._real[branch], self._step[branch]
            if real is not None and x.shape[:-1] != real.shape:
                raise ValueError(
                    f"ChannelMaxima: {branch}/{group} must read {(*real.shape, 'K')}, "
                    f"got {tuple(x.shape)}"
                )
            x = x.flatten(0, -2) if real is None else x[real]  # (rows, K)
            if len(x) == 0:
                return  # the unconditional branch has no text
            largest = x.abs().amax(dim=0).float().cpu()  # exact upcast; (K,)
            steps = self._maxima.setdefault(f"{branch}/{group}", [])
            if step == len(steps):
                steps.append(largest)
            else:
                steps[step] = torch.maximum(steps[step], largest)
            if step in self._sample_steps:
                # any row will do, but the same one whatever was run before, and not one of the
                # zeros that the text projection reads in place of image rows
                filled = x[x.abs().amax(dim=1) > 0]
                filled = x if len(filled) == 0 else filled
                digest = hashlib.sha256(f"{self._prompt}/{step}".encode()).digest()
                row = filled[int.from_bytes(digest[:8], "big") % len(filled)]
                self._samples.setdefault(f"{branch}/{group}", []).append(row.bfloat16().cpu())

        return hook

    def step_absmax(self) -> dict[str, torch.Tensor]:
        """Return a copy: "branch/group" -> (steps, K) fp32.

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

    def samples(self) -> dict[str, torch.Tensor]:
        """Return a copy of the kept rows: "branch/group" -> (R, K) bf16, prompt by prompt."""
        return {key: torch.stack(rows) for key, rows in self._samples.items()}

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
            for group in architecture.groups:
                if group.role == "rest":
                    continue  # reads a row per picture or the raw latents; never smoothed
                linear = module.get_submodule(group.targets[0])
                handles.append(
                    linear.register_forward_pre_hook(maxima.linear_hook(branch, group.name))
                )
        yield
    finally:
        for handle in handles:
            handle.remove()
