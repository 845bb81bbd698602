import pytest
import torch

from dit8.kernels import backend
from dit8.kernels.backend import KernelError, backend_name


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
