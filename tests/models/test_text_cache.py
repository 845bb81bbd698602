import gc
import weakref

import pytest
import torch
from diffusers import Ideogram4Pipeline

from dit8.models.generate import generate
from dit8.models.pipeline import load_pipeline
from dit8.models.text_cache import SHARED, Companions

CPU = torch.device("cpu")


@pytest.fixture
def load(toy_folder):
    def run(companions, key="a"):
        pipeline = load_pipeline(
            toy_folder, "float32", "float32", CPU, components=companions.components(key)
        )
        companions.attach(key, pipeline)
        return pipeline

    return run


@pytest.fixture
def encoded(monkeypatch):
    """The captions that are encoded, in order."""
    genuine, seen = Ideogram4Pipeline.encode_prompt, []

    def watch(self, prompt, *rest, **keys):
        seen.append(prompt)
        return genuine(self, prompt, *rest, **keys)

    monkeypatch.setattr(Ideogram4Pipeline, "encode_prompt", watch)
    return seen


def test_what_variants_share_is_loaded_once(load):
    companions = Companions()
    first, second = load(companions), load(companions)
    for name in SHARED:
        assert getattr(first, name) is getattr(second, name)
    assert first.transformer is not second.transformer
    other = load(companions, "b")
    assert all(getattr(other, name) is not getattr(first, name) for name in SHARED)


def test_features_are_computed_once_and_the_pictures_are_the_same(
    load, encoded, toy, toy_prompts, small_sampler, tmp_path
):
    companions = Companions()

    def draw(pipeline, name, **more):
        generate(
            pipeline, toy_prompts, small_sampler, tmp_path / name, batch=2, metadata={}, **more
        )
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("*.safetensors"))]

    alone = draw(toy, "alone")
    calls = len(encoded)
    assert draw(load(companions), "first", spared=companions.spared) == alone
    assert len(encoded) == 2 * calls
    assert draw(load(companions), "second", spared=companions.spared) == alone
    assert len(encoded) == 2 * calls  # none of the second's


def test_saved_time_is_counted(load, toy_prompts, small_sampler, tmp_path):
    companions = Companions()
    caption, pipeline = toy_prompts[0].caption, load(companions)
    encode = pipeline.encode_prompt
    first = encode(caption, 0, 0, 128, CPU)
    assert companions.spared() == 0
    again = encode(caption, 0, 0, 128, CPU)
    assert companions.spared() != 0 and companions.spared() == 0
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    again[0].zero_()  # belongs to the caller
    assert torch.equal(encode(caption, 0, 0, 128, CPU)[0], first[0])
    _, timing = generate(
        load(companions),
        toy_prompts[:2],
        small_sampler,
        tmp_path,
        batch=2,
        metadata={},
        spared=lambda: 1000.0,
    )
    assert all(500e3 < ms < 600e3 for ms in timing.image_ms)  # a thousand seconds for two pictures


def test_what_is_saved_is_the_encoder_without_copy_and_lookup(load, toy_prompts, monkeypatch):
    ticks = iter([10.0, 13.0, 20.0, 20.5])  # around the encoder, around the lookup
    companions = Companions()
    pipeline = load(companions)
    monkeypatch.setattr("dit8.models.text_cache.time.perf_counter", lambda: next(ticks))
    for _ in range(2):
        pipeline.encode_prompt(toy_prompts[0].caption, 2, 2, 128, CPU)
    assert companions.spared() == 3.0 - 0.5


def test_what_a_failed_cell_saved_is_not_the_next_ones(load, toy_prompts):
    companions = Companions()
    pipeline = load(companions)
    for _ in range(2):
        pipeline.encode_prompt(toy_prompts[0].caption, 2, 2, 128, CPU)
    load(companions)
    assert companions.spared() == 0


def test_the_pictures_rows_take_no_memory(load, encoded, toy_prompts):
    """The limit holds the text and nothing of 64 x 64 rows; what comes back has all of them."""
    caption, length, grid = toy_prompts[0].caption, 128, 64
    pipeline = load(Companions())
    first = pipeline.encode_prompt(caption, grid, grid, length, CPU)
    text = first[0][:, :length].nbytes
    size = text + sum(tensor.nbytes for tensor in first[1:])
    for limit, calls in ((size, 1), (size - 1, 2)):
        encoded.clear()
        pipeline = load(Companions(limit_bytes=limit))
        for _ in range(2):
            again = pipeline.encode_prompt(caption, grid, grid, length, CPU)
        assert len(encoded) == calls
        for one, other in zip(first, again, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)


def test_features_beyond_the_limit_are_computed_again(load, encoded, toy_prompts):
    pipeline = load(Companions(limit_bytes=1))
    for _ in range(2):
        pipeline.encode_prompt(toy_prompts[0].caption, 0, 0, 128, CPU)
    assert len(encoded) == 2


def test_another_key_forgets_and_a_pipeline_is_not_kept_alive(load, encoded, toy_prompts):
    companions = Companions()
    pipeline = load(companions)
    pipeline.encode_prompt(toy_prompts[0].caption, 0, 0, 128, CPU)
    branch = weakref.ref(pipeline.transformer)
    gc.disable()  # counted references alone must do: a cycle would wait with gigabytes
    try:
        del pipeline
        assert branch() is None
    finally:
        gc.enable()
    other = load(companions, "b")
    other.encode_prompt(toy_prompts[0].caption, 0, 0, 128, CPU)
    assert len(encoded) == 2
