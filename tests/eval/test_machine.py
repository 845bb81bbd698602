import subprocess
import sys
from types import SimpleNamespace

import pytest

from dit8.eval import doctor, provenance
from dit8.eval.doctor import Row, gpu_rows, machine_rows, torch_rows
from dit8.eval.provenance import cpu_model, int8_flags, memory_bytes, query_gpus

X86 = """processor\t: 0
model name\t: Some CPU 9000
flags\t\t: fpu avx2 avx512_vnni
processor\t: 1
model name\t: Some CPU 9000
flags\t\t: fpu avx2 avx_vnni
"""
MEMINFO = (
    "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nHugePages: 0\n"
)


def test_cpu_model_is_read_from_cpuinfo():
    assert cpu_model(X86) == "Some CPU 9000"
    assert cpu_model("")  # without such a line, whatever Python knows


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (X86, ["avx512_vnni", "avx_vnni"]),
        ("Features\t: fp asimddp\n", ["asimddp"]),
        ("flags\t: avx2 my_avx_vnni_like\n", []),  # a flag counts whole
        ("model name\t: avx_vnni\n", []),
        ("", []),
    ],
)
def test_int8_flags(cpuinfo, expected):
    assert int8_flags(cpuinfo) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((), (1000 * 1024, 600 * 1024)),
        (("max\n", ""), (1000 * 1024, 600 * 1024)),
        ((str(800 * 1024),), (800 * 1024, 600 * 1024)),
        ((str(200 * 1024) + "\n",), (200 * 1024, 200 * 1024)),
        ((str(2**63 - 4096),), (1000 * 1024, 600 * 1024)),  # version 1's way to say no limit
    ],
)
def test_memory_respects_a_containers_limit(limits, expected):
    assert memory_bytes(MEMINFO, *limits) == expected


def test_memory_without_proc_asks_the_system():
    total, available = memory_bytes("")
    assert total == available > 2**20


def test_gpu_rows_name_every_gpu():
    answer = "NVIDIA X, PCIe, 9.0, 143771, 570.1\nNVIDIA Y, 8.6, [N/A], 570.1\n"
    assert gpu_rows(answer) == [
        Row(
            "machine",
            "GPU 0",
            True,
            "NVIDIA X, PCIe, compute capability 9.0, 150.8 GB, driver 570.1",
        ),
        Row("machine", "GPU 1", True, "NVIDIA Y, compute capability 8.6, memory n/a, driver 570.1"),
    ]


@pytest.mark.parametrize("answer", [None, "", "No devices were found\n"])
def test_no_gpu_is_a_row_too(answer):
    (row,) = gpu_rows(answer)
    assert (row.name, row.ok) == ("GPU", False)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 3),
        subprocess.CalledProcessError(9, "nvidia-smi"),
    ],
)
def test_a_failing_nvidia_smi_is_no_gpu(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(provenance.subprocess, "run", fail)
    assert query_gpus() is None


def test_a_hanging_nvidia_smi_is_given_up(monkeypatch, tmp_path):
    slow = tmp_path / "nvidia-smi"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert query_gpus(seconds=0.2) is None


def test_machine_rows_describe_this_machine(tmp_path):
    rows = {row.name: row for row in machine_rows(tmp_path)}
    assert {"system", "processor", "int8 instructions", "memory", "disk"} <= set(rows)
    assert "usable cores" in rows["processor"].detail
    assert rows["disk"].detail.endswith("GB")


def fake_torch(monkeypatch, *, sees: bool, capability=(9, 0)):
    """Let torch claim a GPU; no call reaches CUDA."""
    import torch

    cuda = SimpleNamespace(
        is_available=lambda: sees,
        device_count=lambda: 2,
        get_device_capability=lambda device: capability,
    )
    monkeypatch.setattr(torch, "cuda", cuda)


def triton_row() -> Row:
    return {row.name: row for row in torch_rows()}["Triton kernels"]


def test_without_a_gpu_the_references_run(monkeypatch):
    fake_torch(monkeypatch, sees=False)
    assert not triton_row().ok
    assert "references on the processor" in triton_row().detail


def test_with_a_gpu_and_a_compiler_triton_is_usable(monkeypatch):
    fake_torch(monkeypatch, sees=True)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    assert triton_row() == Row("machine", "Triton kernels", True, "usable")
    assert torch_rows()[0].detail.endswith(", 2 GPUs")


def test_without_a_compiler_it_is_not(monkeypatch):
    fake_torch(monkeypatch, sees=True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert not triton_row().ok
    assert "needs a C compiler" in triton_row().detail


def test_an_old_gpu_gives_the_kernels_own_reason(monkeypatch):
    fake_torch(monkeypatch, sees=True, capability=(7, 5))
    assert not triton_row().ok
    assert "compute capability 8.0 or newer, got 7.5" in triton_row().detail


def test_a_broken_torch_is_one_row(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (row,) = torch_rows()
    assert (row.name, row.ok) == ("torch", False)
    assert "cannot be imported" in row.detail
