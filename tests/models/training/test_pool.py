import numpy as np
import pytest
import torch

import dit8.models.training.pool as pool_module
from dit8.models.mini_tokenizer import build_tokenizer
from dit8.models.pipeline import encode_chat
from dit8.models.poster_drawing import draw_poster
from dit8.models.posters import GRID, TIERS, caption_json, make_poster
from dit8.models.training.pool import (
    TEXT_WEIGHT,
    Pool,
    PoolFiller,
    decode_tokens,
    encode_latents,
    encode_tokens,
    to_signal,
)

COUNTS = {"slot": 5, "easy": 8, "medium": 3, "hard": 10}


def pool_of(pixels=None, counts=(2, 5, 10, 3), lengths=None):
    sizes = torch.tensor(counts)
    total = int(sizes.sum())
    return Pool(
        first=sizes.cumsum(0) - sizes,
        count=sizes,
        token_ids=torch.zeros(total, 6, dtype=torch.int16),
        lengths=torch.ones(total, dtype=torch.int64) if lengths is None else lengths,
        weight=torch.ones(total, 256, dtype=torch.uint8),
        pixels=pixels,
    )


@pytest.fixture(scope="module")
def posters():
    """Four posters, (4, 256, 256, 3) uint8."""
    drawn = [draw_poster(make_poster(tier, 1, held_out=False)) for tier in TIERS]
    return torch.from_numpy(np.stack([np.asarray(image) for image in drawn]))


def test_draw_honours_shares_and_ranges():
    pool = pool_of()
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2])
    index = pool.draw(shares, 20_000)
    tier = torch.bucketize(index, pool.first, right=True) - 1
    drawn = torch.bincount(tier, minlength=4) / len(index)
    # standard error of a share is at most 0.0036: five of them
    assert torch.allclose(drawn, shares, atol=0.018) and drawn[1] == 0
    within = torch.bincount(index, minlength=20)
    assert len(within) == 20 and (within[:2] > 0).all() and (within[7:] > 0).all()
    # uniform within a tier: 600 expected of each of the ten, standard deviation 24
    assert (within[7:17] - 600).abs().max() < 130


def test_draw_keeps_to_what_is_ready():
    index = pool_of().draw(torch.full((4,), 0.25), 2000, ready=torch.tensor([1, 2, 4, 3]))
    assert set(index.tolist()) == {0, 2, 3, 7, 8, 9, 10, 17, 18, 19}


def test_text_is_padded_on_the_right_with_zeros():
    pool = pool_of(counts=(3, 0, 0, 0), lengths=torch.tensor([2, 6, 1]))
    pool.features = torch.arange(1, 10.0)[:, None].repeat(1, 2)
    pool.offset = torch.tensor([0, 2, 8])
    text, mask = pool.text(torch.tensor([2, 0, 1]))
    assert text[..., 0].tolist() == [
        [9, 0, 0, 0, 0, 0],
        [1, 2, 0, 0, 0, 0],
        [3, 4, 5, 6, 7, 8],
    ]
    assert torch.equal(mask, text[..., 0] > 0)


def test_signal_spans_minus_one_to_one():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 1, 1, 3)
    assert torch.allclose(to_signal(pixels).flatten(), torch.tensor([-1.0, 1.0, -0.6]))
    assert to_signal(torch.zeros(2, 8, 4, 3, dtype=torch.uint8)).shape == (2, 3, 8, 4)


@torch.no_grad()
def test_tokens_hold_patches_row_first_channel_last(toy, posters):
    tokens = encode_tokens(toy.vae, posters[:2])
    z = toy.vae.encode(to_signal(posters[:2])).latent_dist.mode()  # (2, 16, 32, 32)
    assert tokens.shape == (2, 256, 64)
    for image, i, j, down, right, channel in ((0, 0, 1, 0, 1, 3), (1, 7, 2, 1, 0, 15)):
        place = (2 * down + right) * 16 + channel
        expected = z[image, channel, 2 * i + down, 2 * j + right]
        assert tokens[image, 16 * i + j, place] == expected


def pipeline_pictures(toy, latents, monkeypatch):
    """Let the pipeline decode given latents: its pictures (B, H, W, 3) and what its VAE got."""
    got = []
    decode = toy.vae.decode

    def watch(z, **options):
        got.append(z)
        return decode(z, **options)

    with monkeypatch.context() as patch:
        patch.setattr(toy.vae, "decode", watch)
        pictures = toy(
            prompt=["{}"] * len(latents),
            height=256,
            width=256,
            num_inference_steps=1,
            guidance_schedule=[1.0],
            max_sequence_length=40,
            callback_on_step_end=lambda *_: {"latents": latents},
            output_type="np",
        ).images
    return pictures, got[0]


