"""The page in headless Chromium: real clicks and keys, no script, a phone, dark, print."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from dit8.eval.report.render import write_page

SHOWN = "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.id)"
FIRST = "[...document.querySelectorAll('.card')].find(c => !c.hidden)"


@pytest.fixture(scope="module")
def path(page, tmp_path_factory):
    return write_page(page, tmp_path_factory.mktemp("page"))


@pytest.fixture
def opened(browser, path):
    browser.open(path)
    return browser


def visible(browser, selector):
    """Tell whether something of that kind takes room on the page."""
    return browser.ask(
        f"[...document.querySelectorAll({selector!r})].some(e => e.getClientRects().length > 0)"
    )


def test_the_page_loads_without_network_or_complaint(opened):
    assert opened.requests == []
    assert opened.complaints == []
    assert opened.ask("document.querySelectorAll('.card').length") == 60
    pictures = "[...document.images].filter(i => i.src)"
    opened.ask(f"Promise.all({pictures}.map(i => i.decode())).then(() => true)")
    assert opened.ask(f"{pictures}.length") == 60 * (3 + 2)
    assert opened.ask(f"{pictures}.every(i => i.naturalWidth === 48)")


def test_a_caption_cannot_become_markup(opened):
    assert opened.ask("document.querySelectorAll('.card pre b, .idea i').length") == 0
    text = opened.ask("document.querySelector('.card pre').textContent")
    assert "</script><b>bold</b>" in text and "É" in text


def test_the_largest_change_comes_first_and_follows_the_choice(opened):
    assert opened.ask(f"{SHOWN}[0]") == "p-p-05_105"  # q4_k, 20 dB
    opened.choose("#variant", "int8")
    assert opened.ask(f"{SHOWN}[0]") == "p-p-03_103"  # int8, 30 dB
    assert opened.ask(f"{FIRST}.querySelector('.change').textContent") == "change in psnr 70"
    opened.choose("#scorer", "ocr_exact")
    opened.choose("#variant", "q4_k")
    assert opened.ask(f"{FIRST}.querySelector('.change').textContent") == "change in ocr_exact 1"
    even = opened.ask(f"{SHOWN}.slice(0, 30).every(id => Number(id.slice(4, 6)) % 2 === 0)")
    assert even  # the ones that lost their text


def test_filters_by_category_count_and_changed_text(opened):
    opened.choose("#category", "food & drink")
    shown = opened.ask(SHOWN)
    assert len(shown) == 30 and all(int(card[4:6]) % 2 == 1 for card in shown)
    assert opened.ask("document.querySelector('#shown').textContent") == "30 of 60 prompts"
    opened.click("#changed")  # only prompts of the other category lost a text
    assert opened.ask(SHOWN) == []
    opened.choose("#category", "poster")
    assert len(opened.ask(SHOWN)) == 30
    opened.choose("#count", "first 6")
    assert len(opened.ask(SHOWN)) == 6
    assert opened.ask("document.querySelector('#shown').textContent") == "6 of 60 prompts"


def test_the_view_shows_pictures_or_differences(opened):
    assert visible(opened, ".row img.picture") and visible(opened, ".row img.difference")
    opened.choose("#view", "differences")
    assert not visible(opened, ".row img.picture") and visible(opened, ".row img.difference")


def test_clicking_a_picture_enlarges_it_beside_the_reference(opened):
    opened.click("#p-p-05_105 figure:nth-child(3) img.picture")
    assert opened.ask("document.querySelector('#lightbox').open")
    assert opened.ask("document.querySelector('#lightbox-title').textContent") == "p-05"
    assert opened.ask("document.querySelector('#lightbox-texts').textContent").startswith(
        "expected WORD5"
    )
    source = "document.querySelector('#p-p-05_105 figure:nth-child({}) img.{}').src"
    for place, wanted in (
        ("left", source.format(1, "picture")),
        ("middle", source.format(3, "picture")),
        ("right", source.format(3, "difference")),
    ):
        assert opened.ask(f"document.querySelector('#{place}').src === {wanted}"), place
    assert "q4_k" in opened.ask("document.querySelector('#middle-name').textContent")
    opened.click(".tabs button:first-child")
    assert "int8" in opened.ask("document.querySelector('#middle-name').textContent")
    opened.click("#flip")
    same = "document.querySelector('#middle').src === document.querySelector('#left').src"
    assert opened.ask(same)
    opened.click("#close")
    assert not opened.ask("document.querySelector('#lightbox').open")


def test_everything_works_from_the_keyboard(opened):
    opened.ask(f"{FIRST}.querySelector('.compare').focus()")
    opened.press("Enter", 13, "\r")
    title = "document.querySelector('#lightbox-title').textContent"
    name = "document.querySelector('#middle-name').textContent"
    assert opened.ask(title) == "p-05" and "int8" in opened.ask(name)
    opened.press("ArrowDown", 40)
    assert "q4_k" in opened.ask(name)
    opened.press("ArrowDown", 40)
    assert "int8" in opened.ask(name)  # around
    opened.press("ArrowRight", 39)
    assert opened.ask(title) == "p-03"
    opened.press("ArrowLeft", 37)
    opened.press("ArrowLeft", 37)
    last = opened.ask(f"{SHOWN}.at(-1)")
    assert opened.ask(f"'p-' + {title} === {last!r}.replace(/_\\d+$/, '')")
    opened.press("r", 82, "r")
    assert opened.ask("document.querySelector('#flip').getAttribute('aria-pressed')") == "true"
    opened.press("Escape", 27)
    assert not opened.ask("document.querySelector('#lightbox').open")
    opened.ask(
        "new Promise(done => setTimeout(done, 50))"
    )  # the focus moves in an event of its own
    assert opened.ask("document.activeElement.className") == "compare"
    assert opened.ask("document.activeElement.closest('.card').id") == last  # where one had got to


def test_every_control_has_a_name_and_a_place_in_the_tab_order(opened):
    unnamed = opened.ask(
        "[...document.querySelectorAll('select, input')].filter(e => !e.labels.length).length"
    )
    assert unnamed == 0
    assert opened.ask("document.querySelectorAll('img:not([alt])').length") == 0
    doubled = opened.ask(
        "(ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')]"
        ".map(e => e.id))"
    )
    assert doubled == 0
    levels = opened.ask("[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_without_javascript_tables_and_gallery_are_there(browser, path):
    browser.open(path, script=False)
    assert browser.ask("document.querySelectorAll('.card').length") == 60
    assert browser.ask(f"{SHOWN}.length") == 60
    assert visible(browser, ".row img.picture") and visible(browser, "table.scores td")
    assert visible(browser, ".figures svg")
    for useless in (".controls", ".compare", "dialog"):
        assert not visible(browser, useless), useless
    browser.click(".card summary")  # the caption opens without a script
    assert browser.ask("document.querySelector('.card details').open")


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_at_any_width(browser, path, width):
    browser.open(path, width=width, height=800)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    browser.click(".card .compare")
    assert browser.ask("document.querySelector('#lightbox').getBoundingClientRect().right") <= width
    small = browser.ask(
        "[...document.querySelectorAll('#lightbox button, .controls select')]"
        ".filter(e => e.getClientRects().length && e.getBoundingClientRect().height < 24).length"
    )
    assert small == 0  # 24 px: the least a finger hits (WCAG 2.2, 2.5.8)


def colours_of(png):
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float64)
    return float(np.median(pixels)), float(pixels.std())


def test_the_picture_of_the_page_is_light_or_dark_as_the_reader_prefers(browser, path, tmp_path):
    browser.open(path)
    light, spread = colours_of(browser.picture(tmp_path / "light.png"))
    browser.open(path, dark=True)
    dark, dark_spread = colours_of(browser.picture(tmp_path / "dark.png"))
    assert light > 240 and dark < 40
    assert min(spread, dark_spread) > 10  # something stands on it
    ink = "getComputedStyle(document.querySelector('.figures svg text')).fill"
    channels = [int(part) for part in re.findall(r"\d+", browser.ask(ink))]
    assert min(channels) > 100  # the plots' writing turned light with the page


def test_it_prints_light_without_controls(browser, path):
    browser.open(path, dark=True)
    browser.call("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for useless in (".controls", ".compare", "nav", ".card details"):
        assert not visible(browser, useless), useless
    assert visible(browser, ".row img.picture")
    browser.call("Emulation.setEmulatedMedia", {"media": ""})
    pdf = base64.b64decode(browser.call("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and 2 <= pdf.count(b"/Type /Page\n") <= 30
