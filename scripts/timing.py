"""Time calls on a CUDA device, one sample of each in turn, so that a drifting clock hits all alike.

A sample is a mean over consecutive calls between two CUDA events, 2 ms of them or more: an event's
resolution is 0.5 us, and a single call in an empty queue would be timed with the host's latency.
The calls of a sample go round copies of the operands, together larger than the L2 cache, because a
weight that was just read is served from L2 in a loop and from memory in a model.

Eager samples contain the host where it is the slower side, which is what eager execution costs.

Graph samples do not, and they are *sustained*: the graph is replayed for 45 ms without a pause and
only the last 30 count. A model computes for seconds on end, and a GPU that does runs into its power
limit: an H200 that has rested takes the first milliseconds at 1.98 GHz and then falls to 1.3-1.7,
the lower the more a kernel moves. In samples of 2 ms after a pause the order of kernels is another
one (results/LOG.md); what a picture takes is the sustained one.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Call = Callable[[], torch.Tensor]
Sampler = Callable[[], float]  # one sample: ms per call
Key = TypeVar("Key", bound=Hashable)

SAMPLE_MS = 2.0
REST_MS, COUNTED_MS = 15.0, 30.0  # of a graph sample: not counted, counted
MOST_CALLS = 512  # of one sample: a graph of more nodes takes longer to instantiate than to time
# caches that the other copies fill between two uses of one: L2 does not evict in strict order
COLD = 1.5
MEMORY_SHARE = 0.5  # of the free memory that all copies of the operands may take


@dataclass(frozen=True)
class Percentiles:
    """20th, 50th and 80th percentile of the samples, in ms per call."""

    p20_ms: float
    p50_ms: float
    p80_ms: float


def percentiles(samples: Sequence[float]) -> Percentiles:
    """Summarize samples; linear between neighbours.

    Raises:
        ValueError: no samples, or one that is not a positive number.
    """
    if len(samples) == 0 or not all(math.isfinite(s) and s > 0 for s in samples):
        raise ValueError(f"percentiles: samples must be positive times in ms, got {samples}")
    return Percentiles(*(float(p) for p in np.percentile(samples, (20, 50, 80))))


def copies_for(call_bytes: int, operand_bytes: int, l2_bytes: int, free_bytes: int) -> int:
    """Count the copies of the operands that keep L2 cold, as far as memory allows.

    Args:
        call_bytes: what the smallest path reads and writes in one call.
        operand_bytes: what one copy takes, for all paths together.
        l2_bytes, free_bytes: the device's L2 cache and free memory.

    Returns:
        1 or more; 1 is one copy, used again and again.
    """
    wanted = 1 + math.ceil(COLD * l2_bytes / call_bytes)
    return max(1, min(wanted, int(MEMORY_SHARE * free_bytes) // operand_bytes))


def interleave(
    samplers: Mapping[Key, Sampler], rounds: int, seed: int = 0
) -> dict[Key, list[float]]:
    """Take one sample of each, `rounds` times over, after one round that is not kept.

    Every round has an order of its own, drawn with `seed`: what ran just before warms the card or
    lets it rest, and in a fixed order one path would always follow the same other.
    """
    samples: dict[Key, list[float]] = {key: [] for key in samplers}
    generator = np.random.default_rng(seed)
    keys = list(samplers)
    for number in range(rounds + 1):
        for index in generator.permutation(len(keys)):
            taken = samplers[keys[index]]()
            if number > 0:
                samples[keys[index]].append(taken)
    return samples


def passes_for(pass_ms: float, calls: int) -> int:
    """Count the rounds over all copies that fill a sample."""
    return max(1, min(math.ceil(SAMPLE_MS / max(pass_ms, 1e-6)), MOST_CALLS // calls))


def cuda_sampler(
    calls: Sequence[Call],
    graph: bool,
    *,
    rest_ms: float = REST_MS,
    counted_ms: float = COUNTED_MS,
) -> Sampler:
    """Prepare samples of one path: warm up, choose their length, capture.

    Args:
        calls: the same work on each copy of the operands.
        graph: replay a CUDA graph of the calls, or make them one by one.
        rest_ms, counted_ms: of a graph sample: replayed without counting, counted.

    Returns:
        a function that takes one sample and returns ms per call; it keeps the calls, and so their
        operands, alive.

    Raises:
        whatever the calls or their capture raise.
    """

    def run(passes: int) -> None:
        for _ in range(passes):
            for call in calls:
                call()

    run(2)  # the first call compiles and tunes
    pass_ms = _event_ms(lambda: run(1))
    passes = passes_for(pass_ms, len(calls))
    count = passes * len(calls)
    if not graph:
        return lambda: _event_ms(lambda: run(passes)) / count
    captured = torch.cuda.CUDAGraph()
    # A graph holds addresses, not tensors, and the next capture gives freed memory back to the
    # driver: what the calls read must live as long as the graph.
    captured.reads = tuple(calls)
    with torch.cuda.graph(captured):
        run(passes)
    captured.replay()
    graph_ms = _event_ms(captured.replay)
    lead, counted = (math.ceil(ms / graph_ms) for ms in (rest_ms, counted_ms))

    def sustained() -> float:
        for _ in range(lead):
            captured.replay()
        return _event_ms(lambda: [captured.replay() for _ in range(counted)]) / (counted * count)

    return sustained


def _event_ms(work: Callable[[], object]) -> float:
    """Return the device's ms from before the first to after the last kernel of `work`."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
