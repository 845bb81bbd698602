"""Measure what changing some linears does to a branch's velocity, end to end.

    damage = ||v - v_ref|| / ||v_ref||          v = branch(recorded inputs), linears exchanged

An error made in one linear is attenuated by the norms behind it and by the residual stream that
passes it by, or amplified where attention turns on it, so the error of its own output does not say
what it costs. Here the whole branch runs, on the inputs that the unquantized model saw: a damage is
of one step, not of a trajectory that left the path some steps ago.

Every layer and every scheme is judged on the same inputs, so they are recorded once, while the
model generates. The full arguments are kept, on the CPU: at 1024 x 1024 pixels in bf16 2.6 MB a
step and prompt, and once a prompt 0.65 GB of text features (6144 rows, those of the image zero).

Only image rows count: the pipeline throws away the velocity of text and padding.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dit8.quant.calibrate import HasId, P
from dit8.quant.errors import UserError
from dit8.quant.int8 import quantize_weight, relative_error
from dit8.quant.linear import Int8Linear, check_swappable, put_linears

# Ideogram 4's forward takes the role of every row; a branch without the argument has image rows
# only (its text enters by another way), and all of them count.
INDICATOR, IMAGE = "indicator", 2


@dataclass(frozen=True)
class Call:
    """What went into one forward of a branch; tensors are on the CPU, in their dtype."""

    prompt: str
    step: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    image_rows: torch.Tensor | None  # (B, L) bool; None: all rows


def record_inputs(
    branches: Mapping[str, nn.Module],
    generate_one: Callable[[P], object],
    prompts: Sequence[P],
    steps: Collection[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[Call, ...]]:
    """Keep the arguments of the branches' forwards while the prompts are generated.

    A tensor that is the same as in the step before (text features, positions) is kept once.

    Args:
        branches: file prefix -> module.
        generate_one: runs all denoising steps of one prompt through the branches.
        prompts: with `.id`.
        steps: which steps to keep, counted from 0 per prompt and branch; None keeps all.
        progress: called with (prompts done, prompts in all).

    Returns:
        branch -> calls, prompt by prompt and step by step.

    Raises:
        ValueError: a wanted step never came.
    """
    calls: dict[str, list[Call]] = {branch: [] for branch in branches}
    counts: dict[str, int] = {}

    def make_hook(branch: str) -> Callable:
        latest: dict[Any, torch.Tensor] = {}

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            step = counts[branch]
            counts[branch] += 1
            if steps is not None and step not in steps:
                return
            kept = tuple(_keep(latest, i, value) for i, value in enumerate(args))
            named = {name: _keep(latest, name, value) for name, value in kwargs.items()}
            rows = _image_rows(module, kept, named)
            calls[branch].append(Call(prompt.id, step, kept, named, rows))

        return hook

    handles = []
    try:
        for branch, module in branches.items():
            handles.append(module.register_forward_pre_hook(make_hook(branch), with_kwargs=True))
        for done, prompt in enumerate(prompts, start=1):
            counts.update(dict.fromkeys(branches, 0))
            generate_one(prompt)
            _check_steps(counts, steps, prompt)
            if progress is not None:
                progress(done, len(prompts))
    finally:
        for handle in handles:
            handle.remove()
    return {branch: tuple(kept) for branch, kept in calls.items()}


def _check_steps(counts: Mapping[str, int], steps: Collection[int] | None, prompt: HasId) -> None:
    needed = 1 if steps is None else 1 + max(steps, default=0)
    for branch, count in counts.items():
        if count < needed:
            raise ValueError(
                f"record_inputs: prompt {prompt.id} must run at least {needed} steps of "
                f"{branch}, got {count}"
            )


def _keep(latest: dict[Any, torch.Tensor], name: Any, value: Any) -> Any:
    """Copy a tensor to the CPU, or return the copy of the step before if nothing changed."""
    if not isinstance(value, torch.Tensor):
        return value
    copy = value.detach().to("cpu", copy=True)
    before = latest.get(name)
    if before is None or before.dtype != copy.dtype or not torch.equal(before, copy):
        latest[name] = copy
    return latest[name]


def _image_rows(module: nn.Module, args: tuple, kwargs: dict) -> torch.Tensor | None:
    signature = inspect.signature(module.forward)
    if INDICATOR not in signature.parameters:
        return None
    return signature.bind(*args, **kwargs).arguments[INDICATOR] == IMAGE


@torch.no_grad()
def velocities(
    module: nn.Module,
    calls: Sequence[Call],
    *,
    batch: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Replay recorded calls: the velocity of each one's image rows, (R, C) on the CPU.

    Args:
        module: a branch, on any device; the inputs follow it.
        calls: in any order.
        batch: consecutive calls that go through in one forward if their shapes agree and each
            holds one picture. Another batch may round differently, so compare equal ones.
        progress: called with the number of calls that were just done.

    Raises:
        UserError: a velocity is NaN or infinite.
    """
    device = next(module.parameters()).device
    result = []
    for group in _batches(calls, batch):
        args, kwargs = _joined(group, device)
        output = module(*args, **kwargs)
        velocity = (output if isinstance(output, torch.Tensor) else output[0]).cpu()
        for call, v in zip(group, velocity.chunk(len(group)), strict=True):
            rows = v.flatten(0, -2) if call.image_rows is None else v[call.image_rows]
            if not torch.isfinite(rows).all():
                raise UserError(
                    f"velocities: the velocity of prompt {call.prompt}, step {call.step}, must be "
                    f"finite, got NaN or infinity in {rows.dtype}; run the model in a wider dtype"
                )
            result.append(rows)
        if progress is not None:
            progress(len(group))
    return result


