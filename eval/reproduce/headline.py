"""What was measured, in sentences: the list that docs/speed.md shows.

A reader does not add up nine tables, and figures typed by hand are wrong after the
next run. So every sentence is made of committed rows, chosen as the tables choose
(`eval.reproduce.bench.choose`), times compared within one run; of products the ratio to an anchor
of the same run, geometric mean of several runs. What has no rows is named with the command that
makes them.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dit8.eval.gemm_rows import GEMM, PEERS, ROWS_M, SHAPES, STEP_M, ratios
from dit8.eval.ledger import read_table
from dit8.eval.reproduce import bench
from dit8.eval.reproduce.finding import shown
from dit8.eval.reproduce.gemm import COMPANY_PERCENT
from dit8.eval.reproduce.speed import SIZES
from dit8.eval.reproduce.speed_claims import CAP_GB

Rows = Sequence[Mapping[str, Any]]
Ratios = Mapping[tuple[str, int], float]  # (shape, M) -> times as fast

WIDTH = 100  # columns of a page
SIZE = SIZES[0]  # px, of whole pictures
STOCK, COMPILED, BF16 = bench.PATHS[:3]
FUSED, ROTATED = ("fused_int8", "dit8"), ("rotated", "dit8")
# variant and engine -> what the sentences call them
COMPARED = {
    STOCK: "stock diffusers",
    COMPILED: "compiled (stock without padding and mask, torch.compile, fastest attention)",
    BF16: "the engine in bf16",
    FUSED: "fused_int8",
    ROTATED: "rotated",
}
FEW_M = ROWS_M[:3]
COMPANY = (
    f"Other company in a run moves a ratio by up to {COMPANY_PERCENT} %, so smaller differences "
    "count for none."
)
GEMM_COMMAND = "python scripts/bench_gemm.py --paths"
OURS, OURS_QUANTIZED = ("dit8", "gemm_graph"), ("dit8_quant", "quant_gemm_graph")  # path, mode


def build(results: Path) -> str:
    """Make the list from bench/model.csv and bench/gemm.csv.

    Returns:
        a Markdown list, wrapped; ends with a newline.

    Raises:
        UserError: rows that cannot be read.
    """
    times = bench.read_bench(results)
    products = read_table(results / "bench" / "gemm.csv", GEMM)
    products = products[products["gpu"] == bench.H200]
    runs = [own.to_dict("records") for _, own in products.groupby("run_id", sort=True)]
    entries = (
        *(_step(times, size) for size in SIZES),
        _capped(times),
        *_products(runs),
        _peers(runs),
    )
    fill = textwrap.TextWrapper(
        WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    ).fill
    return "".join(f"{fill(entry)}\n" for entry in entries)


def _step(rows: pd.DataFrame, size: int) -> str:
    """Compare the CFG steps of the newest run of fused_int8."""
    command = bench.command_for(FUSED)
    fused = bench.choose(rows, bench.H200, FUSED, size, "cfg_step_ms")
    if fused is None:
        return f"A CFG step at {size} px is not measured in fused_int8: `{command}`."
    found = {path: bench.beside(rows, fused, path, size) for path in COMPARED}
    steps = {path: timed.cell("cfg_step_ms") for path, timed in found.items() if timed is not None}
    listed = (f"{COMPARED[path]} {shown(cell, '.1f')} ms" for path, cell in steps.items())
    said = [
        f"A CFG step at {size} px ({bench.WHERE}; run {fused.run_id}, Student's 95 % intervals "
        f"over its images): {join_names(listed)}"
    ]
    for base in (STOCK, BF16):
        factors = [
            f"{COMPARED[path]} {steps[base].value / steps[path].value:.2f} times"
            for path in (FUSED, ROTATED)
            if base in steps and path in steps
        ]
        if factors:
            said.append(f"{join_names(factors)} as fast as {COMPARED[base]}")
    absent = [COMPARED[path] for path in COMPARED if path not in steps]
    return f"{'; '.join(said)}." + lacking_note(absent, command, "Not measured in this run")


def _capped(rows: pd.DataFrame) -> str:
    timed = bench.choose(
        bench.under_cap(rows, CAP_GB), bench.H200, FUSED, SIZE, "peak_bytes_capped"
    )
    what = f"A whole picture of {SIZE} px in fused_int8 under a cap of {CAP_GB:g} GB"
    if timed is None:
        return f"{what} is not measured: `python scripts/bench_model.py --cap-gb {CAP_GB:g}`."
    peak = shown(timed.cell("peak_bytes_capped", 1e-9), ".2f")
    return (
        f"{what}, text encoder and VAE taking turns with the branches, peaks at {peak} GB, CUDA's "
        f"context included ({bench.WHERE})."
    )


def _products(runs: Sequence[Rows]) -> tuple[str, str]:
    """Say how fast products are against cuBLAS, with quantization and without."""
    where = "H200, CUDA graphs; lowest to highest of"
    count = f"{where} {len(SHAPES)} products, {join_names(SHAPES)}"
    spans = [_span(runs, "bf16", OURS_QUANTIZED, sizes) for sizes in (STEP_M, FEW_M)]
    alone, absent = _span(runs, "fp8", OURS, STEP_M)
    command = f"{GEMM_COMMAND} dit8_quant --m {_words((*FEW_M, *STEP_M))}"
    return (
        f"Row quantization and int8 product together against cuBLAS in bf16 ({count}): "
        f"{'; '.join(text for text, _ in spans)}."
        + lacking_note([name for _, names in spans for name in names], command),
        f"The int8 product alone against cuBLASLt's FP8 with row-wise scales ({where} the same): "
        f"{alone}." + lacking_note(absent, f"{GEMM_COMMAND} dit8 --m {_words(STEP_M)}"),
    )


def _span(
    runs: Sequence[Rows], anchor: str, what: tuple[str, str], sizes: Sequence[int]
) -> tuple[str, list[str]]:
    """Return the range over all products and runs as words, and the cells without rows."""
    cells = _cells(ratios(sum(runs, []), anchor), what, sizes)
    single = [value for run in runs for value in _cells(ratios(run, anchor), what, sizes).values()]
    absent = [_name(s, m) for s in SHAPES for m in sizes if (s, m) not in cells]
    where = f"at {join_names(map(str, sizes))} rows"
    if not cells:
        return f"{where} not measured", [f"all products {where}"]
    wider = _between(single)
    several = "" if wider == _between(cells.values()) else f" ({wider} in single runs)"
    return f"{where} {_between(cells.values())} times as fast{several}", absent


def _peers(runs: Sequence[Rows]) -> str:
    """Compare the product alone with each other project's, in the runs that have both."""
    said, absent = [], {}
    for peer in PEERS:
        found = _cells(ratios(sum(runs, []), peer), OURS, STEP_M)
        alone = [_cells(ratios(run, peer), OURS, STEP_M) for run in runs]
        if found:
            said.append(_against(peer, found, alone))
        if len(found) < len(SHAPES) * len(STEP_M):
            absent[peer] = f"{peer} {len(SHAPES) * len(STEP_M) - len(found)}"
    return (
        f"The int8 product alone against other projects', {len(SHAPES)} products at "
        f"{join_names(map(str, STEP_M))} rows each (H200, CUDA graphs; several runs by their "
        "geometric mean)"
        + (f": {'; '.join(said)}. {COMPANY}" if said else ".")
        + lacking_note(
            list(absent.values()),
            f"{GEMM_COMMAND} dit8 {_words(absent)} --m {_words(STEP_M)}",
            "Pairs of product and rows not measured",
        )
    )


