import numpy as np
import pytest
import torch

from dit8.eval.matching import read_one
from dit8.models.mini_tokenizer import build_tokenizer
from dit8.models.pipeline import encode_chat
from dit8.models.poster_words import is_held_out
from dit8.models.posters import caption_json
from dit8.models.training.flow import sample
from dit8.models.training.pool import decode_tokens
from dit8.models.training.reading import (
    Reader,
    draw_probe,
    make_probe,
    references,
)
from dit8.models.training.text import text_features


@pytest.fixture(scope="module")
def probe(toy):
    return make_probe("easy", 3, toy.text_encoder, 64, "cpu")


def test_a_probe_is_the_same_every_time_and_held_out(toy, probe):
    again = make_probe("easy", 3, toy.text_encoder, 64, "cpu")
    assert again.posters == probe.posters and torch.equal(again.noise, probe.noise)
    assert all(is_held_out(word) for poster in probe.posters for word in poster.texts)
    assert len(set(probe.posters)) == 3 and probe.noise.shape == (3, 256, 64)


def test_a_probe_holds_the_text_of_its_captions(toy, probe):
    tokenizer = build_tokenizer()
    for row, poster in enumerate(probe.posters):
        ids = torch.tensor([encode_chat(tokenizer, caption_json(poster))])
        assert probe.mask[row].sum() == ids.shape[1] and probe.mask[row, : ids.shape[1]].all()
        alone = text_features(toy.text_encoder, ids, torch.tensor([ids.shape[1]]))[0]
        padded = probe.text[row, : ids.shape[1]]
        # fp32 sums over another length, through 36 layers
        assert (alone - padded).norm() / alone.norm() < 1e-5


def test_pictures_are_the_decoded_samples(toy, probe):
    pictures = draw_probe(toy.transformer, toy.vae, probe, steps=2)
    with torch.no_grad():
        latents = sample(toy.transformer, probe.noise, probe.text, probe.mask, 2)
        expected = decode_tokens(toy.vae, latents).numpy()
    assert pictures.shape == (3, 256, 256, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures, expected)


def test_references_are_read_and_blanks_are_not(probe):
    pictures = references(probe.posters)
    assert pictures.shape == (3, 256, 256, 3)
    for pixels, poster in zip(pictures, probe.posters, strict=True):
        assert read_one((pixels, poster.texts)) == (1.0, 0.0)
    assert read_one((np.full_like(pictures[0], 90), ("RUBE",))) == (0.0, 1.0)


def test_a_reader_reports_the_mean_from_another_process(probe):
    pictures = references(probe.posters[:2])
    pictures[1] = 90
    reports = []
    reader = Reader(1, read_one)
    reader.read(pictures, probe.posters[:2], lambda *scores: reports.append(scores))
    reader.close()
    assert reports == [(0.5, 0.5)]


def test_a_reader_that_failed_says_so_when_closed(probe):
    reader = Reader(1, read_one)
    flat = np.zeros((1, 256), dtype=np.uint8)  # no picture
    reader.read(flat, probe.posters[:1], lambda *_: pytest.fail("was read"))
    reader.read(references(probe.posters[:1]), probe.posters[:1], lambda *_: None)
    with pytest.raises(RuntimeError, match=r"reading the probe failed: .* got \(256,\) uint8"):
        reader.close()


def test_a_reader_without_processes_reads_nothing(probe):
    reader = Reader(0, read_one)
    reader.read(references(probe.posters), probe.posters, lambda *_: pytest.fail("was read"))
    reader.close()
