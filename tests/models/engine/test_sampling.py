import dataclasses

import numpy as np
import pytest
import torch

from dit8.kernels.backend import KernelError
from dit8.models.engine import sampling as engine_file
from dit8.models.engine.forward import EngineBranch
from dit8.models.engine.sampling import Clock, Engine, open_engine, set_schedule
from dit8.models.generate import denoise, generate
from dit8.models.pipeline import load_pipeline
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(toy_folder):
    """The toy pipeline for one test: an engine rearranges its weights."""
    return load_pipeline(toy_folder, "float32", "float32", CPU)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def difference(a, b):
    """Largest difference of two pictures, in levels of 0..255."""
    return max(
        int(np.abs(np.asarray(x, dtype=int) - np.asarray(y, dtype=int)).max())
        for x, y in zip(a, b, strict=True)
    )


def test_pictures_are_those_of_the_stock_pipeline(toy, pipeline, toy_prompts, small_sampler):
    sampler = dataclasses.replace(small_sampler, steps=4, final_steps=2)
    images, latents = denoise(toy, toy_prompts[:3], sampler)
    step_ms: list[float] = []
    ours, own = denoise(pipeline, toy_prompts[:3], sampler, step_ms, engine=Engine(pipeline, CPU))
    # four guided steps amplify fp32 rounding; another caption, noise or step would give about 1
    assert relative(own, latents) < 1e-5
    assert difference(ours, images) <= 1
    assert own.dtype == torch.float32 and [image.size for image in ours] == [(64, 64)] * 3
    assert len(step_ms) == 3 and min(step_ms) > 0


def test_the_vae_gets_what_the_stock_pipeline_gives_it(
    toy, pipeline, toy_prompts, small_sampler, monkeypatch
):
    """Closer than a picture can tell: the batch norm's epsilon moves latents by 1e-4."""
    given = []
    for one, engine in ((toy, None), (pipeline, Engine(pipeline, CPU))):

        def decode(z, genuine=one.vae.decode, **keys):
            given.append(z)
            return genuine(z, **keys)

        monkeypatch.setattr(one.vae, "decode", decode)
        denoise(one, toy_prompts[:2], small_sampler, engine=engine)
    stock, ours = given
    assert ours.shape == (2, 16, 8, 8) and relative(ours, stock) < 1e-5


def test_every_sampler_setting_reaches_the_loop(toy, pipeline, toy_prompts, small_sampler):
    engine = Engine(pipeline, CPU)
    for changes in ({"mu": 0.7}, {"std": 1.0}, {"guidance": 5.0}, {"size_px": 96}, {"steps": 1}):
        sampler = dataclasses.replace(small_sampler, **changes)
        _, expected = denoise(toy, toy_prompts[:1], sampler, decode=False)
        images, latents = denoise(pipeline, toy_prompts[:1], sampler, decode=False, engine=engine)
        assert images == [] and relative(latents, expected) < 1e-5


def test_a_stock_run_afterwards_is_as_before(pipeline, toy_prompts, small_sampler):
    _, before = denoise(pipeline, toy_prompts[:1], small_sampler)
    engine = Engine(pipeline, CPU)
    first = denoise(pipeline, toy_prompts[:1], small_sampler, engine=engine)[1]
    assert relative(denoise(pipeline, toy_prompts[:1], small_sampler)[1], before) < 1e-5
    again = denoise(pipeline, toy_prompts[:1], small_sampler, engine=engine)[1]
    assert torch.equal(first, again)


def test_a_batch_of_different_captions_is_each_alone(pipeline, toy_prompts, small_sampler):
    engine = Engine(pipeline, CPU)
    _, together = denoise(pipeline, toy_prompts, small_sampler, engine=engine)
    for index in (0, 4):
        _, alone = denoise(pipeline, [toy_prompts[index]], small_sampler, engine=engine)
        assert relative(alone[0], together[index]) < 1e-5


