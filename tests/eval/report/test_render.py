"""The page as text: complete, of one piece, readable in both schemes."""

import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from dit8.eval.report.data import Exhibit, Picture
from dit8.eval.report.figures import COLOURS
from dit8.eval.report.render import TEMPLATES, draw_plots, mark_code, render, write_page
from dit8.quant.errors import UserError

LEGIBLE = 4.5  # WCAG 2.2, 1.4.3: contrast of text of ordinary size
# elements that have no end tag
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Tree(html.parser.HTMLParser):
    """Collect tags and check that they close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def text(page):
    return render(page, draw_plots(page))


def test_tags_close_and_nothing_points_outside(text):
    tree = Tree()
    tree.feed(text)
    assert tree.open == []
    assert tree.tags.count("article") == 60 and tree.tags.count("h1") == 1
    assert tree.tags.count("img") == 60 * 5 + 3  # the last three belong to the lightbox
    outside = [link for link in tree.links if not link.startswith(("#", "data:image/webp;base64,"))]
    assert outside == []
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text.partition("<main>")[0])
    assert "@import" not in text and "url(http" not in text


def test_links_within_the_page_lead_somewhere(text):
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'(?:href|aria-labelledby)="#?([^"]+)"', text))
    assert {name for name in targets if not name.startswith("data:")} <= set(ids)


def test_what_the_report_promises_is_there(page, text):
    for words in (
        *("Verdicts", "Scores", "Differences", "Reading by category", "Quality and memory"),
        *("Latency", "Pictures", "How it was measured", "Provenance", "margin ±0.3"),
        *("noise floor ±", "they say nothing about Ideogram 4", "0123456789ab", "food &amp; drink"),
        *("SMUDGE", "WORD5", "Δ / floor", "reference", "a test", "2026-01-02"),
    ):
        assert words in text, words
    for verdict in page.verdicts:
        assert verdict.sentence in text
    assert text.count('class="badge equivalent"') >= 1 and text.count('class="badge worse"') >= 1


def test_foreign_text_stays_text(page, text):
    assert "</script><b>bold" not in text
    assert "&lt;/script&gt;&lt;b&gt;bold&lt;/b&gt;" in text
    assert "idea &lt;i&gt;0&lt;/i&gt;" in text
    data = text.partition('id="changes">')[2].partition("</script>")[0]
    changes = json.loads(data)
    assert len(changes) == 60
    assert changes["p-p-05_105"]["q4_k"]["sizes"]["psnr"] == 80.0  # 100 dB is no change
    assert changes["p-p-04_104"]["q4_k"]["text"] is True
    assert changes["p-p-04_104"]["int8"]["text"] is False


def test_equal_pages_give_equal_bytes(page, text):
    assert render(page, draw_plots(page)) == text


def test_files_lie_together(page, tmp_path):
    path = write_page(page, tmp_path / "deep" / "report")
    assert path.name == "report.html"
    names = {file.name for file in path.parent.iterdir()}
    assert names == {
        *("report.html", "latency_image.svg", "latency_step.svg"),
        *(f"forest_{name}.svg" for name in ("ocr_exact", "ocr_ned", "psnr")),
        *(f"memory_{name}.svg" for name in ("ocr_exact", "ocr_ned", "psnr")),
    }
    for file in path.parent.glob("*.svg"):
        ElementTree.parse(file)


def test_what_is_not_known_is_left_out(page):
    bare = replace(page, speeds=(), sizes={}, categories=(), caveat="", notes=("get it with `x`",))
    text = render(bare, draw_plots(bare))
    for words in ("Latency</h2>", "Quality and memory", "Reading by category", 'class="caveat"'):
        assert words not in text
    assert "<li>get it with <code>x</code></li>" in text
    assert "Verdicts" in text and text.count("<article") == 60


def test_a_reference_alone_makes_a_page(page):
    def alone(exhibit: Exhibit) -> Exhibit:
        first: Picture = exhibit.pictures[0]
        return replace(exhibit, pictures=(first,), change=0.0)

    single = replace(page, verdicts=(), exhibits=tuple(map(alone, page.exhibits)), sizes={})
    assert "No variant was compared with bf16." in render(single, {})


def test_backticks_become_code_and_nothing_else_does():
    assert mark_code("a <b> `x < y` c") == "a &lt;b&gt; <code>x &lt; y</code> c"


def test_jinja2_missing_is_one_sentence(page, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(UserError, match=r"jinja2 is not installed.*pip install 'dit8\[report\]'"):
        render(page, {})


def schemes():
    """Return name -> {variable: colour} of the style sheet: light, dark on top, print on top."""
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    blocks = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6})", body))
        for body in re.findall(r":root \{([^}]*)\}", css)
    ]
    light, dark, printed = blocks
    return {"light": light, "dark": light | dark, "print": light | printed}


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_wcag_does():
    assert contrast("#000000", "#fff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the known near miss


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_every_text_is_legible(scheme):
    colours = schemes()[scheme]
    for ground in ("paper", "card", "soft", "band"):
        for ink in ("ink", "muted", "accent", "equivalent", "better", "worse", "undecided"):
            if ground in ("soft", "band") and ink not in ("ink", "muted"):
                continue  # verdicts and links never stand there
            ratio = contrast(colours[ink], colours[ground])
            assert ratio >= LEGIBLE, (ink, ground, ratio)


def test_plots_and_page_share_their_light_colours():
    light = schemes()["light"]
    assert {name: light[name] for name in COLOURS} == COLOURS
