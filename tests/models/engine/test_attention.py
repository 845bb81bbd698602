import warnings

import pytest
import torch

from dit8.models.engine import attention
from dit8.models.engine.attention import (
    BACKENDS,
    attend,
    check_backend,
    choose_attention,
    deviation,
    fastest,
    measure,
)
from dit8.quant.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = (1, 300, 2, 64, torch.float32)


def by_hand(q, k, v):
    """softmax(q k^T / sqrt(d)) v in fp64, head by head."""
    out = torch.empty_like(q, dtype=torch.float64)
    for sample in range(q.shape[0]):
        for head in range(q.shape[2]):
            a, b, c = (t[sample, :, head].double() for t in (q, k, v))
            scores = a @ b.t() / a.shape[1] ** 0.5
            out[sample, :, head] = scores.softmax(dim=1) @ c
    return out.flatten(2)


@pytest.mark.parametrize("backend", [None, "math"])
def test_attention_stays_within_sample_and_head(backend):
    qkv = torch.randn(2, 7, 3, 4, 16)  # views into one buffer, as the engine has them
    out = attend(*qkv.unbind(2), backend)
    exact = by_hand(*qkv.unbind(2))
    assert out.shape == (2, 7, 64) and out.dtype == torch.float32
    assert (out - exact).norm() / exact.norm() < 1e-6  # fp32 sums of 16 and 7 values


def test_the_smallest_time_wins_and_none_is_an_error():
    assert fastest({"cudnn": 2.0, "flash": 1.0, "efficient": 3.0}) == "flash"
    assert fastest({"math": 1.0, "flash": 1.0}) == "flash"
    with pytest.raises(UserError, match="one of PyTorch's attention kernels must run on this GPU"):
        fastest({})


def test_unknown_backends_are_refused():
    for name in BACKENDS:
        check_backend(name)
    with pytest.raises(UserError, match="attention must be one of cudnn, flash, eff.*, got 'sage'"):
        check_backend("sage")


def test_a_cpu_measures_nothing(monkeypatch):
    monkeypatch.setattr(attention, "measure", None)
    assert choose_attention(*SHAPE, CPU) is None


@pytest.fixture
def pretend(monkeypatch):
    """Stand in for a GPU: chosen deviations and times, and a log of what was timed."""

    def run(deviations, times):
        timed = []

        def deviate(name, *_):
            if isinstance(deviations[name], Exception):
                raise deviations[name]
            return deviations[name]

        def milliseconds(name, parts):
            timed.append((name, parts))
            return times[name]

        monkeypatch.setattr(attention, "deviation", deviate)
        monkeypatch.setattr(attention, "_milliseconds", milliseconds)
        monkeypatch.setattr(attention, "_operands", lambda *arguments: arguments)
        return timed

    return run


def test_wrong_and_impossible_kernels_are_left_out(pretend):
    no_kernel = RuntimeError("No available kernel. Aborting execution.")
    deviations = {"cudnn": 1.4, "flash": no_kernel, "efficient": 1e-6, "math": 0.0}
    timed = pretend(deviations, {"efficient": 3.0})
    assert measure(*SHAPE, CPU) == {"efficient": 3.0}
    assert timed == [("efficient", (*SHAPE, CPU))]


def test_a_kernel_declines_quietly(pretend, monkeypatch):
    timed = pretend(dict.fromkeys(BACKENDS, 0.0), dict.fromkeys(BACKENDS, 1.0))

    def decline(name, *_):
        warnings.warn(f"{name} is not used because head_dim is odd", stacklevel=2)
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(attention, "deviation", decline)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(*SHAPE, CPU) == {} and not timed


def test_the_unfused_kernel_is_the_last_resort(pretend):
    pretend(dict.fromkeys(("cudnn", "flash", "efficient"), 1.4) | {"math": 0.0}, {"math": 9.0})
    assert measure(*SHAPE, CPU) == {"math": 9.0}


@pytest.mark.parametrize(
    ("dtype", "right", "wrong"),
    [(torch.bfloat16, 1.5e-2, 1.6e-2), (torch.float16, 1.9e-3, 2e-3), (torch.float32, 9e-6, 2e-5)],
)
def test_the_limit_follows_the_dtype(pretend, dtype, right, wrong):
    pretend({"cudnn": wrong, "flash": right, "efficient": wrong, "math": 0.0}, {"flash": 1.0})
    assert measure(1, 300, 2, 64, dtype, CPU) == {"flash": 1.0}


def test_a_full_gpu_is_no_missing_kernel(pretend):
    pretend(dict.fromkeys(BACKENDS, torch.OutOfMemoryError("CUDA out of memory.")), {})
    with pytest.raises(torch.OutOfMemoryError):
        measure(*SHAPE, CPU)


def test_a_shape_is_measured_once(monkeypatch):
    measured = []

    def record(*arguments):
        measured.append(arguments)
        return {"cudnn": 1.0, "flash": 2.0}

    monkeypatch.setattr(attention, "measure", record)
    monkeypatch.setattr(attention, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    for length in (4396, 4400, 4608):  # one step of 256
        assert choose_attention(1, length, 18, 256, torch.bfloat16, CUDA) == "cudnn"
    assert measured == [(1, 4608, 18, 256, torch.bfloat16, CUDA)]
    choose_attention(1, 4609, 18, 256, torch.bfloat16, CUDA)
    choose_attention(2, 4608, 18, 256, torch.bfloat16, CUDA)
    choose_attention(1, 4608, 18, 256, torch.float16, CUDA)
    assert len(measured) == 4


def test_deviation_tells_right_from_wrong(monkeypatch):
    assert deviation("math", 2, 64, torch.float32, CPU) < 1e-6
    assert 1e-3 < deviation("math", 2, 64, torch.bfloat16, CPU) < 2**-7
    genuine = attention.attend

    def shifted(q, k, v, backend):
        return genuine(q, k, v.roll(1, dims=1) if q.dtype == torch.float32 else v, backend)

    monkeypatch.setattr(attention, "attend", shifted)
    assert deviation("math", 2, 64, torch.float32, CPU) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("length", [300, 4396])
def test_a_gpu_has_a_fast_kernel(length, head_dim):
    device = torch.device("cuda", 0)
    times = measure(1, length, 4, head_dim, torch.bfloat16, device)
    assert times and min(times.values()) > 0
    assert choose_attention(1, length, 4, head_dim, torch.bfloat16, device) in BACKENDS
    qkv = torch.randn(1, length, 3, 4, head_dim, device=device, dtype=torch.bfloat16)
    exact = by_hand(*qkv.cpu().unbind(2))
    for name in times:
        out = attend(*qkv.unbind(2), name).cpu().double()
        assert (out - exact).norm() / exact.norm() < 2**-6
