"""Split a run's pictures between processes: shard i of n draws the batches i, i + n, i + 2n, ...

A picture depends in its last bits on the batch that it is drawn in, so whole batches are dealt out
and every process draws the very batches that one process alone would. Splitting shard i of n once
more, between d devices, gives the shards i + n j of n d.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dit8.models.types import Prompt
from dit8.quant.errors import UserError


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
