"""The five rows of README.md: what a variant takes, what it saves, and what it cost the mini.

Speed and bytes are of the full-size architecture, quality of the bundled mini, so the heads name
both. Ratios are of CFG steps within one run, as in table 1.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dit8.eval.reproduce import bench
from dit8.eval.reproduce.finding import shown
from dit8.eval.reproduce.headline import BF16, ROTATED, SIZE, STOCK, WIDTH
from dit8.eval.reproduce.render import ABSENT
from dit8.eval.reproduce.runs import MINI, Run
from dit8.eval.reproduce.table import BCA, Cell, Table
from dit8.eval.reproduce.verdict_line import COMMAND, Judged, judge
from dit8.eval.run import Interval
from dit8.eval.stats import mean_interval
from dit8.eval.table import align, format_interval

ROWS = ("bf16", "fused_int8", "fp8", "q4_k", "nf4")  # those of the strip
EXACT = "ocr_exact"
HEADS = (
    *("variant", "image on an H200, s", "times bf16", "times stock diffusers", "weights, GB"),
    *("peak, GB", "mini: texts read right, % [95 %]", "mini: verdict"),
)


def build(results: Path, frontier: Table) -> str:
    """Make the table and the line below it; ends with a newline.

    Args:
        results: folder of the committed rows.
        frontier: table 7, which has the bytes on disk.
    """
    rows = bench.read_bench(results)
    base, judged = judge(results)
    sizes = {row[0].text: row[1] for row in frontier.rows}
    lines = [list(HEADS)]
    for variant in ROWS:
        lines.append([variant, *_speed(rows, (variant, "dit8"))])
        lines[-1][4:4] = [_plain(sizes[variant], ".1f")]
        lines[-1] += _quality(variant, base, judged)
    text = textwrap.fill(_caveat(rows), WIDTH, break_long_words=False, break_on_hyphens=False)
    return f"{align(lines)}\n{text}\n"


def times_as_fast(base: bench.Timed, timed: bench.Timed) -> Interval:
    """Divide two CFG steps of one run; half-widths joined as of two independent means."""
    steps = [one.figures["cfg_step_ms"] for one in (base, timed)]
    ratio = steps[0].estimate / steps[1].estimate
    parts = ((one.high - one.low) / 2 / one.estimate for one in steps)
    half = ratio * sum(part**2 for part in parts) ** 0.5
    return Interval(ratio, ratio - half, ratio + half, 0, steps[0].method)


def _speed(rows: pd.DataFrame, path: tuple[str, str]) -> list[str]:
    """Return seconds, both ratios and the peak."""
    timed = bench.choose(rows, bench.H200, path, SIZE, "image_s", "cfg_step_ms")
    if timed is None:
        return [ABSENT] * 4
    bases = [bench.beside(rows, timed, base, SIZE) for base in (BF16, STOCK)]
    return [
        _plain(timed.cell("image_s"), ".2f"),
        *(ABSENT if b is None else f"{times_as_fast(b, timed).estimate:.2f}" for b in bases),
        _plain(timed.cell("peak_bytes", 1e-9), ".1f"),
    ]


def _quality(variant: str, base: Run | None, judged: Mapping[str, Judged]) -> list[str]:
    """Return the share of texts or its change, and the verdict."""
    if variant == MINI.reference and base is not None:
        share = mean_interval(base.values[EXACT])
        return [f"{format_interval(_percent(share), '.1f')} of {share.n}", "reference"]
    if variant not in judged:
        return [ABSENT, f"not measured: `{COMMAND}`"]
    one = judged[variant]
    delta = one.compared[EXACT].delta
    change = f"{format_interval(_percent(delta), '+.1f')} points"
    return [change, f"{one.kind}, by {one.deciding}"]


def _caveat(rows: pd.DataFrame) -> str:
    timed = bench.choose(rows, bench.H200, ROTATED, SIZE, "image_s")
    base = None if timed is None else bench.beside(rows, timed, BF16, SIZE)
    fastest = "`rotated`, which is `variant=fused_int8 recipe=rotate`,"
    if timed is not None and base is not None:
        seconds, ratio = timed.cell("image_s"), times_as_fast(base, timed)
        fastest += f" is the fastest here, {shown(seconds, '.2f')} s, {ratio.estimate:.2f} times "
        fastest += "bf16"
    else:
        fastest += " is not measured"
    return (
        f"**Read with care:** seconds, ratios and GB are of the full-size architecture with random "
        f"weights, {SIZE} px, 48 steps, on one H200; the two right columns are of the bundled "
        f"mini, which is not Ideogram 4; no RTX 3090 was measured. {fastest}."
    )


def _percent(share: Interval) -> Interval:
    """Return per cents; how the interval was made is told on the page of verdicts."""
    ends = (100 * end for end in (share.estimate, share.low, share.high))
    return Interval(*ends, share.n, BCA)


def _plain(cell: Cell | None, spec: str) -> str:
    """Write a figure without its interval, which table 1 has."""
    return ABSENT if cell is None or cell.value is None else f"{cell.value:{spec}}"
