"""Capture a function of fixed tensors into a CUDA graph: one launch instead of a thousand.

A forward of 34 blocks is some 350 kernels, ten a block; started one by one from Python they keep
the GPU waiting at small sizes. A graph replays them at the addresses they were captured with, so
inputs are copied into fixed tensors, and nothing in between may wait for the GPU.

All graphs of a GPU draw their temporary memory from one pool. They may, because they run one after
the other and what a graph returns lies outside of it: the second branch then costs no memory.
"""

import weakref
from collections.abc import Callable

import torch

# graph -> its device, as long as somebody keeps the graph
_devices: "weakref.WeakKeyDictionary[torch.cuda.CUDAGraph, torch.device]" = (
    weakref.WeakKeyDictionary()
)
_streams: dict[torch.device, torch.cuda.Stream] = {}


def capture(run: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """Run once as a warm-up, then capture.

    The warm-up compiles and tunes the Triton kernels and lets cuBLAS and cuDNN allocate, none of
    which is possible during a capture. It runs on the stream of the capture: their workspaces
    belong to a stream.

    Args:
        run: reads and writes tensors that stay where they are, and returns nothing.
        device: a CUDA device.

    Returns:
        the graph; `replay()` runs it on the current stream.

    Raises:
        torch.OutOfMemoryError: in the warm-up or the capture.
    """
    with torch.cuda.device(device):
        stream, caller = _stream(device), torch.cuda.current_stream()
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            run()
        caller.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # torch.cuda.graph gives the warm-up's memory back to the driver before it captures
            with torch.cuda.graph(graph, pool=_pool(device), stream=stream):
                run()
        except RuntimeError as error:
            torch.cuda.set_stream(caller)  # torch.cuda.graph leaves its own when its end fails
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from error  # why the capture could not be ended
            raise
    _devices[graph] = device
    return graph


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _pool(device: torch.device) -> tuple[int, int] | None:
    """Return the memory pool of a graph that is alive: a pool dies with its last graph."""
    return next((graph.pool() for graph, place in _devices.items() if place == device), None)
