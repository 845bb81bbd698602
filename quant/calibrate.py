"""Run the calibration prompts through every denoising step and keep channel maxima.

The one loop of the project that runs the unquantized model for quantization's sake. It saves as it
goes; started again with the same model and prompts it continues with the prompts not yet done.

What is kept, for every activation (of a group of linears that read it) and every denoising step, is
the largest magnitude of each channel over prompts and real tokens. A maximum does not depend on the
order of what it is taken over, so an interrupted calibration that continues gives the same bits as
an unbroken one. Besides, one whole row of every activation at some steps of every prompt, in bf16,
for recipes that compare output errors. Size: steps * K * 4 bytes per activation and 2 * K a row;
15.6 MB for the bundled mini at 20 steps and 256 rows, 1.3 GB for the real model at 48 and 256.

Forward hooks of a branch take it down. Only real tokens count. The pipeline pads text on the left
up to a fixed length; those rows belong to no segment of the image, attend to each other and never
reach the output, yet their activations are as large as any. The branch's own `indicator` argument
says which rows they are.
"""

import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import nn

from dit8.quant.checkpoint.tensor_file import read_tensors, write_tensors
from dit8.quant.errors import UserError
from dit8.quant.types import ActStats, Architecture

KIND = "activation statistics 2"  # raise the number when the content changes its meaning


def absmax(stats: ActStats, key: str) -> torch.Tensor:
    """Return the largest magnitude of each channel over all steps: (K,) fp32."""
    return step_absmax(stats, key).amax(dim=0)


def step_absmax(stats: ActStats, key: str) -> torch.Tensor:
    """Return the largest magnitude of each channel at each step: (steps, K) fp32.

    Args:
        key: "branch/fold".

    Raises:
        UserError: the statistics lack the activation.
    """
    if key not in stats.step_absmax:
        raise UserError(
            f"step_absmax: the statistics hold no activation {key!r}, got "
            f"{len(stats.step_absmax)} others; calibrate the model that is being quantized"
        )
    return stats.step_absmax[key]


def channel_crest(maxima: torch.Tensor) -> torch.Tensor:
    """Compute channel max / channel median, the outlier measure that protection ranks by.

    Channels that are zero everywhere carry nothing and are left out of the median; with them a
    dead majority would make every crest infinite. An activation of zeros only has crest 1.

    Args:
        maxima: (..., K) largest magnitudes >= 0.

    Returns:
        (...) fp64 >= 1; the median of an even count is the mean of the middle two.
    """
    active = maxima.double().masked_fill(maxima == 0, torch.nan)
    crest = maxima.double().amax(dim=-1) / active.nanquantile(0.5, dim=-1)
    return crest.nan_to_num(nan=1.0)


def max_crest(stats: ActStats, key: str) -> float:
    """Return the largest crest over the denoising steps, each with its own maxima."""
    return float(channel_crest(step_absmax(stats, key)).max())


def save_stats(stats: ActStats, path: str | Path) -> None:
    """Write the statistics as one safetensors, atomically; equal statistics give equal bytes."""
    header = {
        "model_key": stats.model_key,
        "prompts_key": stats.prompts_key,
        "done": stats.done,
        "total": stats.total,
        "rows": stats.rows,
    }
    tensors = {f"absmax:{key}": tensor for key, tensor in stats.step_absmax.items()}
    tensors |= {f"samples:{key}": tensor for key, tensor in stats.samples.items()}
    write_tensors(path, tensors, KIND, header)


def load_stats(path: str | Path) -> ActStats:
    """Read the statistics, complete or not.

    Raises:
        UserError: no such file, or not a statistics file of this version.
    """
    tensors, header = read_tensors(path, KIND, remedy="make it anew with scripts/calibrate.py")
    return ActStats(
        step_absmax=_under("absmax:", tensors),
        rows=header["rows"],
        done=tuple(header["done"]),
        total=header["total"],
        model_key=header["model_key"],
        prompts_key=header["prompts_key"],
        samples=_under("samples:", tensors),
    )


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


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