def test_text_is_encoded_without_padding_and_projected_once(
    pipeline, toy_prompts, small_sampler, monkeypatch
):
    encoded, projected = [], []
    genuine = pipeline.encode_prompt

    def encode(prompt, rows, columns, tokens, device):
        features, *rest = genuine(prompt, rows, columns, tokens, device)
        encoded.append((rows, columns, tokens, tuple(features.shape)))
        assert features.abs().amax(dim=-1).min() > 0  # no row is padding
        return features, *rest

    monkeypatch.setattr(pipeline, "encode_prompt", encode)
    for branch in BRANCHES.values():
        getattr(pipeline, branch).llm_cond_proj.register_forward_hook(
            lambda *_, branch=branch: projected.append(branch)
        )
    denoise(pipeline, toy_prompts[:2], small_sampler, engine=Engine(pipeline, CPU))
    assert [call[:2] for call in encoded] == [(0, 0)] * 2
    assert [call[3] for call in encoded] == [(1, call[2], 416) for call in encoded]
    assert projected == ["transformer"]


def test_the_first_step_is_known_beforehand(pipeline, small_sampler):
    scheduler = pipeline.scheduler
    timesteps = set_schedule(scheduler, small_sampler, CPU)
    assert len(timesteps) == 2 and scheduler.begin_index == 0
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert scheduler.begin_index is None  # as a stock run finds it


def test_generate_passes_its_engine_on(pipeline, toy_prompts, small_sampler, tmp_path):
    calls = []

    class Fake(Engine):
        def denoise(self, prompts, *rest, **keys):
            calls.append([prompt.id for prompt in prompts])
            return super().denoise(prompts, *rest, **keys)

    engine = Fake(pipeline, CPU)
    options = {"batch": 2, "metadata": {}, "engine": engine}
    samples, timing = generate(pipeline, toy_prompts[:3], small_sampler, tmp_path, **options)
    assert calls == [["toy-0", "toy-1"], ["toy-2"]]
    assert len(samples) == len(timing.image_ms) == 3 and len(timing.step_ms) == 2


def test_names_of_engines(pipeline, monkeypatch):
    assert open_engine("stock", pipeline, CPU) is None
    engine = open_engine("dit8", pipeline, CPU)
    assert isinstance(engine, Engine) and list(engine.branches) == list(BRANCHES)
    assert all(isinstance(branch, EngineBranch) for branch in engine.branches.values())
    with pytest.raises(UserError, match="engine must be one of stock, dit8, got 'dit9'"):
        open_engine("dit9", pipeline, CPU)
    with pytest.raises(UserError, match="must be dit8 where the hardware is staged, got 'stock'"):
        open_engine("stock", pipeline, CPU, staged=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KernelError, match="sees no CUDA GPU"):  # at once, not when the first comes
        open_engine("dit8", pipeline, torch.device("cuda"), staged=True)


def test_an_engine_draws_with_its_own_pipeline(toy, pipeline, toy_prompts, small_sampler):
    with pytest.raises(ValueError, match="engine must have been made on this pipeline"):
        denoise(toy, toy_prompts[:1], small_sampler, engine=Engine(pipeline, CPU))


def test_a_clock_times_all_but_the_first(monkeypatch):
    readings = iter((1.0, 1.5, 1.75))
    monkeypatch.setattr(engine_file.time, "perf_counter", lambda: next(readings))
    clock = Clock(CPU)
    assert clock.milliseconds() == []
    for _ in range(3):
        clock.tick()
    assert clock.milliseconds() == [500.0, 250.0]


# staged


@pytest.fixture
def places(pipeline, monkeypatch):
    """Log who enters and leaves, in order; the device is the CPU, so `enter` copies nothing."""
    log = []
    for kind in (engine_file.Guest, engine_file.BranchGuest):
        for action in ("enter", "shrink", "leave"):
            genuine = getattr(kind, action, None)

            def act(self, *args, genuine=genuine, action=action, **keys):
                if self in names:
                    log.append((names[self], action, *keys.values()))
                return genuine(self, *args, **keys)

            if genuine is not None:
                monkeypatch.setattr(kind, action, act)
    engine = Engine(pipeline, CPU, staged=True)
    names = {engine._encoder: "text", engine._vae: "vae"}
    names |= {guest: name for name, guest in engine._guests.items()}
    return engine, log


