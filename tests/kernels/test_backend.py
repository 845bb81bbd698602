import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dit8.kernels import backend
from dit8.kernels.backend import KernelError, backend_name
from dit8.kernels.int8_gemm import int8_gemm
from dit8.kernels.quant_rows import quant_rows


def pretend_gpu(monkeypatch, capability=(9, 0), triton=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(backend, "find_spec", lambda name: object() if triton else None)


def test_a_cpu_runs_the_reference():
    assert backend_name("cpu") == "cpu-reference"
    assert backend_name(torch.device("cpu")) == "cpu-reference"


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)])
def test_a_gpu_runs_triton(monkeypatch, capability):
    pretend_gpu(monkeypatch, capability)
    assert backend_name("cuda:0") == "triton"


def test_a_gpu_without_triton_is_an_error_not_a_fallback(monkeypatch):
    pretend_gpu(monkeypatch, triton=False)
    with pytest.raises(KernelError, match=r"kernels on cuda:0 need Triton.*not installed; install"):
        backend_name("cuda:0")


def test_an_old_gpu_is_an_error(monkeypatch):
    pretend_gpu(monkeypatch, (7, 5))
    with pytest.raises(KernelError, match=r"need compute capability 8.0 or newer, got 7.5 on cuda"):
        backend_name("cuda:0")


def test_an_absent_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KernelError, match=r"device cuda was asked for, but .* sees no CUDA GPU"):
        backend_name("cuda")


def test_another_device_type_is_an_error():
    with pytest.raises(KernelError, match=r"device must be cpu or cuda, got mps; .*hardware=cpu"):
        backend_name("mps")


def test_on_a_cpu_the_dispatcher_is_passed_by_only_where_it_does_nothing(monkeypatch):
    """int8_gemm and quant_rows give the same bytes either way: what a mode sees tells the way."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 64, generator=generator) for n in (5, 8))
    wq, ws = quant_rows(w)

    def product():
        codes, scale = quant_rows(x)
        return int8_gemm(codes, scale, wq, ws.squeeze(1))

    with torch.no_grad():
        with monkeypatch.context() as without_ops:
            without_ops.setattr("dit8.kernels.int8_gemm._int8_gemm", None)
            without_ops.setattr("dit8.kernels.quant_rows._quant_rows", None)
            direct = product()
        with Ops() as seen:
            watched = product()
        with FakeTensorMode() as mode:
            wq, ws = mode.from_tensor(wq), mode.from_tensor(ws)
            codes, scale = quant_rows(mode.from_tensor(x))
            assert int8_gemm(codes, scale, wq, ws.squeeze(1)).shape == (5, 8)
    assert torch.equal(direct, watched)
    assert {"dit8::quant_rows", "dit8::int8_gemm"} <= seen.names
    with pytest.raises(RuntimeError, match="autograd"):  # there is no backward, and it is said
        quant_rows(x.requires_grad_())[1].sum().backward()


class Ops(TorchDispatchMode):
    """Keeps the names of the ops that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))