class HasId(Protocol):
    """Anything with an identifier, such as `models.types.Prompt`."""

    @property
    def id(self) -> str: ...


P = TypeVar("P", bound=HasId)


def calibrate(
    branches: Mapping[str, nn.Module],
    architecture: Architecture,
    generate_one: Callable[[P], object],
    prompts: Sequence[P],
    path: str | Path,
    *,
    model_key: str,
    prompts_key: str,
    sample_steps: Collection[int] = (),
    save_every: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ActStats:
    """Collect the largest magnitude of every channel, per branch, activation and denoising step.

    A step is one forward of a branch; counting starts again with each prompt.

    Args:
        branches: file prefix -> module, see `models.ideogram4.branch_modules`.
        architecture: describes each of the branches.
        generate_one: runs all denoising steps of one prompt through both branches. What it does
            must depend on its prompt alone (seed included), or a restart changes the result.
        prompts: with unique `.id`.
        path: the safetensors file, written atomically.
        model_key: identifies the weights.
        prompts_key: identifies everything else that moves an activation: captions, seeds, steps,
            guidance, size; `quant.files.content_key` makes one.
        sample_steps: steps at which one row of every activation is kept per prompt, for recipes
            that compare output errors; R = steps * prompts rows of K bf16 values.
        save_every: prompts between two writes; raise it when the file is large.
        progress: called with (prompts done, prompts in all), first with what a restart found.

    Returns:
        complete statistics; identical bits whether or not the run was interrupted.

    Raises:
        UserError: the file belongs to another model or other prompts, an activation is not
            finite, or a linear was never run.
        ValueError: no prompts, repeated identifiers, `save_every` below 1.
    """
    names = [prompt.id for prompt in prompts]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"calibrate: prompts must have unique ids, got {len(names)}: {names[:3]}")
    if save_every < 1:
        raise ValueError(f"calibrate: save_every must be >= 1, got {save_every}")
    stats = _resume(Path(path), names, model_key, prompts_key)
    maxima = ChannelMaxima(stats.step_absmax, stats.rows, stats.samples, sample_steps)
    finished = set(stats.done)
    remaining = [prompt for prompt in prompts if prompt.id not in finished]
    if progress is not None:
        progress(len(finished), len(names))
    with recording(branches, architecture, maxima):
        for count, prompt in enumerate(remaining, start=1):
            maxima.begin_prompt(prompt.id)
            generate_one(prompt)
            finished.add(prompt.id)
            if count % save_every == 0 or count == len(remaining):
                stats = ActStats(
                    step_absmax=maxima.step_absmax(),
                    rows=maxima.rows(),
                    # the order of the prompts, not of the runs: equal content, equal bytes
                    done=tuple(name for name in names if name in finished),
                    total=len(names),
                    model_key=model_key,
                    prompts_key=prompts_key,
                    samples=maxima.samples(),
                )
                _check_all_seen(stats, branches, architecture)
                save_stats(stats, path)
            if progress is not None:
                progress(len(finished), len(names))
    return stats


def _resume(path: Path, names: list[str], model_key: str, prompts_key: str) -> ActStats:
    """Read what an earlier run left, or start empty."""
    if not path.exists():
        return ActStats({}, {}, (), len(names), model_key, prompts_key)
    stats = load_stats(path)
    expected = (model_key, prompts_key, len(names))
    found = (stats.model_key, stats.prompts_key, stats.total)
    if found != expected or not set(stats.done) <= set(names):
        raise UserError(
            f"calibrate: {path} must hold statistics of (model, prompts, count) {expected}, "
            f"got {found}; delete it or write to another path"
        )
    return stats


def _check_all_seen(
    stats: ActStats, branches: Mapping[str, nn.Module], architecture: Architecture
) -> None:
    """Refuse statistics with a hole: a linear that never ran would be quantized blindly."""
    for branch in branches:
        for group in architecture.groups:
            if group.role != "rest" and f"{branch}/{group.name}" not in stats.step_absmax:
                raise UserError(
                    f"calibrate: generate_one must run every linear of both branches, got no "
                    f"input of {branch}/{group.name}; run the conditional and unconditional branch"
                )
