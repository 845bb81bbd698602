import hashlib
import random

import pytest

from dit8.models.poster_words import DIGITS, LETTERS, draw_word, is_held_out


def draw_many(n=3000, seed=0, **options):
    rng = random.Random(seed)
    return [draw_word(rng, 3, 8, **{"digits": True, "held_out": False} | options) for _ in range(n)]


@pytest.mark.parametrize("held_out", [False, True])
def test_words_come_from_the_side_that_is_asked_for(held_out):
    words = draw_many(500, held_out=held_out)
    assert all(is_held_out(word) == held_out for word in words)


def test_the_split_is_a_hash_of_the_word():
    for word in ("RUBE", "7525", "HF9DDSN"):
        first = hashlib.sha256(b"dit8:" + word.encode()).digest()[0]
        assert is_held_out(word) == (first < 26)


def test_about_one_word_in_ten_is_held_out():
    words = {"".join(random.choices(LETTERS, k=6)) for _ in range(20_000)}
    share = sum(map(is_held_out, words)) / len(words)
    # 26 of 256; the standard error of 20000 is 0.0021
    assert abs(share - 26 / 256) < 0.011


@pytest.mark.parametrize("digits", [False, True])
def test_lengths_and_characters(digits):
    words = draw_many(digits=digits)
    assert {len(word) for word in words} == {3, 4, 5, 6, 7, 8}
    seen = set("".join(words))
    assert seen == set(LETTERS + DIGITS if digits else LETTERS)
    assert not seen & set("01IO")


def test_most_words_can_be_spoken():
    # 60 % alternate consonants and vowels; a random string of letters rarely has a vowel in reach
    words = draw_many(digits=False)
    spoken = sum(any(v in word for v in "AEU") for word in words) / len(words)
    assert 0.6 < spoken < 0.95


def test_the_generator_decides():
    assert draw_many(50, seed=4) == draw_many(50, seed=4)
    assert draw_many(50, seed=4) != draw_many(50, seed=5)