def test_decoding_equals_the_pipelines(toy, monkeypatch):
    latents = 3 * torch.randn(2, 256, 64)
    stock, _ = pipeline_pictures(toy, latents, monkeypatch)
    with torch.no_grad():
        ours = decode_tokens(toy.vae, latents).numpy()
    assert ours.shape == (2, 256, 256, 3) and ours.dtype == np.uint8
    assert stock.std() > 0.05  # a grey picture would hide the order
    # A value that lies on the middle between two codes may go either way.
    difference = np.abs(ours.astype(int) - np.rint(255 * stock).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_the_pipeline_undoes_the_encoding(toy, posters, monkeypatch):
    tokens = encode_tokens(toy.vae, posters).detach()
    std = (toy.vae.bn.running_var + toy.vae.config.batch_norm_eps).sqrt()
    normalized = (tokens - toy.vae.bn.running_mean) / std
    _, z = pipeline_pictures(toy, normalized, monkeypatch)
    with torch.no_grad():
        expected = toy.vae.encode(to_signal(posters)).latent_dist.mode()
    # one division and one multiplication by the same fp32 numbers
    assert torch.allclose(z, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def vae(toy):
    """A VAE of its own, because its statistics will change."""
    copy = type(toy.vae).from_config(toy.vae.config).eval()
    copy.load_state_dict(toy.vae.state_dict())
    return copy


def test_latents_are_normalized_by_measured_statistics(vae, posters):
    pool = pool_of(posters, counts=(1, 1, 1, 1))
    tokens = encode_tokens(vae, posters).detach().double().reshape(-1, 64)
    encode_latents(pool, vae, batch=3)
    assert pool.pixels is None and pool.latents.dtype == torch.bfloat16
    # population variance in fp64, stored in fp32
    assert torch.allclose(vae.bn.running_mean.double(), tokens.mean(0), rtol=1e-5, atol=1e-6)
    variance = tokens.var(0, correction=0)
    assert torch.allclose(vae.bn.running_var.double(), variance, rtol=1e-4, atol=1e-7)
    std = (variance + vae.config.batch_norm_eps).sqrt()
    expected = ((tokens - tokens.mean(0)) / std).view(4, 256, 64)
    # bf16 keeps 8 bits
    assert (pool.latents.double() - expected).norm() / expected.norm() < 2**-8


def test_statistics_can_be_kept(vae, posters, toy):
    pool = pool_of(posters, counts=(1, 1, 1, 1))
    encode_latents(pool, vae, batch=4, keep_statistics=True)
    assert torch.equal(vae.bn.running_mean, toy.vae.bn.running_mean)
    assert torch.equal(vae.bn.running_var, toy.vae.bn.running_var)
    tokens = encode_tokens(vae, posters).detach()
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    expected = (tokens - vae.bn.running_mean) / std
    assert (pool.latents.float() - expected).norm() / expected.norm() < 2**-8


def test_a_worker_fills_the_pool_with_the_posters_of_its_seed(monkeypatch):
    monkeypatch.setattr(pool_module, "BLOCK", 2)
    filler = PoolFiller(COUNTS, seed=3, workers=1, device="cpu")
    pool = filler.pool
    while filler.ready < filler.total:
        filler.collect()
        for first, ready in zip(pool.first.tolist(), filler.drawn().tolist(), strict=True):
            assert (pool.lengths[first : first + ready] > 0).all()
    assert filler.wait() is pool and torch.equal(filler.drawn(), pool.count)
    assert pool.count.tolist() == list(COUNTS.values())
    tokenizer = build_tokenizer()
    for first, (tier, count) in zip(pool.first.tolist(), COUNTS.items(), strict=True):
        for i in range(count):
            poster = make_poster(tier, 3 * 10**9 + i, held_out=False)
            tokens = encode_chat(tokenizer, caption_json(poster))
            row = first + i
            assert np.array_equal(pool.pixels[row].numpy(), np.asarray(draw_poster(poster)))
            assert pool.token_ids[row, : len(tokens)].tolist() == tokens
            assert not pool.token_ids[row, len(tokens) :].any()
            assert pool.lengths[row] == len(tokens)
            assert torch.equal(pool.weight[row], weight_by_pixel(poster))


def weight_by_pixel(poster):
    """TEXT_WEIGHT where a 16 x 16 px token shares area with a text box, found by painting it."""
    fine = np.zeros((GRID * 16, GRID * 16), dtype=bool)  # a cell is 16, a token 40 fine pixels
    for element in poster.elements:
        if element.kind == "text":
            y0, x0, y1, x1 = (16 * cell for cell in element.box)
            fine[y0:y1, x0:x1] = True
    touched = fine.reshape(16, 40, 16, 40).any(axis=(1, 3)).reshape(-1)
    return torch.from_numpy(np.where(touched, TEXT_WEIGHT, 1).astype(np.uint8))


def test_a_worker_that_dies_is_reported(monkeypatch):
    monkeypatch.setattr(pool_module, "BLOCK", 2)
    filler = PoolFiller({**COUNTS, "hard": 0}, seed=3, workers=1, device="cpu", width=5)
    with pytest.raises(RuntimeError, match="a drawing worker died with exit code 1"):
        filler.wait()
    filler.stop()
