"""Check and time every path on one linear; a path that cannot run costs its rows, not the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dit8.eval.gemm_rows import PATHS, modes_of, split_mode
from dit8.quant.errors import UserError
from dit8.scripts.gemm_checks import Checker
from dit8.scripts.gemm_paths import Declined, GemmPath, Operands, draw_operands
from dit8.scripts.gemm_peers import first_line
from dit8.scripts.timing import Call, Sampler, copies_for, interleave

EVERYWHERE = "everywhere"
Cell = tuple[str, str]  # path, mode


@dataclass(frozen=True)
class Machine:
    """Where a run takes place and what measures it; tests put a CPU and a made-up clock here."""

    device: torch.device
    gpu: str
    l2_bytes: int
    free_bytes: Callable[[], int]
    bf16_tflops: Callable[[], float]
    expected_tflops: float
    sampler: Callable[[Sequence[Call], bool], Sampler]


@dataclass
class NotMeasured:
    """Collect what was left out and why: path -> reason -> where."""

    reasons: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, path: str, reason: str, where: str) -> None:
        """Note that a path has no rows at a place."""
        places = self.reasons.setdefault(path, {}).setdefault(reason, [])
        if where not in places:
            places.append(where)

    def lines(self) -> list[str]:
        """Say it, in one line for each path and reason."""
        return [
            f"{path}: not measured: {reason} ({', '.join(places)})"
            for path, reasons in self.reasons.items()
            for reason, places in reasons.items()
        ]


def attempt(path: GemmPath, action: Callable[[], Any], note: Callable[[str], None]) -> Any:
    """Do something for a path and return what it returns, or None where it cannot be done.

    Args:
        path: an error of one of ours is raised, an error of another is noted.
        action: what to do; does not return None.
        note: takes the reason.
    """
    try:
        return action()
    except Declined as reason:
        note(str(reason))
    except Exception as error:  # whatever a foreign library raises is a reason to report
        if path.is_ours:
            raise
        note(first_line(error))
    return None


def measure_linear(
    machine: Machine,
    paths: Sequence[GemmPath],
    modes: Sequence[str],
    sizes: tuple[int, int, int],
    rounds: int,
    note: Callable[[str, str], None],
    where: str,
) -> dict[Cell, list[float]]:
    """Check, prepare and time every path on one linear.

    Args:
        machine: device and clock.
        paths: in the order in which a round takes them.
        modes: those that were chosen.
        sizes: M, N, K.
        rounds: samples of each.
        note: takes path and reason of what cannot run.
        where: shape and M, for messages.

    Returns:
        (path, mode) -> ms per call, one value a round.

    Raises:
        UserError: a result of ours is wrong, or the GPU's memory does not suffice.
    """
    try:
        with torch.no_grad():
            samplers = _prepare_all(machine, paths, modes, sizes, note, where)
            return interleave(samplers, rounds)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{where} must fit the free GPU memory, got {first_line(error)[:150]}; "
            "leave it out with --shapes and --m, or choose fewer --paths"
        ) from error


def _prepare_all(machine, paths, modes, sizes, note, where) -> dict[Cell, Sampler]:
    m, n, k = sizes
    first = draw_operands(m, n, k, machine.device)
    copies = copies_for(
        call_bytes=m * k + n * k + 2 * m * n,
        operand_bytes=6 * (m * k + n * k),  # bf16, int8, and as much again for the paths' own
        l2_bytes=machine.l2_bytes,
        free_bytes=machine.free_bytes(),
    )
    operands = [first, *(first.clone() for _ in range(copies - 1))]
    checker = Checker(first, where)
    samplers: dict[Cell, Sampler] = {}
    for path in paths:
        mine = modes_of(path.name, modes)
        samplers |= _prepare(machine, path, mine, operands, checker, note)
    return samplers


def _prepare(
    machine: Machine,
    path: GemmPath,
    modes: Sequence[str],
    operands: Sequence[Operands],
    checker: Checker,
    note: Callable[[str, str], None],
) -> dict[Cell, Sampler]:
    """Make a path's calls, check what they return, and make the samplers of its modes."""

    def noted(reason: str) -> None:
        note(path.name, reason)

    calls = attempt(path, lambda: [path.build(o) for o in operands], noted)
    if calls is None:
        return {}
    samplers: dict[Cell, Sampler] = {}
    for what in PATHS[path.name]:
        mine = [mode for mode in modes if split_mode(mode)[0] == what]
        if not mine:
            continue
        rotated = [one[what] for one in calls]
        if attempt(path, lambda w=what, r=rotated: checker.check(path, w, r[0]), noted) is None:
            continue
        for mode in mine:
            graph = split_mode(mode)[1] == "graph"
            made = attempt(path, lambda r=rotated, g=graph: machine.sampler(r, g), noted)
            if made is not None:
                samplers[path.name, mode] = made
    return samplers