def _against(peer: str, found: Ratios, runs: Sequence[Ratios]) -> str:
    """Say where ours is ahead of a peer and by what, and name where it is behind or unsettled."""
    ahead = [value for value in found.values() if value >= 1]
    behind = [
        f"{_name(*cell)} (by {100 * (1 - value):.1f} % of its speed)"
        for cell, value in found.items()
        if value < 1
    ]
    unsettled = [
        _name(*cell) for cell in found if len({run[cell] >= 1 for run in runs if cell in run}) > 1
    ]
    text = f"ahead of {peer} on {len(ahead)} of {len(found)} measured pairs"
    if ahead:
        text += f", {_between(ahead)} times as fast"
    if behind:
        text += f", behind on {join_names(behind)}"
    return f"{text}, its runs disagree on {join_names(unsettled)}" if unsettled else text


def _cells(found: Mapping[Any, float], what: tuple[str, str], sizes: Sequence[int]) -> Ratios:
    path, mode = what
    cells = {(shape, m): found.get((path, shape, m, mode)) for shape in SHAPES for m in sizes}
    return {cell: value for cell, value in cells.items() if value is not None}


def _name(shape: str, m: int) -> str:
    return f"{shape} at {m} rows"


def _between(values: Iterable[float]) -> str:
    """Write a range of ratios; one number where its ends read the same."""
    texts = [f"{value:.2f}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def lacking_note(names: Sequence[str], command: str, what: str = "Not measured") -> str:
    """Say what has no rows and what makes them; nothing where nothing lacks."""
    return f" {what}: {', '.join(names)}: `{command}`." if names else ""


def join_names(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _words(names: Iterable[Any]) -> str:
    return " ".join(map(str, names))
