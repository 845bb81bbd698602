"""Words for the posters: pseudo-words and random strings, split in training and held-out ones.

A word is held out when the first byte of sha256("dit8:" + word) is below 26, about one in ten. The
split depends on the word alone, so no training run, seed or set can leak one.
"""

import hashlib
import random

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I, O: OCR cannot tell them from 1 and 0 out of context
DIGITS = "23456789"  # no 0, 1, for the same reason
CONSONANTS = "BCDFGHJKLMNPRSTVWXYZ"
VOWELS = "AEU"  # I and O are left out of pseudo-words too: the shortest ones give no context
CLUSTERS = tuple("BR CH CL CR DR FL GR PL PR SH SK SP ST TH TR".split())
HELD_OUT_BELOW = 26  # of 256


def is_held_out(word: str) -> bool:
    """Tell whether a word is reserved for evaluation."""
    return hashlib.sha256(f"dit8:{word}".encode()).digest()[0] < HELD_OUT_BELOW


def _pseudo_word(rng: random.Random, length: int) -> str:
    """Alternate consonants (sometimes clusters) and vowels until `length` letters stand."""
    word = ""
    vowel_next = rng.random() < 0.3
    while len(word) < length:
        if vowel_next:
            word += rng.choice(VOWELS)
        elif rng.random() < 0.2 and length - len(word) >= 2:
            word += rng.choice(CLUSTERS)
        else:
            word += rng.choice(CONSONANTS)
        vowel_next = not vowel_next
    return word[:length]


def draw_word(
    rng: random.Random, shortest: int, longest: int, *, digits: bool, held_out: bool
) -> str:
    """Draw one word of `shortest`..`longest` characters from the asked side of the split.

    60 % are pseudo-words, 40 % uniform strings (letters, with digits if `digits`).
    """
    while True:
        length = rng.randint(shortest, longest)
        if rng.random() < 0.6:
            word = _pseudo_word(rng, length)
        else:
            alphabet = LETTERS + DIGITS if digits else LETTERS
            word = "".join(rng.choice(alphabet) for _ in range(length))
        if is_held_out(word) == held_out:
            return word
