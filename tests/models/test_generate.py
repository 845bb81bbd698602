import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dit8.models.generate as generation
from dit8.models.generate import (
    METADATA_KEY,
    check_length,
    denoise,
    find_sample,
    generate,
    sample_paths,
)
from dit8.models.types import Prompt, noise_for
from dit8.quant.errors import UserError


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def contents(folder, prompts):
    """Pixels and latents files as bytes, by prompt; the PNG itself also holds a time."""
    paths = [sample_paths(prompt, folder) for prompt in prompts]
    return [(pixels(image).tobytes(), latents.read_bytes()) for image, latents in paths]


@pytest.fixture
def draw(toy, toy_prompts, small_sampler):
    def run(folder, **changes):
        options = {"batch": 2, "metadata": {"variant": "test"}} | changes
        return generate(toy, toy_prompts, small_sampler, folder, **options)

    return run


@pytest.fixture(scope="module")
def unbroken(toy, toy_prompts, small_sampler, tmp_path_factory):
    """A run made in one go: folder, samples, timing; read only."""
    folder = tmp_path_factory.mktemp("unbroken")
    samples, timing = generate(toy, toy_prompts, small_sampler, folder, batch=2, metadata={})
    return folder, samples, timing


@pytest.fixture
def drawn_ids(monkeypatch):
    """The ids of every batch that is denoised."""
    batches = []

    def watch(pipeline, prompts, *rest, **keys):
        batches.append([prompt.id for prompt in prompts])
        return denoise(pipeline, prompts, *rest, **keys)

    monkeypatch.setattr(generation, "denoise", watch)
    return batches


def test_noise_depends_on_prompt_and_seed_alone():
    first = noise_for("easy-001", 3, 16, 64)
    torch.manual_seed(99)
    noise_for("other", 1, 256, 64)
    assert torch.equal(noise_for("easy-001", 3, 16, 64), first)
    assert first.shape == (16, 64) and first.dtype == torch.float32
    for other in (noise_for("easy-002", 3, 16, 64), noise_for("easy-001", 4, 16, 64)):
        # independent normals differ by sqrt(2) rms; 0.1 is five standard errors of 1024 values
        assert abs((other - first).square().mean().sqrt() - 2**0.5) < 0.1


def test_noise_of_a_known_prompt_stays_what_it_is():
    # Ledgers of different days are compared picture by picture: these bits must never change.
    noise = noise_for("easy-000", 1_000_000, 256, 64)
    generator = torch.Generator().manual_seed(6983820392307626531)
    assert torch.equal(noise, torch.randn(256, 64, generator=generator))


def test_batch_and_order_move_latents_by_rounding_only(toy, toy_prompts, small_sampler):
    _, together = denoise(toy, toy_prompts, small_sampler)
    for index in (4, 1, 0):
        _, alone = denoise(toy, [toy_prompts[index]], small_sampler)
        # Matrix products of another batch add in another order: a few fp32 units (6e-8) through
        # two steps. Another noise would give an error near 1.
        error = (alone[0] - together[index]).norm() / together[index].norm()
        assert error < 1e-5
    _, swapped = denoise(toy, [toy_prompts[1], toy_prompts[0]], small_sampler)
    assert (swapped[0] - together[1]).norm() / together[1].norm() < 1e-5


def test_latents_are_the_last_ones_before_decoding(toy, toy_prompts, small_sampler):
    step_ms = []
    images, latents = denoise(toy, toy_prompts[:2], small_sampler, step_ms)
    noise = torch.stack([noise_for(p.id, p.seed, 16, 64) for p in toy_prompts[:2]])
    stock = toy(
        prompt=[prompt.caption for prompt in toy_prompts[:2]],
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_schedule=[3.0, 1.0],
        std=1.75,
        max_sequence_length=80,
        latents=noise,
        output_type="latent",
    ).images
    assert torch.equal(latents, stock)
    assert latents.dtype == torch.float32 and not torch.equal(latents, noise)
    assert [image.size for image in images] == [(64, 64)] * 2
    assert len(step_ms) == small_sampler.steps - 1 and step_ms[0] > 0


