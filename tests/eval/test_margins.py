"""The declared margins, and every way in which the file can be wrong."""

import pytest

from dit8.eval.margins import Margin, load_margins
from dit8.eval.scorers import SCORERS
from dit8.quant.errors import UserError


@pytest.fixture
def write(tmp_path):
    def save(text: str):
        path = tmp_path / "margins.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return save


def test_the_committed_margins_are_in_the_units_of_their_scorers():
    margins = load_margins()
    assert set(margins) <= set(SCORERS)
    for name, margin in margins.items():
        scorer = SCORERS[name]
        assert margin.unit == scorer.unit, name
        assert not scorer.needs_reference, name
        assert 0 < margin.value < scorer.bounds[1] - scorer.bounds[0], name
        assert margin.reason.endswith("."), name


def test_every_score_of_a_picture_alone_has_a_margin():
    judged = {n for n, s in SCORERS.items() if not s.needs_reference} - {"seconds"}
    assert judged == set(load_margins())


def test_an_entry_is_read(write):
    path = write("psnr: {margin: 1, unit: dB, reason: Audible.}\n")
    assert load_margins(path) == {"psnr": Margin("psnr", 1.0, "dB", "Audible.")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"cannot read .*margins.yaml \(.*\); restore or correct it"),
        ("- a", r"must map scorers to margins, got list"),
        ("", r"must map scorers to margins, got NoneType"),
        ("a: 0.1", r"a must have exactly margin, unit, reason, got 0.1"),
        ("a: {margin: 1, unit: dB}", r"must have exactly .*, got \['margin', 'unit'\]"),
        ("a: {margin: 0, unit: dB, reason: x}", r"margin of a must be a positive number, got 0;"),
        ("a: {margin: -1, unit: dB, reason: x}", r"positive number, got -1"),
        ("a: {margin: .inf, unit: dB, reason: x}", r"positive number, got inf"),
        ("a: {margin: .nan, unit: dB, reason: x}", r"positive number, got nan"),
        ("a: {margin: yes, unit: dB, reason: x}", r"positive number, got True"),
        ("a: {margin: '1', unit: dB, reason: x}", r"positive number, got '1'"),
        ("a: {margin: 1, unit: 3, reason: x}", r"the unit of a must be a text, got 3; write it"),
        ("a: {margin: 1, unit: dB, reason: ' '}", r"the reason of a must be a text, got ' '"),
    ],
)
def test_a_wrong_file_is_named(write, text, message):
    with pytest.raises(UserError, match=message):
        load_margins(write(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"margins: cannot read .*none.yaml"):
        load_margins(tmp_path / "none.yaml")
