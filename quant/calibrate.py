"""Run the calibration prompts through every denoising step and keep channel maxima.

The one loop of the project that runs the unquantized model for quantization's sake. It saves as it
goes; started again with the same model and prompts it continues with the prompts not yet done.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from dit8.quant.act_stats import load_stats, save_stats
from dit8.quant.errors import UserError
from dit8.quant.recorder import ChannelMaxima, recording
from dit8.quant.types import ActStats, Architecture


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
        save_every: prompts between two writes; raise it when the file is large (act_stats).
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
