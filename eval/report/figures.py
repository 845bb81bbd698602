"""Draw the plots of a report as SVG that follows the page's colours and text.

One small figure a score, so that a phone shows them one below the other instead of shrinking a
wide one. Colours are written as `var(--name, #fallback)`: inside the page they change with its
light or dark scheme, in a file of their own the fallback counts. Text stays text. Equal data give
equal bytes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit8.eval.report.data import Outcome, ScoreTable, Speed
from dit8.eval.verdict import BETTER, EQUIVALENT, UNDECIDED, WORSE

WIDTH_INCHES = 4.6
ROW_INCHES = 0.34
FRAME_INCHES = 1.0  # title, axis and its label
FONTS = "var(--sans, sans-serif)"
# CSS variable -> colour of the light scheme; all different, because they are found by value
COLOURS = {
    "ink": "#1c2128",
    "muted": "#59616b",
    "rule": "#d5d9de",
    "band": "#e3ecf7",
    "floor": "#c9cfd6",
    "equivalent": "#1a7161",
    "better": "#2457a6",
    "worse": "#a8321e",
    "undecided": "#7a5a00",
}
# a shape beside the colour, for readers who do not tell the colours apart
MARKERS = {EQUIVALENT: "o", BETTER: "^", WORSE: "v", UNDECIDED: "D", None: "s"}
_COLOUR_OF = {
    EQUIVALENT: "equivalent",
    BETTER: "better",
    WORSE: "worse",
    UNDECIDED: "undecided",
    None: "ink",
}
_STYLE = {
    "svg.hashsalt": "dit8",
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
}


def draw_forest(table: ScoreTable) -> str:
    """Draw the paired difference of every variant with its interval, the margin and the floor.

    A relative score has no difference; its mean is drawn instead.

    Returns:
        SVG text of its own, see `inline` for the page's.
    """
    measure = table.measure
    shown = [o for o in table.outcomes if measure.is_relative or o.delta is not None]
    name = f"{measure.name} {measure.arrow}"

    def draw(axis: Axes) -> None:
        intervals = [o.mean if measure.is_relative else o.delta for o in shown]
        if not measure.is_relative:
            if measure.margin is not None:
                axis.axvspan(-measure.margin, measure.margin, color=COLOURS["band"], lw=0)
            if measure.floor is not None:
                half = measure.floor.half_width
                axis.axvspan(-half, half, color=COLOURS["floor"], lw=0, alpha=0.7)
            if measure.margin is not None:  # its ends, also where the floor is wider
                for end in (-measure.margin, measure.margin):
                    axis.axvline(end, color=COLOURS["muted"], lw=0.8, ls=(0, (4, 3)))
            axis.axvline(0, color=COLOURS["muted"], lw=1)
        elif measure.floor is not None:
            axis.axvline(measure.floor.shift.estimate, color=COLOURS["floor"], lw=3)
        for row, (outcome, interval) in enumerate(zip(shown, intervals, strict=True)):
            colour = COLOURS[_COLOUR_OF[outcome.kind]]
            axis.plot([interval.low, interval.high], [row, row], color=colour, lw=2)
            axis.plot(interval.estimate, row, MARKERS[outcome.kind], color=colour, ms=6.5, mew=0)
        _name_rows(axis, [o.label for o in shown])
        what = "mean" if measure.is_relative else "Δ"
        axis.set_xlabel(what if measure.unit == "1" else f"{what}, {measure.unit}")
        axis.set_title(name, loc="left", fontsize=11.5, fontweight="bold")

    return _svg(draw, len(shown), f"Forest plot of {measure.name}")


def draw_trade(table: ScoreTable, sizes: Mapping[str, int]) -> str:
    """Draw a score over the bytes of the weights, with the variants no other one beats in both.

    Args:
        table: one score.
        sizes: label -> bytes.
    """
    measure = table.measure
    shown = [o for o in table.outcomes if o.label in sizes]
    front = pareto_front(shown, sizes, measure.higher_is_better)

    def draw(axis: Axes) -> None:
        ordered = sorted(front, key=lambda o: sizes[o.label])
        unit, scale = ("GB", 1e9) if max(sizes.values()) >= 1e9 else ("MB", 1e6)
        axis.plot(
            [sizes[o.label] / scale for o in ordered],
            [o.mean.estimate for o in ordered],
            color=COLOURS["floor"],
            lw=2,
            zorder=1,
        )
        for outcome in shown:
            x, mean = sizes[outcome.label] / scale, outcome.mean
            colour = COLOURS["ink" if outcome in front else "muted"]
            axis.plot([x, x], [mean.low, mean.high], color=COLOURS["floor"], lw=1.5)
            axis.plot(x, mean.estimate, "o", color=colour, ms=6, mew=0)
        axis.set_xlabel(f"weights of both branches as stored, {unit}")
        axis.set_ylabel("" if measure.unit == "1" else measure.unit)
        axis.margins(x=0.18, y=0.12)
        _name_points(axis, [(sizes[o.label] / scale, o.mean.estimate, o.label) for o in shown])
        axis.spines["left"].set_visible(True)
        axis.set_title(
            f"{measure.name} {measure.arrow}", loc="left", fontsize=11.5, fontweight="bold"
        )

    return _svg(draw, 5, f"{measure.name} over the size of the weights")


def pareto_front(
    outcomes: Sequence[Outcome], sizes: Mapping[str, int], higher_is_better: bool
) -> list[Outcome]:
    """Return the variants to which no other is at least as good and as small, and one of them more.

    By means alone: an interval that reaches across another point is no reason to leave one out.
    """
    sign = 1 if higher_is_better else -1

    def beaten(one: Outcome, by: Outcome) -> bool:
        size, score = sizes[by.label], sign * by.mean.estimate
        own_size, own_score = sizes[one.label], sign * one.mean.estimate
        return size <= own_size and score >= own_score and (size < own_size or score > own_score)

    return [one for one in outcomes if not any(beaten(one, other) for other in outcomes)]


def draw_speeds(speeds: Sequence[Speed], stage: str) -> str:
    """Draw the median time of a stage, and the 20th to 80th percentile, of every variant."""
    shown = [speed for speed in speeds if speed.stage == stage]

    def draw(axis: Axes) -> None:
        for row, speed in enumerate(shown):
            axis.plot([speed.p20_ms, speed.p80_ms], [row, row], color=COLOURS["ink"], lw=2)
            axis.plot(speed.p50_ms, row, "o", color=COLOURS["ink"], ms=6.5, mew=0)
        axis.set_xlim(0, 1.15 * max(speed.p80_ms for speed in shown))
        _name_rows(axis, [speed.label for speed in shown])
        axis.set_xlabel("median and 20th to 80th percentile, ms")
        axis.set_title(f"time per {stage} ↓", loc="left", fontsize=11.5, fontweight="bold")

    return _svg(draw, len(shown), f"Time per {stage}")


def inline(svg: str, name: str) -> str:
    """Make an SVG file part of a page: no prologue, own ids, the width of its place.

    Args:
        svg: of one of the functions above.
        name: unique on the page; put before every id.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", body)
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", body, count=1)