def test_final_guidance_is_that_of_the_last_steps(small_sampler):
    def schedule(steps, final_steps):
        changes = {"steps": steps, "final_steps": final_steps}
        return dataclasses.replace(small_sampler, **changes).guidance_schedule

    assert schedule(5, 2) == [3.0, 3.0, 3.0, 1.0, 1.0]
    assert schedule(2, 3) == [1.0, 1.0]
    assert schedule(3, 0) == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, r"steps must be at least 1, got 0"),
        ({"size_px": 250}, r"size must be a multiple of 16 pixels, got 250; use 256"),
        ({"size_px": 8}, r"size must be a multiple of 16 pixels, got 8; use 16"),
        ({"size_px": 0}, r"size must be a multiple of 16 pixels, got 0; use 16"),
    ],
)
def test_sampler_refuses(small_sampler, changes, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(small_sampler, **changes)


def test_batch_below_one_is_refused(draw, tmp_path):
    with pytest.raises(UserError, match="batch must be at least 1, got 0"):
        draw(tmp_path, batch=0)


def test_too_long_a_caption_is_refused_before_anything_is_drawn(
    toy, toy_prompts, small_sampler, tmp_path, drawn_ids
):
    long = Prompt("long", toy_prompts[0].caption.replace("flat", "a" * 100), (), 1)
    with pytest.raises(UserError, match=r"caption of prompt long has 1\d\d tokens, expected at mo"):
        generate(toy, [toy_prompts[0], long], small_sampler, tmp_path, batch=1, metadata={})
    assert drawn_ids == [] and list(tmp_path.iterdir()) == []


def test_the_limit_itself_is_allowed(toy, toy_prompts):
    with pytest.raises(UserError) as caught:
        check_length(toy.tokenizer, toy_prompts[:1], 1)
    tokens = int(str(caught.value).split(" has ")[1].split()[0])
    check_length(toy.tokenizer, toy_prompts[:1], tokens)
    with pytest.raises(UserError, match=f"at most {tokens - 1}; shorten it or raise model.max_seq"):
        check_length(toy.tokenizer, toy_prompts[:1], tokens - 1)


def test_samples_come_in_order_with_their_files(unbroken, toy_prompts):
    folder, samples, timing = unbroken
    assert [sample.key for sample in samples] == [(p.id, p.seed) for p in toy_prompts]
    for sample, prompt in zip(samples, toy_prompts, strict=True):
        assert sample.texts == prompt.texts and sample.seconds > 0
        assert (sample.image_path, sample.latents_path) == sample_paths(prompt, folder)
        assert load_file(sample.latents_path)["latents"].shape == (16, 64)
    assert len(timing.image_ms) == 5 and len(timing.step_ms) == 3  # 3 batches of 1 step and a first
    assert len({pixels(sample.image_path).tobytes() for sample in samples}) == 5
    assert len(list(folder.iterdir())) == 10


def test_pictures_carry_their_metadata(draw, toy_prompts, small_sampler, tmp_path):
    samples, _ = draw(tmp_path)
    with Image.open(samples[1].image_path) as image:
        record = json.loads(image.text[METADATA_KEY])
    assert record["variant"] == "test"
    assert record["caption"] == toy_prompts[1].caption
    assert (record["prompt_id"], record["seed"]) == (toy_prompts[1].id, toy_prompts[1].seed)
    assert record["sampler"] == dataclasses.asdict(small_sampler)
    assert record["seconds"] == samples[1].seconds


def test_a_finished_run_is_only_read(draw, unbroken, toy_prompts, tmp_path, drawn_ids):
    first, _ = draw(tmp_path)
    drawn_ids.clear()
    shown = []
    second, timing = draw(tmp_path, progress=shown.append)
    assert second == first
    assert drawn_ids == [] and timing.image_ms == () and shown == [2, 2, 1]
    assert contents(tmp_path, toy_prompts) == contents(unbroken[0], toy_prompts)


def test_a_run_stopped_after_a_batch_ends_as_an_unbroken_one(
    draw, unbroken, toy_prompts, tmp_path, drawn_ids
):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, progress=stop)
    assert len(list(tmp_path.iterdir())) == 4
    draw(tmp_path)
    assert drawn_ids == [["toy-0", "toy-1"], ["toy-2", "toy-3"], ["toy-4"]]
    assert contents(tmp_path, toy_prompts) == contents(unbroken[0], toy_prompts)


def test_a_batch_with_one_missing_picture_is_drawn_again_whole(
    draw, unbroken, toy_prompts, tmp_path, drawn_ids
):
    draw(tmp_path)
    drawn_ids.clear()
    missing, _ = sample_paths(toy_prompts[3], tmp_path)
    missing.unlink()
    _, timing = draw(tmp_path)
    assert drawn_ids == [["toy-2", "toy-3"]] and len(timing.image_ms) == 2
    assert contents(tmp_path, toy_prompts) == contents(unbroken[0], toy_prompts)


def test_half_written_files_are_no_pictures(draw, unbroken, toy_prompts, tmp_path):
    image, latents = sample_paths(toy_prompts[0], tmp_path)
    latents.write_bytes(b"cut off")  # its PNG was never reached
    image.with_name(f".{image.name}.12.tmp").write_bytes(b"\x89PNG")
    draw(tmp_path)
    assert contents(tmp_path, toy_prompts) == contents(unbroken[0], toy_prompts)


def test_a_picture_that_fails_to_be_written_leaves_none(draw, toy_prompts, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("power cut")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        draw(tmp_path)
    image, latents = sample_paths(toy_prompts[0], tmp_path)
    assert list(tmp_path.iterdir()) == [latents]
    assert find_sample(toy_prompts[0], tmp_path) is None


def test_a_picture_without_latents_is_found_without_them(draw, toy_prompts, tmp_path):
    draw(tmp_path)
    sample_paths(toy_prompts[0], tmp_path)[1].unlink()
    assert find_sample(toy_prompts[0], tmp_path).latents_path is None


@pytest.mark.parametrize("kind", ["foreign", "cut", "no image"])
def test_a_picture_that_is_not_ours_is_refused(toy_prompts, unbroken, tmp_path, kind):
    path, _ = sample_paths(toy_prompts[0], tmp_path)
    whole = sample_paths(toy_prompts[0], unbroken[0])[0].read_bytes()
    if kind == "foreign":
        Image.new("RGB", (64, 64)).save(path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if kind == "cut" else b"text")
    with pytest.raises(UserError, match=rf"{path.name} must be a picture written by dit8, got \w+"):
        find_sample(toy_prompts[0], tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(draw, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose a folder that you may write to"):
        draw(tmp_path / "file" / "run")
