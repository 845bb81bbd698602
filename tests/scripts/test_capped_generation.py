import subprocess

import pytest
import torch

from dit8.models.engine import forward
from dit8.quant.errors import UserError
from dit8.scripts import capped_generation
from dit8.scripts.capped_generation import (
    Gauge,
    build_text_encoder,
    build_vae,
    generate_capped,
    share_of,
    used_bytes,
)

CPU, META = torch.device("cpu"), torch.device("meta")


class FakeGauge:
    """Reads what it is told: reserved bytes of each stage, context before and after."""

    device, total_bytes = CPU, 140 * 10**9

    def __init__(self, *reserved):
        self.reserved, self.context = iter(reserved), iter((4 * 10**8, 6 * 10**8))
        self.peaks = {}

    def context_bytes(self):
        return next(self.context)

    def begin(self):
        pass

    def end(self, stage):
        self.peaks[stage] = next(self.reserved)


@pytest.fixture
def shares(monkeypatch):
    shares = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    return shares


def test_the_peak_is_of_all_stages_with_the_context_at_the_end(shares):
    gauge = FakeGauge(17 * 10**9, 22 * 10**9, 13 * 10**9)
    found = generate_capped(gauge, 2, 7, 64, 3, 24.0, full=False)
    assert list(found["stage_bytes"]) == ["text encoder", "denoising", "decoding"]
    assert found["peak_bytes_capped"] == 22_600_000_000 and found["fits"]
    assert found["size_px"] == 64 and found["steps"] == 3
    # the allocator may have the cap less the context, and everything again afterwards
    assert shares == [pytest.approx(23.6 / 140), 1.0]


def test_a_peak_over_the_cap_does_not_fit(shares):
    gauge = FakeGauge(17 * 10**9, int(23.5e9), 13 * 10**9)
    assert not generate_capped(gauge, 2, 7, 64, 3, 24.0, full=False)["fits"]


def full(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("where", ["here", "in the engine"])
def test_out_of_memory_names_the_stages_that_fitted(shares, monkeypatch, where):
    if where == "here":
        monkeypatch.setattr(capped_generation.Engine, "_prepare", full)
    else:  # which makes a sentence of its own
        monkeypatch.setattr(forward, "tabulate_modulation", full)
    with pytest.raises(UserError, match="fit into 24 GB, got out of memory after .* text encoder;"):
        generate_capped(FakeGauge(1, 2, 3), 2, 7, 64, 3, 24.0, full=False)
    assert shares[-1] == 1.0


def test_other_mistakes_keep_their_sentence(shares, monkeypatch):
    def broken(*_):
        raise UserError("something else")

    monkeypatch.setattr(capped_generation.Engine, "_prepare", broken)
    with pytest.raises(UserError, match="^something else$"):
        generate_capped(FakeGauge(1, 2, 3), 2, 7, 64, 3, 24.0, full=False)


def test_a_gauge_separates_the_allocator_the_context_and_others(monkeypatch):
    gb = 10**9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * gb, 140 * gb))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * gb)
    gauge = Gauge(CPU, others_bytes=9 * gb)
    assert gauge.context_bytes() == 1 * gb and gauge.total_bytes == 140 * gb
    resets = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 35 * gb)
    gauge.end("denoising")
    assert gauge.peaks == {"denoising": 35 * gb} and resets == [CPU]


@pytest.mark.parametrize("cap", [0.3e9, 150e9])
def test_a_cap_that_makes_no_sense_is_refused(cap):
    with pytest.raises(UserError, match="cap-gb must lie between the context's 0.50 GB and"):
        share_of(cap, 500_000_000, 140 * 10**9)


def test_the_sizes_are_the_real_ones():
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    encoder = build_text_encoder(META)
    assert count(encoder) + 151936 * 4096 == pytest.approx(8.77e9, rel=1e-3)  # its model card
    assert encoder.dtype == torch.bfloat16
    assert len(encoder.language_model.layers) == 36
    vae = build_vae(META)
    assert vae.dtype == torch.bfloat16 and vae.config.latent_channels == 32  # 128 / (2 x 2)


def test_the_driver_is_asked_for_what_others_use(monkeypatch):
    def answer(query, **_):
        assert "--query-gpu=memory.used" in query
        return subprocess.CompletedProcess(query, 0, stdout="512\n")

    monkeypatch.setattr(subprocess, "run", answer)
    assert used_bytes() == 512 << 20
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout="N/A")
    )
    with pytest.raises(UserError, match="a cap needs nvidia-smi"):
        used_bytes()


@pytest.mark.gpu
def test_a_toy_fits_on_a_real_card():
    gauge = Gauge(torch.device("cuda"), used_bytes())
    found = generate_capped(gauge, 2, 7, 64, 3, 24.0, full=False)
    stages = found["stage_bytes"]
    assert found["fits"] and list(stages) == ["text encoder", "denoising", "decoding"]
    assert all(count > 0 for count in stages.values())
