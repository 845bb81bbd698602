import contextlib
import gc
import os
import weakref
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dit8.eval.gemm_rows import PATHS
from dit8.scripts.gemm_grid import Machine, measure_linear
from dit8.scripts.gemm_paths import OWN
from dit8.scripts.timing import (
    MOST_CALLS,
    Percentiles,
    copies_for,
    cuda_sampler,
    interleave,
    passes_for,
    percentiles,
)


def test_percentiles_of_known_samples():
    assert percentiles([float(value) for value in range(1, 12)]) == Percentiles(3.0, 6.0, 9.0)
    assert percentiles([2.0]) == Percentiles(2.0, 2.0, 2.0)


@pytest.mark.parametrize("samples", [[], [1.0, 0.0], [1.0, float("nan")], [-1.0]])
def test_times_are_positive(samples):
    with pytest.raises(ValueError, match="samples must be positive times in ms"):
        percentiles(samples)


def test_every_round_takes_all_paths_and_the_first_is_not_kept():
    order = []

    def sampler(name, values):
        def sample():
            order.append(name)
            return next(values)

        return sample

    made = {"a": sampler("a", iter((9.0, 1.0, 2.0))), "b": sampler("b", iter((8.0, 3.0, 4.0)))}
    assert interleave(made, rounds=2) == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    rounds = [order[start : start + 2] for start in range(0, len(order), 2)]
    assert all(sorted(pair) == ["a", "b"] for pair in rounds) and len(rounds) == 3
    assert interleave({}, rounds=2) == {}


def test_no_path_always_follows_the_same_other():
    order = []
    samplers = {name: lambda name=name: order.append(name) or 1.0 for name in "abcd"}
    interleave(samplers, rounds=20)
    assert {before for before, after in zip(order, order[1:], strict=False) if after == "b"} >= {
        *"acd"
    }
    again, order[:] = list(order), []
    interleave(samplers, rounds=20)
    assert order == again


MIB = 2**20


@pytest.mark.parametrize(
    "call, operand, free, copies",
    [
        (60 * MIB, 100 * MIB, 10**12, 3),  # 1.5 caches of 60 MiB between two uses of a copy
        (21 * MIB, 100 * MIB, 10**12, 6),
        (1000 * MIB, 3000 * MIB, 10**12, 2),  # never one, where memory allows
        (21 * MIB, 100 * MIB, 600 * MIB, 3),  # half of the free memory
        (21 * MIB, 100 * MIB, 50 * MIB, 1),
    ],
)
def test_copies_are_larger_than_the_cache(call, operand, free, copies):
    assert copies_for(call, operand, 60 * MIB, free) == copies


