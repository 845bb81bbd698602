"""Keep what the parts of a run took until all of its pictures are there.

A shard, or the process of one device, leaves `.timing-<i>-of-<n>.json` in the run's folder; whoever
finds all pictures merges these files into the run's record.
"""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dit8.models.generate import Timing
from dit8.quant.files import write_atomically
from dit8.scripts.sharding import Shard


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