def _batches(calls: Sequence[Call], batch: int) -> Iterator[list[Call]]:
    """Cut the calls into runs of at most `batch` that can be joined."""
    group: list[Call] = []
    for call in calls:
        if group and (len(group) == batch or not _joinable(group[0], call)):
            yield group
            group = []
        group.append(call)
    if group:
        yield group


def _values(call: Call) -> list[Any]:
    return [*call.args, *(call.kwargs[name] for name in sorted(call.kwargs))]


def _joinable(one: Call, other: Call) -> bool:
    """Tell whether two calls differ only in tensors that hold one picture each."""
    if len(one.args) != len(other.args) or one.kwargs.keys() != other.kwargs.keys():
        return False
    for a, b in zip(_values(one), _values(other), strict=True):
        if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
            if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor) or a != b:
                return False
        elif a.shape != b.shape or a.dtype != b.dtype:
            return False
        elif not _is_single(a) and not torch.equal(a, b):
            return False
    return True


def _is_single(tensor: torch.Tensor) -> bool:
    """Tell whether the leading dimension is that of one picture (positions may have none)."""
    return tensor.ndim > 0 and tensor.shape[0] == 1


def _joined(calls: Sequence[Call], device: torch.device) -> tuple[tuple, dict[str, Any]]:
    """Stack the arguments of calls along the batch, on `device`."""

    def join(values: list[Any]) -> Any:
        if not isinstance(values[0], torch.Tensor):
            return values[0]
        stacked = torch.cat(values) if _is_single(values[0]) else values[0]
        return stacked.to(device)

    args = tuple(join(list(column)) for column in zip(*(c.args for c in calls), strict=True))
    names = calls[0].kwargs
    return args, {name: join([call.kwargs[name] for call in calls]) for name in names}


def plain_int8(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Build W8A8 replacements without smoothing: a scale per output channel and per row.

    Args:
        module: a branch.
        names: of its `nn.Linear`s; those of one stored linear (q, k and v) give together what the
            stacked one would.
    """
    replacements = {}
    for name in names:
        linear = module.get_submodule(name)
        codes, scales = quantize_weight(linear.weight.detach(), name)
        bias = None if linear.bias is None else linear.bias.detach()
        replacements[name] = Int8Linear(codes, scales, bias=bias)
    return replacements


@contextmanager
def exchanged(module: nn.Module, replacements: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put replacements in the place of stock linears for the length of a `with` block.

    Raises:
        UserError: a name is not a `torch.nn.Linear` of the module.
    """
    check_swappable(module, replacements)
    originals = {name: module.get_submodule(name) for name in replacements}
    try:
        put_linears(module, replacements)
        yield
    finally:
        put_linears(module, originals)


def velocity_damage(
    module: nn.Module,
    calls: Sequence[Call],
    replacements: Mapping[str, nn.Module],
    references: Sequence[torch.Tensor],
    *,
    batch: int = 1,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Measure the relative error of the velocity with some linears exchanged.

    Args:
        module: a branch; as it was afterwards, whatever happens.
        calls: from `record_inputs`.
        replacements: linear -> module to run in its place.
        references: from `velocities` of the unchanged module, with the same `batch`.
        batch, progress: see `velocities`.

    Returns:
        (calls,) fp64 >= 0, ||v - v_ref|| / ||v_ref|| over image rows.

    Raises:
        UserError: see `velocities` and `exchanged`.
        ValueError: not one reference a call.
    """
    if len(references) != len(calls):
        raise ValueError(
            f"velocity_damage: references must be {len(calls)}, one a call, got {len(references)}"
        )
    with exchanged(module, replacements):
        changed = velocities(module, calls, batch=batch, progress=progress)
    errors = [relative_error(a, b) for a, b in zip(references, changed, strict=True)]
    return torch.tensor(errors, dtype=torch.float64)