def _name_rows(axis: Axes, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)  # the first one on top
    axis.grid(axis="x", color=COLOURS["rule"], lw=0.6)
    axis.set_axisbelow(True)
    axis.locator_params(axis="x", nbins=6)


def _name_points(axis: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points, each in the first place that is still free.

    Widths are estimated, because text that stays text has no size before it is shown.
    """
    places = [(7, 4, "left"), (7, -12, "left"), (-7, 4, "right"), (-7, -12, "right")]
    places += [(7, 4 + 11 * k, "left") for k in (1, 2, 3)]
    taken: list[tuple[float, float, float, float]] = []
    axis.figure.draw_without_rendering()  # the limits are known only now
    to_points = axis.transData.transform
    scale = 72 / axis.figure.dpi
    for x, y, label in sorted(points):
        left, bottom = to_points((x, y)) * scale
        width = 5.6 * len(label)
        for dx, dy, side in places:
            start = left + dx - (width if side == "right" else 0)
            box = (start, bottom + dy, start + width, bottom + dy + 10)
            if not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        axis.annotate(
            label, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=9.5, ha=side
        )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _svg(draw: Callable[[Axes], Any], rows: int, title: str) -> str:
    """Draw on one axis, write SVG, name it for screen readers, exchange colours for variables."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, FRAME_INCHES + ROW_INCHES * rows))
        figure.set_layout_engine("constrained")
        figure.patch.set_alpha(0)
        axis = figure.subplots()
        axis.patch.set_alpha(0)
        draw(axis)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title})
    text = buffer.getvalue()
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", FONTS, text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
