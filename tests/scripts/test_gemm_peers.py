"""Absence of every kind; the peers' own calls need a GPU and their packages."""

import hashlib
import sys

import pytest
import torch

from dit8.eval.gemm_rows import PATHS
from dit8.scripts import gemm_peers
from dit8.scripts.gemm_paths import Declined, draw_operands
from dit8.scripts.gemm_peers import PEERS, SGL_LIBRARY, first_line

PEER = {path.name: path for path in PEERS}
CACHED = (
    gemm_peers._comfy,
    gemm_peers._sgl,
    gemm_peers._sdnq_modules,
    gemm_peers._torchao_modules,
)


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.delenv(SGL_LIBRARY, raising=False)
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def not_installed(monkeypatch):
    def version(name):
        raise gemm_peers.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gemm_peers.importlib.metadata, "version", version)


@pytest.mark.parametrize(
    "name, package", [("comfy_kitchen", "comfy-kitchen"), ("sdnq", "sdnq"), ("torchao", "torchao")]
)
def test_a_package_that_is_not_installed(not_installed, name, package):
    with pytest.raises(Declined, match=f"the package {package} is not installed"):
        PEER[name].version()


@pytest.mark.parametrize("name, module", [("sdnq", "sdnq"), ("torchao", "torchao")])
def test_a_package_that_does_not_load(monkeypatch, name, module):
    monkeypatch.setattr(gemm_peers.importlib.metadata, "version", lambda package: "1")
    for part in (module, "sdnq.kernels.triton_scaled_mm", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, part, None)
    with pytest.raises(Declined, match=f"{module} does not load: ModuleNotFoundError: import of"):
        PEER[name].version()


def test_comfy_without_its_library(monkeypatch):
    monkeypatch.setattr(gemm_peers, "_import", lambda module, package: object())
    with pytest.raises(Declined, match="installed without its CUDA library"):
        PEER["comfy_kitchen"].version()


def test_sgl_without_a_name():
    with pytest.raises(Declined, match="give --sgl-library or set DIT8_SGL_LIBRARY"):
        PEER["sgl_kernel"].version()


def test_sgl_with_a_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv(SGL_LIBRARY, str(tmp_path / "common_ops.abi3.so"))
    with pytest.raises(Declined, match="library common_ops.abi3.so is not at the place"):
        PEER["sgl_kernel"].version()


def test_sgl_with_a_file_that_is_no_library(monkeypatch, tmp_path):
    file = tmp_path / "common_ops.abi3.so"
    file.write_bytes(b"no library")
    monkeypatch.setenv(SGL_LIBRARY, str(file))
    with pytest.raises(Declined, match="its library does not load: OSError: "):
        PEER["sgl_kernel"].version()


def test_sgl_is_told_apart_by_its_content(monkeypatch, tmp_path):
    file = tmp_path / "common_ops.abi3.so"
    file.write_bytes(b"a library")
    monkeypatch.setattr(gemm_peers, "_sgl", lambda: file)
    digest = hashlib.sha256(b"a library").hexdigest()
    assert PEER["sgl_kernel"].version() == f"sgl-kernel sha256:{digest[:12]}"


def test_sgl_gets_a_column_major_weight_and_scales_as_columns(monkeypatch):
    """Its product takes (K, N) with K contiguous and fp32 scales (M, 1) and (N, 1)."""
    operands = draw_operands(20, 48, 64, torch.device("cpu"))
    seen = []

    def int8_scaled_mm(x, w, x_scale, w_scale, dtype, bias):
        seen.append((x.shape, w.shape, w.stride(), x_scale.shape, w_scale.shape, dtype, bias))
        return operands.x

    class Ops:
        pass

    Ops.int8_scaled_mm = staticmethod(int8_scaled_mm)
    monkeypatch.setattr(gemm_peers, "_sgl", lambda: None)
    monkeypatch.setattr(torch.ops, "sgl_kernel", Ops, raising=False)
    calls = PEER["sgl_kernel"].build(operands)
    assert tuple(calls) == PATHS["sgl_kernel"]
    for call in calls.values():
        call()
    expected = ((20, 64), (64, 48), (1, 64), (20, 1), (48, 1), torch.bfloat16, None)
    assert seen == [expected] * 2


def test_one_line_of_an_error():
    assert first_line(RuntimeError("a  b\nc")) == "RuntimeError: a b"
    assert first_line(AssertionError()) == "AssertionError"


@pytest.mark.gpu
@pytest.mark.parametrize("name", PEER)
def test_a_peer_that_is_here_computes_the_product(name):
    from dit8.scripts.gemm_checks import Checker

    path = PEER[name]
    try:
        path.version()
    except Declined as reason:
        pytest.skip(str(reason))
    operands = draw_operands(256, 512, 512, torch.device("cuda"))
    calls, checker = path.build(operands), Checker(operands, "tiny")
    assert tuple(calls) == PATHS[name]
    for what, call in calls.items():
        checker.check(path, what, call)
