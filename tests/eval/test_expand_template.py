"""eval/expand_template.py: captions without a model."""

import json

import pytest

from dit8.eval.caption_check import deviations
from dit8.eval.captions import expected_text, parse
from dit8.eval.expand import Expander, expand, review
from dit8.eval.expand_template import MEDIA, PALETTES, TemplateExpander

IDEAS = [
    'a poster for a tea shop that says "OPEN LATE" and "from 4 €"',
    "a photo of a red fox in snow",
    "写着“开门”的海报",
    '"x"',
    "logo for 'Björk & Søn'",
    'menu with "A", "B", "C", "D", "E", "F", "G" and "H"',
    "nostalgia \\ \x07",
]


@pytest.mark.parametrize("idea", IDEAS)
def test_captions_are_canonical_and_letter_what_is_quoted(idea):
    expander: Expander = TemplateExpander()
    caption = expand(expander, idea)
    assert deviations(caption) == []
    assert review(caption, idea) == (caption, [])
    assert expand(expander, idea) == caption


def test_the_caption_of_one_idea_is_known_to_the_byte():
    assert TemplateExpander().expand('sign "OPEN"') == (
        '{"high_level_description":"sign \\"OPEN\\". Medium: graphic design.",'
        '"style_description":{"aesthetics":"clear layout, strong contrast","lighting":"flat",'
        '"medium":"graphic design","art_style":"flat print design",'
        '"color_palette":["#14213D","#FCA311","#E5E5E5"]},'
        '"compositional_deconstruction":{"background":"One even colour over the whole frame.",'
        '"elements":[{"type":"obj","bbox":[520,150,940,850],"desc":"sign",'
        '"color_palette":["#E5E5E5"]},{"type":"text","bbox":[80,100,400,900],"text":"OPEN",'
        '"desc":"large bold sans-serif letters, centred","color_palette":["#FCA311"]}]}}'
    )


def test_a_word_of_the_idea_chooses_the_medium():
    def medium(idea: str) -> str:
        return json.loads(TemplateExpander().expand(idea))["style_description"]["medium"]

    assert medium("a Photo of a poster") == "photograph"
    assert medium("3D render of a chair") == "3D render"
    assert medium("watercolour of a hill") == "illustration"
    assert medium("a fox") == "photograph"
    assert medium('a fox with "HI"') == "graphic design"
    assert medium("the design") == "photograph"  # "sign" begins no word here
    assert medium("a lexicon") == "photograph"


def test_texts_stand_below_each_other_and_above_the_thing():
    caption = parse(TemplateExpander().expand(IDEAS[5]))
    thing, *texts = caption.compositional_deconstruction.elements
    assert expected_text(caption) == tuple("ABCDEFGH")
    for one, other in zip(texts, texts[1:], strict=False):
        assert one.bbox[2] <= other.bbox[0]
    assert texts[-1].bbox[2] <= thing.bbox[0]


def test_ideas_spread_over_the_palettes():
    seen = {
        tuple(parse(TemplateExpander().expand(f"a fox {n}")).style_description.color_palette)
        for n in range(60)
    }
    assert seen == set(PALETTES)


def test_every_medium_is_a_photograph_or_has_an_art_style():
    assert all(bool(medium.photo) != bool(medium.art_style) for medium in MEDIA)
