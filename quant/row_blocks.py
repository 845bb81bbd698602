"""Run a function over blocks of rows on all cores: one core a block, no barrier inside it.

torch's own parallelism splits every small operation over the cores and waits for the slowest. On
two cores with other work that took ten times as long; whole blocks side by side do not wait.
"""

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

B = TypeVar("B")
R = TypeVar("R")


def over_blocks(function: Callable[[B], R], blocks: Iterable[B]) -> list[R]:
    """Map a function over blocks, in order; torch releases the interpreter inside its operations.

    Args:
        function: must not change anything that another block's call reads.
        blocks: such as `StoredWeight.blocks()`.

    Raises:
        whatever the function raises, for the first block that fails.
    """
    blocks = list(blocks)
    if len(blocks) < 2:
        return [function(block) for block in blocks]
    return list(_pool(torch.get_num_threads()).map(function, blocks))


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    # the number of threads inside an operation is a property of the calling thread
    return ThreadPoolExecutor(workers, "rows", initializer=torch.set_num_threads, initargs=(1,))
