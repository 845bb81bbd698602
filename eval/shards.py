"""Split a run's pictures between processes, and keep what its parts took until all are there.

Shard i of n draws the batches i, i + n, i + 2n, ... A picture depends in its last bits on the batch
that it is drawn in, so whole batches are dealt out and every process draws the very batches that
one process alone would. Splitting shard i of n once more, between d devices, gives the shards
i + n j of n d.

A shard, or the process of one device, leaves `.timing-<i>-of-<n>.json` in the run's folder; whoever
finds all pictures merges these files into the run's record.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dit8.models.generate import Timing
from dit8.models.types import Prompt
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


@dataclass(frozen=True)
class Shard:
    """One part of a run: `index` of `count`, from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    def split(self, devices: int) -> tuple["Shard", ...]:
        """Return this shard's own shards, one a device."""
        count = self.count * devices
        return tuple(Shard(self.index + self.count * device, count) for device in range(devices))

    def of(self, prompts: Sequence[Prompt], batch: int) -> list[Prompt]:
        """Return this shard's prompts: whole batches, of which only the last may be smaller."""
        starts = range(self.index * batch, len(prompts), self.count * batch)
        return [prompt for start in starts for prompt in prompts[start : start + batch]]


WHOLE = Shard(0, 1)


def parse_shard(text: str | None) -> Shard:
    """Read a shard as the command line has it, such as "0/4"; None is the whole run.

    Raises:
        UserError: another form, or an index outside of the count.
    """
    if text is None:
        return WHOLE
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(
            f"shard must look like 0/4, the first of four, up to 3/4, got {text!r}; correct it"
        )
    return Shard(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Part:
    """What one process drew of a run.

    Args:
        timing: of its pictures.
        started: when, in ISO 8601, UTC; None where nothing was drawn.
        seconds: from there to the end; of several parts the sum.
        gpus: names, without repetition, in order; empty on a CPU.
    """

    timing: Timing = Timing((), ())
    started: str | None = None
    seconds: float = 0.0
    gpus: tuple[str, ...] = ()

    def __add__(self, other: "Part") -> "Part":
        return Part(
            Timing(
                self.timing.image_ms + other.timing.image_ms,
                self.timing.step_ms + other.timing.step_ms,
            ),
            min(filter(None, (self.started, other.started)), default=None),
            self.seconds + other.seconds,
            tuple(sorted({*self.gpus, *other.gpus})),
        )


def leave(part: Part, shard: Shard, folder: Path) -> None:
    """Keep a part in the folder, with the same part before it was stopped."""
    path = folder / f".timing-{shard.index}-of-{shard.count}.json"
    whole = _read(path) + part if path.exists() else part
    text = json.dumps(asdict(whole))
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def merge(own: Part, folder: Path) -> tuple[Part, list[Path]]:
    """Add what the parts of a run left in its folder; returns their files, too."""
    files = sorted(folder.glob(".timing-*-of-*.json"))
    return functools.reduce(Part.__add__, map(_read, files), own), files


def _read(path: Path) -> Part:
    known = json.loads(path.read_text(encoding="utf-8"))
    timing = {name: tuple(values) for name, values in known["timing"].items()}
    return Part(Timing(**timing), known["started"], known["seconds"], tuple(known["gpus"]))
