from types import SimpleNamespace

import pytest
import torch

from dit8.models.training import vae as vae_module
from dit8.models.training.pool import Pool, to_signal
from dit8.models.training.vae import EDGE_WEIGHT, KL_WEIGHT, reconstruct, train_vae, vae_loss


def fake_vae(decode, kl=0.0):
    """A VAE whose latent is the picture itself."""

    def encode(x):
        posterior = SimpleNamespace(sample=lambda: x, kl=lambda: torch.full((len(x),), kl))
        return SimpleNamespace(latent_dist=posterior)

    return SimpleNamespace(encode=encode, decode=lambda z: SimpleNamespace(sample=decode(z)))


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(vae_module, "LATENT_NOISE", 0.0)


def test_a_perfect_reconstruction_costs_only_its_divergence(quiet):
    x, ones = torch.randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    assert vae_loss(fake_vae(lambda z: z), x, ones) == 0
    loss = vae_loss(fake_vae(lambda z: z, kl=384.0), x, ones)
    assert float(loss) == pytest.approx(KL_WEIGHT * 384 / (3 * 8 * 8))


def test_errors_are_weighted_and_edges_count(quiet):
    x = torch.zeros(1, 3, 8, 8)
    weight = torch.ones(1, 1, 8, 8)
    weight[..., 0] = 3
    # a constant shift has no edges: |d| + d^2 by the mean weight 1.25
    shifted = vae_loss(fake_vae(lambda z: z + 0.5), x, weight)
    assert float(shifted) == pytest.approx((0.5 + 0.25) * 1.25)
    column = torch.zeros(8)
    column[0] = 0.5  # one column of 8 is wrong, and makes 1 edge of 7 across
    wrong = vae_loss(fake_vae(lambda z: z + column), x, weight)
    assert float(wrong) == pytest.approx(0.75 * 3 / 8 + EDGE_WEIGHT * 0.5 / 7)


def test_noise_is_added_before_decoding():
    seen = []

    def decode(z):
        seen.append(z)
        return z

    x = torch.zeros(1, 3, 64, 64)
    vae_loss(fake_vae(decode), x, torch.ones(1, 1, 64, 64))
    assert float(seen[0].std()) == pytest.approx(vae_module.LATENT_NOISE, rel=0.05)


@pytest.fixture
def vae(toy):
    copy = type(toy.vae).from_config(toy.vae.config)
    copy.load_state_dict(toy.vae.state_dict())
    return copy


def test_training_lowers_the_error_and_leaves_the_vae_ready(vae, clock):
    clock(vae_module)
    pixels = torch.randint(0, 256, (2, 1, 1, 3), dtype=torch.uint8).expand(2, 256, 256, 3)
    pool = Pool(
        first=torch.tensor([0]),
        count=torch.tensor([2]),
        token_ids=torch.zeros(2, 4, dtype=torch.int16),
        lengths=torch.ones(2, dtype=torch.int64),
        weight=torch.ones(2, 256, dtype=torch.uint8),
        pixels=pixels.contiguous(),
    )
    drawn = iter([0, 2])  # empty at first: training waits for the first poster
    filler = SimpleNamespace(
        pool=pool,
        collect=lambda: None,
        drawn=lambda: torch.tensor([next(drawn, 2)]),
    )
    rows = []

    def distance():
        with torch.no_grad():
            return float((reconstruct(vae, pool.pixels).float() - pool.pixels).abs().mean())

    before = distance()
    steps = train_vae(
        vae,
        filler,
        seconds=16,
        batch=2,
        lr=3e-2,
        shares=torch.ones(1),
        log=lambda **row: rows.append(row),
        compile_model=False,
    )
    assert steps == 15 and not vae.training
    assert rows[0]["step"] == 1 and rows[0]["samples"] == 2
    assert rows[0]["lr"] == pytest.approx(3e-2 / 100)  # warm-up
    assert distance() < before


@torch.no_grad()
def test_reconstruction_goes_through_the_posterior_mean(toy):
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    again = reconstruct(toy.vae, pixels)
    assert torch.equal(again, reconstruct(toy.vae, pixels))  # a sample would differ
    mean = toy.vae.encode(to_signal(pixels)).latent_dist.mean
    expected = toy.vae.decode(mean).sample.permute(0, 2, 3, 1)
    expected = (255 * (expected.clamp(-1, 1) + 1) / 2).round()
    assert (again.float() - expected).abs().max() <= 1  # ties between two codes
    assert again.shape == pixels.shape and again.dtype == torch.uint8
