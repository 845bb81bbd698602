import pytest
import torch
from diffusers import Ideogram4Pipeline

from dit8.models.training.flow import IMAGE_TOKENS, flow_loss, rope_table, sample, velocity


def text_of(toy, prompts):
    """The pipeline's own features, moved from left to right padding, their mask, its layout."""
    layout = toy.encode_prompt([p.caption for p in prompts], 16, 16, 80, torch.device("cpu"))
    features, _, _, indicator = layout
    real = indicator[:, :80] == 3
    lengths = real.sum(1)
    text = torch.zeros(len(prompts), int(lengths.max()), features.shape[-1])
    for row, length in enumerate(lengths.tolist()):
        text[row, :length] = features[row, 80 - length : 80]
    return text, torch.arange(text.shape[1]) < lengths[:, None], layout


@pytest.fixture
def case(toy, toy_prompts):
    """Noisy latents and times of three captions of different lengths."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(3, IMAGE_TOKENS, 64, generator=generator)
    return latents, torch.tensor([0.05, 0.5, 0.93]), *text_of(toy, toy_prompts[:3])


def relative(a, b):
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def test_conditional_velocity_equals_the_stock_forward(toy, case):
    latents, t, text, mask, (features, positions, segments, indicator) = case
    assert not mask.all()  # some caption is padded, or the mask is not tested
    stock = toy.transformer(
        hidden_states=torch.cat([torch.zeros(3, 80, 64), latents], dim=1),
        timestep=t,
        encoder_hidden_states=features,
        position_ids=positions,
        segment_ids=segments,
        indicator=indicator,
        return_dict=False,
    )[0][:, 80:]
    rope = rope_table(toy.transformer, text.shape[1], torch.device("cpu"))
    ours = velocity(toy.transformer, latents, t, rope, text, mask)
    # The same sums in another order over other padding: fp32 units (6e-8) through two blocks. The
    # cosines of positions above 65536 are equal, because the table is the stock one.
    assert relative(ours, stock) < 1e-5
    # each of text, mask, time and positions matters, by far more than that
    blank = velocity(toy.transformer, latents, t, rope, text * 0, mask)
    open_mask = velocity(toy.transformer, latents, t, rope, text, torch.ones_like(mask))
    still = velocity(toy.transformer, latents, t * 0, rope, text, mask)
    swapped = velocity(toy.transformer, latents.flip(1), t, rope, text, mask).flip(1)
    for other in (blank, open_mask, still, swapped):
        assert relative(other, stock) > 1e-4


@torch.no_grad()
def test_unconditional_velocity_equals_the_stock_forward(toy, case):
    latents, t, _, _, (features, positions, segments, indicator) = case
    branch = toy.unconditional_transformer
    stock = branch(
        hidden_states=latents,
        timestep=t,
        encoder_hidden_states=torch.zeros_like(features[:, 80:]),
        position_ids=positions[:, 80:],
        segment_ids=segments[:, 80:],
        indicator=indicator[:, 80:],
        return_dict=False,
    )[0]
    rope = rope_table(branch, 0, torch.device("cpu"))
    assert relative(velocity(branch, latents, t, rope), stock) < 1e-5


@torch.no_grad()
def test_padding_does_not_reach_the_picture(toy, case):
    latents, t, text, mask, _ = case
    rope = rope_table(toy.transformer, text.shape[1], torch.device("cpu"))
    plain = velocity(toy.transformer, latents, t, rope, text, mask)
    filled = torch.where(mask[..., None], text, torch.randn_like(text))
    assert torch.equal(velocity(toy.transformer, latents, t, rope, filled, mask), plain)


@torch.no_grad()
def test_loss_is_the_weighted_error_of_the_velocity(toy, case):
    data, t, text, mask, _ = case
    noise = torch.randn_like(data)
    weight = torch.randint(1, 4, (3, IMAGE_TOKENS)).float()
    rope = rope_table(toy.transformer, text.shape[1], torch.device("cpu"))
    total = 0.0
    for row in range(3):
        mixed = (1 - t[row]) * noise[row] + t[row] * data[row]
        predicted = velocity(
            toy.transformer, mixed[None], t[row : row + 1], rope, text[[row]], mask[[row]]
        )[0]
        error = ((predicted - (data[row] - noise[row])) ** 2).mean(-1)
        total += float((weight[row] * error).sum())
    loss = flow_loss(toy.transformer, data, noise, t, weight, rope, text, mask)
    assert float(loss) == pytest.approx(total / float(weight.sum()), rel=1e-5)  # fp32 sums


def test_a_straight_path_is_integrated_exactly(monkeypatch):
    # v = data - noise does not depend on t, so any number of Euler steps ends at the data
    data, noise = torch.randn(2, IMAGE_TOKENS, 4), torch.randn(2, IMAGE_TOKENS, 4)
    times = []

    def straight(model, x, t, *_):
        times.append(float(t[0]))
        assert torch.allclose(x, (1 - times[-1]) * noise + times[-1] * data, atol=1e-3)
        return data - noise

    monkeypatch.setattr("dit8.models.training.flow.velocity", straight)
    monkeypatch.setattr("dit8.models.training.flow.rope_table", lambda *_: None)
    ends = [sample(None, noise, torch.zeros(2, 3, 5), None, steps) for steps in (1, 7)]
    for end in ends:
        # the first sigma is clamped a little below 1: t starts at 1.2e-4, so that much is missing
        assert relative(end, data) < 5e-4
    assert times[1:] == sorted(times[1:]) and len(times) == 8


@torch.no_grad()
def test_sampling_equals_the_unguided_pipeline(toy, toy_prompts, case):
    latents, _, text, mask, _ = case
    stock = toy(
        prompt=[prompt.caption for prompt in toy_prompts[:3]],
        height=256,
        width=256,
        num_inference_steps=3,
        guidance_scale=1.0,  # the unconditional branch has weight 0
        guidance_schedule=None,
        std=1.75,
        max_sequence_length=80,
        latents=latents,
        output_type="latent",
    ).images
    assert isinstance(toy, Ideogram4Pipeline)
    ours = sample(toy.transformer, latents, text, mask, 3)
    # fp32 as above; the pipeline also rounds its times through 1000-fold timesteps
    assert relative(ours, stock) < 1e-4
    assert relative(ours, latents) > 1e-2
