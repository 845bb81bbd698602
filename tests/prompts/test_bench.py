"""The sets that no script makes: valid, disjoint, unique, as prompts/README.md describes them."""

import json
import re
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from dit8.eval.caption_check import deviations
from dit8.eval.captions import expected_text, parse
from dit8.eval.matching import normalize
from dit8.eval.quotes import quoted
from dit8.models.prompts import load_prompts

FOLDER = Path(__file__).resolve().parents[2] / "prompts"
SIZES = {"bench300": 300, "calibration64": 64}
WITH_TEXTS = {"bench300": 150, "calibration64": 32}  # at least
ROW_KEYS = ["id", "caption", "texts", "seed", "idea", "category"]
TEXT_CATEGORIES = {
    "poster": (30, 5),
    "signage": (25, 5),
    "logo_packaging": (30, 5),
    "cover": (25, 5),
    "infographic": (15, 4),
    "menu_ticket_label": (25, 4),
    "street_text": (15, 4),
}
OTHER_CATEGORIES = {
    "people": (20, 4),
    "places": (20, 4),
    "products": (20, 4),
    "food": (15, 4),
    "animals": (15, 4),
    "art_style": (20, 4),
    "three_d": (15, 4),
    "abstract": (10, 4),
}
CATEGORIES = TEXT_CATEGORIES | OTHER_CATEGORIES
SCRIPTS = {"ARABIC", "CJK", "CYRILLIC", "DEVANAGARI", "GREEK", "HANGUL"}  # beside Latin


@pytest.fixture(scope="module")
def sets():
    return {name: load_prompts(FOLDER / f"{name}.jsonl") for name in SIZES}


@pytest.fixture(scope="module")
def prompts(sets):
    return [prompt for name in SIZES for prompt in sets[name]]


def lines_of(name):
    return (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")


def elements_of(prompt):
    return json.loads(prompt.caption)["compositional_deconstruction"]["elements"]


def scripts_of(text):
    return {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}


def content_words(prompt):
    content = json.loads(prompt.caption)["compositional_deconstruction"]
    described = " ".join([content["background"], *(e["desc"] for e in content["elements"])])
    return {word for word in re.findall(r"\w+", described.casefold()) if len(word) > 3}


@pytest.mark.parametrize("name", SIZES)
def test_every_line_is_one_minified_row_with_its_keys_in_order(name):
    for line in lines_of(name):
        row = json.loads(line)
        assert list(row) == ROW_KEYS
        assert json.dumps(row, ensure_ascii=False, separators=(",", ":")) == line


@pytest.mark.parametrize("name", SIZES)
def test_no_caption_deviates_from_the_schema(name, sets):
    assert {p.id: found for p in sets[name] if (found := deviations(p.caption))} == {}


def test_ids_and_seeds_count_up_apart_from_each_other(sets):
    assert [p.id for p in sets["bench300"]] == [f"bench-{i:03d}" for i in range(300)]
    assert [p.seed for p in sets["bench300"]] == list(range(5_000_000, 5_000_300))
    assert [p.id for p in sets["calibration64"]] == [f"cal-{i:02d}" for i in range(64)]
    assert [p.seed for p in sets["calibration64"]] == list(range(6_000_000, 6_000_064))


def test_categories_have_their_counts(sets):
    for column, (name, size) in enumerate(SIZES.items()):
        counts = Counter(prompt.category for prompt in sets[name])
        assert counts == {category: n[column] for category, n in CATEGORIES.items()}
        assert counts.total() == size


def test_the_readme_states_the_counts():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (yes|no) \|$", page, flags=re.MULTILINE)
    stated = {name: (int(bench), int(calibration)) for name, bench, calibration, _ in rows}
    assert stated == CATEGORIES
    assert {name for name, *_, texts in rows if texts == "yes"} == set(TEXT_CATEGORIES)


def test_ideas_captions_and_texts_are_all_different(prompts):
    for values in (
        [normalize(prompt.idea) for prompt in prompts],
        [prompt.caption for prompt in prompts],
        [normalize(text) for prompt in prompts for text in prompt.texts],
        [normalize(element["desc"]) for prompt in prompts for element in elements_of(prompt)],
    ):
        assert [value for value, n in Counter(values).items() if n > 1] == []


def test_nothing_is_shared_with_the_sets_of_the_mini(prompts):
    others = [other for path in FOLDER.glob("mini_*.jsonl") for other in load_prompts(path)]
    assert len(others) == 632
    assert not {p.id for p in prompts} & {p.id for p in others}
    assert not {p.seed for p in prompts} & {p.seed for p in others}
    seen = {normalize(text) for other in others for text in other.texts}
    assert not seen & {normalize(text) for prompt in prompts for text in prompt.texts}


def test_no_two_captions_are_made_from_one_template(prompts):
    # of 66 000 pairs the closest shares 29 % of its words; templates share most of theirs
    words = [(prompt.id, content_words(prompt)) for prompt in prompts]
    alike = [
        (one, other)
        for (one, first), (other, second) in combinations(words, 2)
        if len(first & second) > 0.35 * len(first | second)
    ]
    assert alike == []


def test_texts_stand_where_the_category_has_them(sets):
    for name, at_least in WITH_TEXTS.items():
        assert sum(bool(prompt.texts) for prompt in sets[name]) >= at_least
        for prompt in sets[name]:
            assert bool(prompt.texts) == (prompt.category in TEXT_CATEGORIES), prompt.id


def test_texts_are_the_lines_of_the_caption_with_one_to_six_words(prompts):
    for prompt in prompts:
        assert prompt.texts == expected_text(parse(prompt.caption)), prompt.id
        for text in prompt.texts:
            assert 1 <= len(text.split()) <= 6, (prompt.id, text)


def test_ideas_are_short_and_quote_every_text(prompts):
    for prompt in prompts:
        assert 6 <= len(prompt.idea.split()) <= 20, prompt.id
        named = [normalize(each) for each in quoted(prompt.idea)]
        for text in prompt.texts:
            assert any(normalize(text) in each for each in named), (prompt.id, text)


def test_a_small_part_of_the_texts_is_in_other_scripts(sets):
    texts = [text for prompt in sets["bench300"] for text in prompt.texts]
    assert set().union(*map(scripts_of, texts)) >= SCRIPTS | {"LATIN"}
    foreign = [text for text in texts if scripts_of(text) - {"LATIN", "MASCULINE"}]
    assert 0.03 <= len(foreign) / len(texts) <= 0.15


def test_descriptions_are_concrete_and_elements_few(prompts):
    for prompt in prompts:
        elements = elements_of(prompt)
        assert 1 <= len(elements) <= 8, prompt.id
        for element in elements:
            assert 5 <= len(element["desc"].split()) <= 25, (prompt.id, element["desc"])


@pytest.mark.parametrize("name", SIZES)
def test_optional_parts_are_often_there_and_sometimes_missing(name, sets):
    captions = [json.loads(prompt.caption) for prompt in sets[name]]
    boxed = ["bbox" in element for prompt in sets[name] for element in elements_of(prompt)]
    shares = {
        "description": sum("high_level_description" in c for c in captions) / len(captions),
        "style": sum("style_description" in c for c in captions) / len(captions),
        "box": sum(boxed) / len(boxed),
    }
    for part, low, high in (("description", 0.6, 0.95), ("style", 0.6, 0.8), ("box", 0.7, 0.95)):
        assert low <= shares[part] <= high, (part, shares[part])
