import pytest
import torch

from dit8.quant.errors import UserError
from dit8.scripts import bench_producers as module
from dit8.scripts import producer_cases
from dit8.scripts.bench_producers import LAYOUT, choose_cases
from dit8.scripts.producer_cases import DECODERS, FAMILIES

pytest.importorskip("triton", reason="Triton has no wheel for this platform")


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_without_a_gpu_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="^the kernels are timed on an NVIDIA GPU, got torch"):
        choose_cases([])


def test_an_unknown_kernel_is_an_error(with_gpu):
    with pytest.raises(UserError, match=r"among copy, quant_rows, .*, got 'rope'; correct"):
        choose_cases(["rope"])


def test_the_copy_is_always_measured(with_gpu):
    chosen = choose_cases(["swiglu_quant"])
    assert {case.kernel for case in chosen} == {"copy", "swiglu_quant"}
    assert {case.variant for case in chosen} >= {"plain", "smooth", "rotated"}


def test_every_spread_covers_its_row_without_much_waste(with_gpu):
    for case in choose_cases([]):
        if case.kernel in ("copy", "qk_norm_rope_", "decode"):
            continue
        assert len(case.spreads) >= 6
        for config in case.spreads:
            columns = -(-case.k // config.block_k) * config.block_k
            assert case.k <= columns < 1.5 * case.k


def test_rows_of_the_table(monkeypatch):
    (case,) = producer_cases.copy_cases()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: FakeDevice())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**10, 10**11))
    monkeypatch.setattr(producer_cases, "_rows", lambda m, k: torch.ones(m, k).bfloat16())
    monkeypatch.setattr(module, "cuda_sampler", lambda calls, graph: lambda: 0.5)
    (row,) = module.measure(case, 4, True, 3)
    assert set(row) == set(LAYOUT.key + LAYOUT.values) - {"run_id", "gpu", "versions", "commit"}
    assert row["p50_ms"] == 0.5
    assert row["gb_per_s"] == pytest.approx(4 * 12288 * 4 / 0.5e-3 / 1e9)


class FakeDevice:
    L2_cache_size = 1 << 20


def test_every_kernel_of_the_engine_is_there(with_gpu):
    kernels = {case.kernel for case in choose_cases([])}
    assert kernels == {
        *("copy", "quant_rows", "modulated_norm", "modulated_norm_quant", "gated_residual"),
        *("gated_residual_norm", "gated_residual_norm_quant", "swiglu", "swiglu_quant"),
        *("qk_norm_rope_", "decode"),
    }
    assert len(FAMILIES) == 6


def test_every_decoder_is_timed_beside_its_torch(with_gpu):
    variants = {case.variant for case in choose_cases(["decode"])} - {"bf16"}
    assert variants == {f"{name}{end}" for name in DECODERS for end in ("", "-torch")}


@pytest.mark.gpu
def test_decoders_are_timed():
    for case in producer_cases.decode_cases():
        (row,) = module.measure(case, 64, False, 3)
        assert row["p50_ms"] > 0