@pytest.mark.parametrize(
    "pass_ms, calls, passes",
    [(0.5, 2, 4), (0.3, 2, 7), (5.0, 2, 1), (0.001, 4, MOST_CALLS // 4), (0.0, 600, 1)],
)
def test_a_sample_lasts_long_enough(pass_ms, calls, passes):
    assert passes_for(pass_ms, calls) == passes


class Reads(TorchDispatchMode):
    """Note weakly which memory operations read that was there before the `with` block."""

    def __init__(self):
        super().__init__()
        self.refs, self.made = {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def storages(tree):
            tensors = (x for x in tree_leaves(tree) if isinstance(x, torch.Tensor))
            return [tensor.untyped_storage() for tensor in tensors]

        for storage in storages((args, kwargs)):
            if storage._cdata not in self.made:
                self.refs.setdefault(storage._cdata, StorageWeakRef(storage))
        out = func(*args, **(kwargs or {}))
        self.made |= {storage._cdata for storage in storages(out)} - self.refs.keys()
        return out


class PretendCuda:
    """A device on which a call takes `ms` and a graph replays the calls that were captured.

    A replay after memory that it reads was freed is an error; `replayed` counts what each reads.
    """

    def __init__(self, ms):
        self.ms, self.clock, self.made, self.replayed = ms, 0.0, [], []
        self.capturing = False

    def call(self, name, work=lambda: None):
        def made():
            self.made.append((name, self.capturing))
            self.clock += 0 if self.capturing else self.ms
            return work()

        return made

    def patch(self, monkeypatch):
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.clock

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return end.at - self.at

        class Graph:
            def replay(self):
                freed = [ref for ref in self.memory.refs.values() if ref.expired()]
                assert not freed, f"illegal memory access: {len(freed)} operands were freed"
                device.replayed.append(len(self.memory.refs))
                device.clock += 0.5 * device.ms * self.calls  # no host in between

        @contextlib.contextmanager
        def graph(captured):
            before, device.capturing = len(device.made), True
            with Reads() as captured.memory:
                yield
            captured.calls, device.capturing = len(device.made) - before, False

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", graph)


def test_a_sample_is_the_mean_of_a_call(monkeypatch):
    device = PretendCuda(ms=0.25)
    device.patch(monkeypatch)
    calls = [device.call("a"), device.call("b")]
    eager = cuda_sampler(calls, graph=False)
    device.made.clear()
    assert eager() == pytest.approx(0.25)
    assert device.made == [("a", False), ("b", False)] * 4  # 2 ms
    graph = cuda_sampler(calls, graph=True)
    assert device.made[-8:] == [("a", True), ("b", True)] * 4
    device.made.clear()
    before = device.clock
    assert graph() == pytest.approx(0.125)
    assert device.made == []
    assert device.clock - before == 45  # 15 ms that do not count, then 30


def test_operands_live_as_long_as_the_graph_that_reads_them(monkeypatch):
    device = PretendCuda(ms=0.25)
    device.patch(monkeypatch)

    def make():
        x, w = torch.ones(2, 3), torch.ones(4, 3)
        sample = cuda_sampler([device.call("a", lambda: x @ w.t())], graph=True)
        return sample, [weakref.ref(x), weakref.ref(w)]

    sample, operands = make()
    gc.collect()
    assert all(ref() is not None for ref in operands)
    assert sample() == pytest.approx(0.125) and set(device.replayed) == {2}
    del sample
    gc.collect()
    assert all(ref() is None for ref in operands)  # and no longer


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_all_that_a_path_reads_outlives_its_preparation(path, monkeypatch):
    """Also what a path makes for itself, as FP8 its codes; eager samples would keep the calls."""
    device = PretendCuda(ms=0.25)
    device.patch(monkeypatch)

    def build(operands):
        return {what: device.call(what, call) for what, call in path.build(operands).items()}

    machine = Machine(
        torch.device("cpu"), "NVIDIA Pretend 1", 10**4, lambda: 10**9, float, 1.0, cuda_sampler
    )
    missed, modes = [], ("gemm_graph", "quant_gemm_graph")
    measured = replace(path, build=build)
    samples = measure_linear(
        machine, [measured], modes, (17, 48, 64), 2, lambda *note: missed.append(note), "tiny"
    )
    assert not missed and len(samples) == len(PATHS[path.name])
    assert min(device.replayed) >= 2  # of at least the activation and the weight


@pytest.mark.gpu
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="needs the GPU alone: without -n")
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_work_that_is_twice_as_long_takes_twice_as_long(graph):
    """`_sleep` counts clock ticks, so that two lengths of it must come out 1 : 2."""
    x = torch.zeros(1, device="cuda")

    def call(cycles):
        return lambda: (torch.cuda._sleep(cycles), x)[1]

    made = {cycles: cuda_sampler([call(cycles)] * 2, graph) for cycles in (10**6, 2 * 10**6)}
    medians = {key: percentiles(s).p50_ms for key, s in interleave(made, 5).items()}
    assert medians[2 * 10**6] / medians[10**6] == pytest.approx(2, rel=0.1)
    assert 0.3 < medians[10**6] < 3  # at 3.3 and 0.3 GHz
