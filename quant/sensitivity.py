"""Measure what changing some linears does to a branch's velocity, end to end.

    damage = ||v - v_ref|| / ||v_ref||          v = branch(recorded inputs), linears exchanged

An error made in one linear is attenuated by the norms behind it and by the residual stream that
passes it by, or amplified where attention turns on it, so the error of its own output does not say
what it costs. Here the whole branch runs, on the inputs that the unquantized model saw: a damage
is of one step, not of a trajectory that left the path some steps ago.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from dit8.quant.int8 import quantize_weight, relative_error
from dit8.quant.linear import Int8Linear, check_swappable, put_linears
from dit8.quant.replay import Call, velocities


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
