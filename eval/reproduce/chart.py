"""The chart of README.md: how fast each variant is against how near its pictures stay.

Across: CFG steps of the full-size architecture, as table 1 has them, against the engine in bf16 in
the same run. Up: PSNR of the bundled mini's posters, as tables 5 and 6 have it, to those of its
unquantized weights in fp32. `bf16` is bf16 arithmetic on unquantized weights and `rotated` is int8
under the recipe rotate, both of table 6; the unfused and the fused product are one arithmetic up to
rounding. Drawn as SVG, glyphs as paths, so that it looks alike everywhere and equal rows give equal
bytes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit8.eval.report.figures import COLOURS
from dit8.eval.reproduce import bench
from dit8.eval.reproduce.headline import BF16, SIZE
from dit8.eval.reproduce.runs import MINI
from dit8.eval.reproduce.short import times_as_fast
from dit8.eval.reproduce.table import Cell, Table
from dit8.eval.run import Interval

INCHES = (7.2, 4.7)
PSNR = "PSNR ↑"
# Okabe and Ito's blue and vermillion, told apart by all common kinds of colour blindness
FASTER, SLOWER = "#0072b2", "#d55e00"
# variant -> row of table 6 where table 5 has none
OTHER_ROWS = {"bf16": "bf16", "rotated": "rotate"}
RIGHT = ("bf16", "int8")  # names right of their points, the others left
STYLE = {
    "svg.hashsalt": "dit8",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Point:
    """Hold one variant: times as fast as bf16, dB, and decimal GB at the peak."""

    name: str
    speed: Interval
    quality: Interval
    peak_gb: float


def points(results: Path, fidelity: Table, ablation: Table) -> tuple[Point, ...]:
    """Collect the variants that have both figures, in the order of the tables.

    Args:
        results: folder of the committed rows.
        fidelity, ablation: tables 5 and 6.
    """
    rows = bench.read_bench(results)
    found = []
    for name, engine in bench.PATHS:
        timed = bench.choose(rows, bench.H200, (name, engine), SIZE, "cfg_step_ms")
        base = None if timed is None else bench.beside(rows, timed, BF16, SIZE)
        table, row = (ablation, OTHER_ROWS[name]) if name in OTHER_ROWS else (fidelity, name)
        near = _psnr(table).get(row)
        if engine == BF16[1] and timed is not None and base is not None and near is not None:
            peak = timed.figures["peak_bytes"].estimate / 1e9
            found.append(Point(name, times_as_fast(base, timed), near, peak))
    return tuple(found)


def draw(shown: Sequence[Point]) -> str:
    """Draw the points with their 95 % intervals; returns SVG text."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, facecolor="white")
        figure.set_layout_engine("constrained")
        _plot(figure.subplots(), shown)
        buffer = io.StringIO()
        title = "Speed against closeness of the pictures, one point a variant"
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title})
    return buffer.getvalue()


def _plot(axis: Axes, shown: Sequence[Point]) -> None:
    axis.axvline(1, color=COLOURS["floor"], lw=1, zorder=0)
    for point in shown:
        is_faster, is_slower = point.speed.low > 1, point.speed.high < 1
        colour = FASTER if is_faster else SLOWER if is_slower else COLOURS["ink"]
        x, y = point.speed.estimate, point.quality.estimate
        axis.plot([x, x], [point.quality.low, point.quality.high], color=colour, lw=2)
        axis.plot([point.speed.low, point.speed.high], [y, y], color=colour, lw=2)
        axis.plot(x, y, "o", color=colour, ms=6, mew=0)
        side = 1 if point.name in RIGHT else -1
        axis.annotate(
            f"{point.name}, {point.peak_gb:.0f} GB",
            (x, y),
            xytext=(9 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            color=colour,
        )
    axis.margins(x=0.12, y=0.12)
    below = {"transform": axis.get_xaxis_transform(), "va": "bottom", "fontsize": 11}
    axis.text(0.98, 0.01, "← slower", ha="right", color=SLOWER, **below)
    axis.text(1.02, 0.01, "faster than bf16 →", ha="left", color=FASTER, **below)
    axis.grid(axis="y", color=COLOURS["rule"], lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.set_xlabel(
        "times as fast as bf16; GB at the peak\n"
        f"(full-size architecture, random weights, {SIZE} px, H200)"
    )
    axis.set_ylabel("PSNR to the unquantized model, dB\n(bundled mini, 200 posters, 95 %)")


def _psnr(table: Table) -> Mapping[str, Interval]:
    """Return row -> PSNR of the mini."""
    (index,) = (
        i
        for i, column in enumerate(table.columns)
        if column.label == PSNR and column.where.startswith(MINI.label)
    )
    return {row[0].text: _interval(row[index]) for row in table.rows if row[index].low is not None}


def _interval(cell: Cell) -> Interval:
    return Interval(cell.value, cell.low, cell.high, 0, cell.method)