def test_modules_come_and_go_in_an_order_that_fits(toy, places, toy_prompts, small_sampler):
    engine, log = places
    images, latents = engine.denoise(toy_prompts[:1], small_sampler)
    everyone = [(n, "leave") for n in ("conditional", "unconditional", "text", "vae")]
    assert log == [
        *everyone,
        ("text", "enter"),
        ("text", "leave"),
        ("conditional", "enter", True),
        ("conditional", "shrink"),
        ("unconditional", "enter", False),
        ("unconditional", "shrink"),
        ("conditional", "leave"),
        ("unconditional", "leave"),
        ("vae", "enter"),
        *everyone,
    ]
    expected_images, expected = denoise(toy, toy_prompts[:1], small_sampler)
    assert relative(latents, expected) < 1e-5 and difference(images, expected_images) <= 1


def test_an_interrupted_picture_leaves_nothing_behind(
    places, toy_prompts, small_sampler, monkeypatch
):
    engine, log = places
    _, expected = engine.denoise(toy_prompts[:1], small_sampler)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(engine.branches["unconditional"], "velocity", stop)
        with pytest.raises(KeyboardInterrupt):
            engine.denoise(toy_prompts[:1], small_sampler)
    log.clear()
    _, latents = engine.denoise(toy_prompts[:1], small_sampler)
    assert torch.equal(latents, expected)
    assert log[:4] == [(n, "leave") for n in ("conditional", "unconditional", "text", "vae")]


@pytest.mark.parametrize(
    ("place", "name", "match"),
    [
        ("pipeline", "encode_prompt", "encoding the captions needs more GPU .*; lower batch, or"),
        ("vae", "decode", "decoding 1 images needs more GPU memory than is free; lower size or b"),
        ("stock", "encode_prompt", "drawing 1 images of 64 px needs more GPU .*; lower size or b"),
    ],
)
def test_a_full_gpu_says_what_to_lower(
    pipeline, toy_prompts, small_sampler, monkeypatch, place, name, match
):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pipeline.vae if place == "vae" else pipeline, name, fail)
    engine = None if place == "stock" else Engine(pipeline, CPU)
    with pytest.raises(UserError, match=match):
        denoise(pipeline, toy_prompts[:1], small_sampler, engine=engine)


@pytest.mark.gpu
@pytest.mark.parametrize("staged", [False, True])
def test_a_gpu_draws_the_same(toy, pipeline, toy_prompts, small_sampler, staged):
    cuda = torch.device("cuda", 0)
    engine = Engine(pipeline if staged else pipeline.to(cuda), cuda, staged=staged)
    _, expected = denoise(toy, toy_prompts[:3], small_sampler, decode=False)
    for _ in range(2):  # the second goes through graphs that are there, or that come again
        step_ms: list[float] = []
        images, latents = engine.denoise(toy_prompts[:3], small_sampler, step_ms)
        # fp32 on another device: sums in another order
        assert relative(latents, expected) < 1e-3 and len(images) == 3
        assert len(step_ms) == 1 and step_ms[0] > 0
    assert pipeline.transformer.device.type == ("cpu" if staged else "cuda")


@pytest.mark.gpu
def test_the_loop_waits_for_the_gpu_at_its_end_alone(pipeline, toy_prompts, small_sampler):
    """All steps are queued without a synchronization once the graphs are there."""
    cuda = torch.device("cuda", 0)
    engine = Engine(pipeline.to(cuda), cuda)
    engine.denoise(toy_prompts[:1], small_sampler)
    waits = []

    def step(branch):
        genuine = branch.velocity

        def velocity(latents, index):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return genuine(latents, index)
            finally:
                waits.append(index)

        return velocity

    for branch in engine.branches.values():
        branch.velocity = step(branch)
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):  # the copy of the final latents
            engine.denoise(toy_prompts[:1], small_sampler, decode=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits == [0, 0, 1, 1]
