import re
import xml.etree.ElementTree as ElementTree

import pytest

from dit8.eval.noise_floor import NoiseFloor
from dit8.eval.report.data import Measure, Outcome, ScoreTable, Speed
from dit8.eval.report.figures import (
    COLOURS,
    draw_forest,
    draw_speeds,
    draw_trade,
    inline,
    pareto_front,
)
from dit8.eval.run import Interval
from dit8.eval.verdict import BETTER, EQUIVALENT, UNDECIDED, WORSE

SVG = "{http://www.w3.org/2000/svg}"


def interval(estimate, half=0.01):
    return Interval(estimate, estimate - half, estimate + half, 30, "bca")


def table(relative=False, margin=0.05, floor=True):
    shift = NoiseFloor("x", "dtype", interval(0.0, 0.004), 0.01) if floor else None
    measure = Measure("ned & co", "share <b>", False, (0, 1), "", relative, margin, floor=shift)
    outcomes = [
        Outcome("bf16", interval(0.5)),
        Outcome("int8", interval(0.51), interval(0.01), 0.01, EQUIVALENT),
        Outcome("q4_k", interval(0.7), interval(0.2), 1.0, WORSE),
        Outcome("fp8", interval(0.3), interval(-0.2), 1.0, BETTER),
        Outcome("nf4", interval(0.55), interval(0.05), 1.0, UNDECIDED),
    ]
    return ScoreTable(measure, tuple(outcomes[relative:]))


SIZES = {"bf16": 4_000_000, "int8": 2_000_000, "q4_k": 1_000_000, "fp8": 2_000_000}
SPEEDS = [Speed("bf16", "image", 9, 90, 100, 110, 1.0), Speed("int8", "image", 9, 50, 55, 70, 0.55)]
DRAWN = {
    "forest": lambda: draw_forest(table()),
    "bare forest": lambda: draw_forest(table(margin=None, floor=False)),
    "relative": lambda: draw_forest(table(relative=True)),
    "trade": lambda: draw_trade(table(), SIZES),
    "speeds": lambda: draw_speeds(SPEEDS, "image"),
}


def texts(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", DRAWN)
def test_svg_is_well_formed_repeatable_and_follows_the_page(name):
    svg = DRAWN[name]()
    assert svg == DRAWN[name]()
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label")
    bare = re.sub(r"var\(--[a-z]+, #[0-9a-f]{6}\)", "", svg)
    assert not set(COLOURS.values()) & set(re.findall(r"#[0-9a-f]{6}", bare))
    assert "var(--ink, #1c2128)" in svg and "DejaVu" not in svg


def test_a_forest_names_every_variant_but_the_reference():
    shown = texts(draw_forest(table()))
    assert [name for name in ("int8", "q4_k", "fp8", "nf4") if name in shown] == [
        *("int8", "q4_k", "fp8", "nf4"),
    ]
    assert "bf16" not in shown
    assert "ned & co ↓" in shown and "Δ, share <b>" in shown


def test_verdicts_differ_in_shape_as_well_as_in_colour():
    root = ElementTree.fromstring(draw_forest(table()))
    shapes = {path.get("id"): path.get("d") for path in root.iter(f"{SVG}path") if path.get("id")}
    drawn = {}
    for use in root.iter(f"{SVG}use"):
        colour = re.search(r"fill: var\(--(\w+),", use.get("style", ""))
        if colour and colour[1] in ("equivalent", "better", "worse", "undecided"):
            drawn[colour[1]] = shapes[use.get("{http://www.w3.org/1999/xlink}href")[1:]]
    assert len(drawn) == 4 and len(set(drawn.values())) == 4
    svg = draw_forest(table())
    for name in ("equivalent", "better", "worse", "undecided", "band", "floor"):
        assert f"var(--{name}, {COLOURS[name]})" in svg, name


def test_a_forest_draws_margin_and_floor_where_they_are_known():
    assert "var(--band" not in draw_forest(table(margin=None))
    assert "var(--floor" not in draw_forest(table(floor=False))
    relative = draw_forest(table(relative=True))
    assert "var(--band" not in relative and "var(--floor" in relative  # the floor's own mean
    assert "mean, share <b>" in texts(relative)


def test_the_front_keeps_what_no_other_beats_in_both():
    outcomes = [o for o in table().outcomes if o.label in SIZES]

    def front(higher_is_better):
        return [o.label for o in pareto_front(outcomes, SIZES, higher_is_better)]

    assert front(False) == ["q4_k", "fp8"]  # least bytes; least error
    assert front(True) == ["q4_k"]  # best and smallest
    twins = [Outcome("a", interval(0.5)), Outcome("b", interval(0.5))]
    assert len(pareto_front(twins, {"a": 1, "b": 1}, True)) == 2


def test_only_variants_of_known_size_are_in_the_trade():
    shown = texts(draw_trade(table(), SIZES))
    assert {"bf16", "int8", "q4_k", "fp8"} <= set(shown) and "nf4" not in shown
    assert "weights of both branches as stored, MB" in shown
    big = {label: 1000 * size for label, size in SIZES.items()}
    assert "weights of both branches as stored, GB" in texts(draw_trade(table(), big))


def places_of(svg, names):
    root = ElementTree.fromstring(svg)
    found = {}
    for text in root.iter(f"{SVG}text"):
        name = "".join(text.itertext())
        if name in names:
            moved = re.search(r"translate\(([\d.]+) ([\d.]+)\)", text.get("transform", ""))
            x, y = moved.groups() if moved else (text.get("x"), text.get("y"))
            found[name] = (float(x), float(y), text.get("style"))
    return found


def test_names_of_points_at_one_place_do_not_cover_each_other():
    same = {label: 2_000_000 for label in ("int8", "fused_int8", "q8_0")}
    outcomes = tuple(Outcome(label, interval(0.5)) for label in same)
    svg = draw_trade(
        ScoreTable(table().measure, (*outcomes, Outcome("q4_k", interval(0.7)))),
        same | {"q4_k": 1_000_000},
    )
    found = places_of(svg, same)
    assert len(found) == 3
    boxes = []
    for name, (x, y, style) in found.items():
        width = 5.6 * len(name)
        left = x - width if "text-anchor: end" in style else x
        boxes.append((left, left + width, y))
    for i, (left, right, y) in enumerate(boxes):
        for other_left, other_right, other_y in boxes[i + 1 :]:
            assert abs(y - other_y) > 9 or right < other_left or other_right < left


def test_speeds_start_at_zero():
    assert "0" in texts(draw_speeds(SPEEDS, "image"))
    assert {"bf16", "int8", "time per image ↓"} <= set(texts(draw_speeds(SPEEDS, "image")))


def test_inlined_plots_have_ids_and_sizes_of_their_own():
    svg = draw_forest(table())
    one, other = inline(svg, "one"), inline(svg, "other")
    assert one.startswith("<svg") and "DOCTYPE" not in one
    assert 'width="' not in one[: one.index(">")] and "viewBox=" in one[: one.index(">")]
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other)]
    assert ids[0] and not ids[0] & ids[1]
    for used in re.findall(r'(?:href="|url\()#([^")]+)', one):
        assert used in ids[0]
