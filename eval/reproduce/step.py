"""The steps of a plan as data, and how they are summed up and written for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dit8.eval.reproduce.estimate import duration


@dataclass(frozen=True)
class Need:
    """Something that must be there: kind "weights", "gpu", "extra" or "scorer", and its name."""

    kind: str
    name: str


@dataclass(frozen=True)
class Part:
    """Hold one thing that a step makes: what it costs if nothing made it before.

    Args:
        name: for the reader, such as a variant.
        key: equal for equal work; "" is never shared.
        seconds: estimated; None: nothing committed says it.
        disk_bytes: left behind, estimated from above.
    """

    name: str
    key: str
    seconds: float | None
    disk_bytes: float = 0.0


@dataclass(frozen=True)
class Step:
    """One command of a plan.

    Args:
        words: after the Python interpreter.
        what: it does, for the reader.
        parts: what it makes.
        needs: without which it cannot run.
        basis: what the seconds rest on.
        leaves: pattern of the files it leaves, relative to the repository; "" where their names
            are known only to the command.
    """

    words: tuple[str, ...]
    what: str
    parts: tuple[Part, ...]
    needs: tuple[Need, ...] = ()
    basis: str = ""
    leaves: str = ""

    @property
    def seconds(self) -> float | None:
        """Add up the parts with an estimate; None if parts are there and none has one."""
        known = [part.seconds for part in self.parts if part.seconds is not None]
        return sum(known) if known or not self.parts else None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Name the parts without an estimate."""
        return tuple(part.name for part in self.parts if part.seconds is None)

    @property
    def disk_bytes(self) -> float:
        return sum(part.disk_bytes for part in self.parts)


@dataclass(frozen=True)
class Machine:
    """Name the computer that a plan is for.

    Args:
        device: "cpu" or "cuda".
        gpu: key of the table of peaks; "" where the card is not in it.
        memory_gb: of the card; None: not known.
    """

    device: str
    gpu: str
    memory_gb: float | None


@dataclass(frozen=True)
class Request:
    """Hold what a user asks for; None: the table's own.

    Args:
        table: 1 to 9.
        hardware: name of a file in conf/hardware.
        n: captions.
        results: folder of the rows; its default is that of the commands, too.
        overrides: further key=value words for scripts/evaluate.py.
    """

    table: int
    model: str
    hardware: str
    machine: Machine
    n: int | None = None
    results: str = "outputs/results"
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Hold the steps for one table, and what was left out of them with the reason."""

    request: Request
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]


def merge(plans: Sequence[Plan]) -> list[Step]:
    """Join the steps of several plans: a command once, and nothing for what is made already."""
    made: set[str] = set()
    steps: dict[tuple[str, ...], Step] = {}
    for plan in plans:
        for step in plan.steps:
            parts = tuple(part for part in step.parts if part.key not in made)
            made |= {part.key for part in step.parts if part.key}
            steps.setdefault(step.words, replace(step, parts=parts))
    return list(steps.values())


def total(steps: Sequence[Step]) -> tuple[float, float, bool]:
    """Add up seconds, bytes, and whether the seconds are all there are."""
    seconds = sum(step.seconds or 0.0 for step in steps)
    is_whole = not any(step.unknown for step in steps)
    return seconds, sum(step.disk_bytes for step in steps), is_whole


def render(plan: Plan) -> str:
    """Write a plan for the terminal: a line or two for each step, what was left out, the sum."""
    request = plan.request
    lines = [f"Table {request.table}, model={request.model} hardware={request.hardware}"]
    for number, step in enumerate(plan.steps, 1):
        lines.append(f"{number}. python {' '.join(step.words)}")
        lines.append(f"   {step.what}: {cost(step)}")
    lines += [f"left out: {text}" for text in plan.left_out]
    lines.append(f"in all: {sum_up(plan.steps)}")
    return "\n".join(lines)


def sum_up(steps: Sequence[Step]) -> str:
    """Write time and disk of all steps together."""
    seconds, size, is_whole = total(steps)
    if is_whole:
        time = duration(seconds)
    else:
        time = f"{duration(seconds)} and what has no estimate" if seconds else "no estimate"
    return f"{time}, {_gigabytes(size)}"


def cost(step: Step) -> str:
    """Write the time of a step, what it rests on and leaves out, and its disk."""
    if not step.parts:
        return "nothing new is drawn"
    size = _gigabytes(step.disk_bytes)
    if step.seconds is None:
        return f"no estimate, {size}"
    basis = f" ({step.basis})" if step.basis else ""
    without = f", {', '.join(step.unknown)} not included" if step.unknown else ""
    return f"{duration(step.seconds)}{basis}{without}, {size}"


def _gigabytes(size: float) -> str:
    """Write a size on disk."""
    return f"{size / 1e9:.1f} GB on disk" if size >= 5e7 else "below 0.1 GB on disk"
