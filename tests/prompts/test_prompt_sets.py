"""The committed prompt sets: what the script makes, disjoint, unseen, and by the tiers' rules."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from dit8.eval.matching import exact_fraction
from dit8.eval.reading import read
from dit8.models.poster_drawing import draw_poster
from dit8.models.poster_type import FACES
from dit8.models.poster_words import is_held_out
from dit8.models.posters import caption_json, make_poster
from dit8.models.prompts import caption_texts, load_prompts
from dit8.models.training.reading import PROBE_SEED
from dit8.scripts import make_prompts
from dit8.scripts.make_prompts import HARD_FACES, SETS, prompt_sets

FOLDER = Path(__file__).resolve().parents[2] / "prompts"
SIZES = {"mini_easy": 200, "mini_medium": 200, "mini_hard": 200, "mini_calibration": 32}


@pytest.fixture(scope="module")
def sets():
    return {name: load_prompts(FOLDER / f"{name}.jsonl") for name in SIZES}


def posters(prompts, tiers):
    return [
        make_poster(tiers[i % len(tiers)], prompt.seed, held_out=True)
        for i, prompt in enumerate(prompts)
    ]


def test_the_committed_files_are_what_the_script_writes(sets, monkeypatch):
    """Of the hard posters those that were passed over are read here, forty of the others below."""
    kept, passed_over = {prompt.seed for prompt in sets["mini_hard"]}, []
    genuine = make_prompts.is_legible

    def is_kept(poster):
        if poster.seed not in kept:
            passed_over.append(poster)
        return poster.seed in kept

    monkeypatch.setattr(make_prompts, "is_legible", is_kept)
    made = prompt_sets()
    assert passed_over and not any(map(genuine, passed_over))
    assert set(made) == set(SIZES) == {path.stem for path in FOLDER.glob("mini_*.jsonl")}
    for name, rows in made.items():
        lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert lines == [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]


def test_sets_have_their_sizes_and_ids(sets):
    for name, prompts in sets.items():
        assert len(prompts) == SIZES[name]
        short = name.removeprefix("mini_")
        assert [p.id for p in prompts] == [f"{short}-{i:03d}" for i in range(len(prompts))]


def test_prompts_are_the_posters_of_their_seeds(sets):
    for name, prompts in sets.items():
        for prompt, poster in zip(prompts, posters(prompts, SETS[name][0]), strict=True):
            assert prompt.caption == caption_json(poster)
            assert prompt.texts == poster.texts == caption_texts(prompt.caption)


def test_no_word_and_no_caption_occurs_twice(sets):
    words = [word for prompts in sets.values() for prompt in prompts for word in prompt.texts]
    captions = [prompt.caption for prompts in sets.values() for prompt in prompts]
    assert len(set(words)) == len(words)
    assert len(set(captions)) == len(captions) == sum(SIZES.values())
    assert all(is_held_out(word) for word in words)


def test_seeds_of_the_sets_and_of_the_training_probes_do_not_meet(sets):
    spans = [(min(p.seed for p in s), max(p.seed for p in s)) for s in sets.values()]
    spans.append((PROBE_SEED, PROBE_SEED + 10_000))
    for (low, high), (other_low, other_high) in combinations(spans, 2):
        assert high < other_low or other_high < low


def test_words_follow_the_rules_of_their_set(sets):
    lengths = {name: {len(w) for p in prompts for w in p.texts} for name, prompts in sets.items()}
    assert lengths["mini_easy"] == {3, 4, 5, 6}
    assert lengths["mini_medium"] == set(range(3, 9))
    assert lengths["mini_hard"] == set(range(3, 11))
    assert {len(p.texts) for p in sets["mini_medium"]} == {2}
    assert {len(p.texts) for name in ("mini_easy", "mini_hard") for p in sets[name]} == {1}
    characters = {name: set("".join(w for p in s for w in p.texts)) for name, s in sets.items()}
    assert not any(seen & set("0O1I") for seen in characters.values())
    assert not any(c.isdigit() for c in characters["mini_easy"])
    assert any(c.isdigit() for c in characters["mini_medium"])


def test_medium_has_the_typefaces_orders_and_descriptions(sets):
    made = posters(sets["mini_medium"], ("medium",))
    faces = [e.face for poster in made for e in poster.elements if e.kind == "text"]
    counts = {face: faces.count(face) for face in FACES}
    assert len(counts) >= 4 and "serif" in counts and min(counts.values()) >= 20
    orders = {"".join(e.kind[0] for e in poster.elements) for poster in made}
    assert {"tt", "ott", "tot", "tto"} <= orders
    described = sum(bool(poster.description) for poster in made)
    assert 60 <= described <= 140


def test_hard_is_small_on_every_varied_background(sets):
    made = posters(sets["mini_hard"], ("hard",))
    sizes = [e.cap_px for poster in made for e in poster.elements if e.kind == "text"]
    assert 18.0 <= min(sizes) < 18.5 and max(sizes) <= 21.5
    assert {e.face for p in made for e in p.elements if e.kind == "text"} == set(HARD_FACES)
    assert all(any(c.isdigit() for c in text) for poster in made for text in poster.texts)
    backgrounds = [poster.background for poster in made]
    for kind in ("gradient", "pattern", "texture"):
        assert backgrounds.count(kind) >= 40


def test_calibration_takes_the_tiers_in_turn(sets):
    made = posters(sets["mini_calibration"], ("easy", "medium", "hard"))
    assert [poster.tier for poster in made[:4]] == ["easy", "medium", "hard", "easy"]


def read_share(prompts, tiers):
    chosen = posters(prompts, tiers)
    return np.mean([exact_fraction(p.texts, read(np.asarray(draw_poster(p)))) for p in chosen])


@pytest.mark.parametrize("name", ["mini_easy", "mini_medium", "mini_hard"])
def test_reference_posters_can_be_read(sets, name):
    """The sets are for posters of which 97 % of the texts are read.

    Of 16 such, more than 2 are misread in 1 of 100 draws; the files are fixed, so never again.
    """
    assert read_share(sets[name][:16], SETS[name][0]) >= 14 / 16
