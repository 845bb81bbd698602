"""Table 7: what a variant's size on disk buys: bytes of both branches against quality.

On the frontier is what no other variant beats in both size and distance to the reference, by means
alone, as in the report's plot. Sizes are the full-size model's; the mini's distance stands beside
them as a stand-in that says nothing about Ideogram 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dit8.eval.report.figures import pareto_front
from dit8.eval.reproduce import bench
from dit8.eval.reproduce.estimate import BITS
from dit8.eval.reproduce.paper import load_reported, reported_cell, sources_note
from dit8.eval.reproduce.runs import (
    PLACES,
    VARIANTS,
    Place,
    Run,
    choose_runs,
    lacking_cell,
    place_in,
    rule,
)
from dit8.eval.reproduce.table import (
    COUNTED,
    MEASURED,
    REFERENCE,
    REPORTED,
    Cell,
    Column,
    Table,
    empty,
    estimate,
    figure,
    keys,
    words,
)
from dit8.eval.run import Interval
from dit8.eval.scorers import get_scorer
from dit8.eval.stats import mean_interval
from dit8.models.flops import BRANCHES, linear_weights, weight_bytes
from dit8.models.flops import VARIANTS as EXECUTIONS
from dit8.quant.errors import UserError

SLUG = "frontier"
SOURCE = "results/convert/convert.csv"
FILES = "full size, random weights"
PAPERS = "published files"
SCORER = "latent_error"
EXACT = "ocr_exact"
# variant -> target of convert.csv
TARGETS = {name: name for name in ("bf16", "fp8", "q8_0", "nf4", "q4_k")}
TARGETS |= dict.fromkeys(("int8", "fused_int8"), "smoothquant")
COMMAND = (
    "python scripts/make_synthetic.py outputs/synthetic --stats outputs/synthetic.stats && "
    "python scripts/bench_convert.py outputs/synthetic --stats outputs/synthetic.stats --targets "
    "bf16 fp8 nf4 q4_k"
)
COLUMNS = (
    Column("variant"),
    Column("size", MEASURED, FILES, "GB", ".2f"),
    Column("size", COUNTED, FILES, "GB", ".2f"),
    Column("peak at 1024 px", MEASURED, bench.WHERE, "GB", ".1f"),
    *(
        Column(label, MEASURED, place.label, spec=spec)
        for place in PLACES
        for label, spec in (
            ("latent error ↓", ".4g"),
            ("texts exact ↑", ".3f"),
            ("on the frontier", ""),
        )
    ),
    Column("size", REPORTED, PAPERS, "GB", ".2f"),
)
NOTES = (
    "Size: both branches as stored, decimal GB. Measured: of a conversion of 2 x 9.28 G random "
    "weights, extrapolated by weights where fewer blocks were converted. Counted: bits a weight "
    "times the linears. On the frontier: no other variant is as small (by count) and as near to "
    "the reference, and better in one of the two; the reference has no distance to itself. Peak: "
    "beside CUDA's context, both branches on the card.",
    "The frontier joins two models: bytes counted of the full-size model with the quality of the "
    "column's own, so that the mini's frontier says what such files cost a model of eight blocks, "
    "not what they cost Ideogram 4.",
)


@dataclass(frozen=True)
class Point:
    """One variant of the frontier: what `pareto_front` looks at."""

    label: str
    mean: Interval


def build(results: Path) -> Table:
    """Build the table from conversions, the ledger, model.csv and the published sizes."""
    reported = load_reported(SLUG)
    files, rows = _files(results), bench.read_bench(results)
    runs = {p: choose_runs(results, place_in(results, p), (SCORER, EXACT)) for p in PLACES}
    fronts = {place: _front(own) for place, own in runs.items()}
    lines = []
    for variant in VARIANTS:
        timed = bench.choose(rows, bench.H200, (variant, "dit8"), 1024, "image_s", "cfg_step_ms")
        peak = timed.cell("peak_bytes", 1e-9) if timed else None
        lines.append(
            (
                *keys(variant),
                files.get(TARGETS[variant], empty("not measured", COMMAND)),
                figure(counted_bytes(variant) / 1e9),
                peak
                or empty("not measured", f"python scripts/bench_model.py --variants {variant}"),
                *(
                    cell
                    for place in PLACES
                    for cell in _quality(place, runs[place], fronts[place], variant)
                ),
                reported_cell(reported, variant, "size_gb"),
            )
        )
    title = "quality against size on disk"
    sources = (SOURCE, bench.SOURCE, "results/scores.csv", "results/runs")
    sources += ("results/paper/frontier.csv",)
    notes = (rule(results), *NOTES, sources_note(reported))
    return Table(7, SLUG, title, COLUMNS, tuple(lines), notes, sources)


def counted_bytes(variant: str) -> float:
    """Count what both branches' linears take as stored; int8 and fp8 leave adaLN and ends bf16."""
    if variant in ("int8", "fused_int8"):
        return float(weight_bytes(EXECUTIONS["fused_int8"]))
    if variant == "fp8":  # one byte in the linears of `rotated`, which keeps none of them in bf16
        return float(weight_bytes(EXECUTIONS["rotated"]))
    return BRANCHES * linear_weights() * (BITS | {"bf16": 16.0})[variant] / 8


def _files(results: Path) -> dict[str, Cell]:
    """Return target -> size of the files that the converter wrote, in GB; none without rows."""
    path = results / "convert" / "convert.csv"
    if not path.exists():
        return {}
    try:
        frame = pd.read_csv(path)
        rows = list(zip(*(frame[n] for n in ("target", "weights", "size_bytes")), strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} must have target, weights and size_bytes, got "
            f"{type(error).__name__}; restore it from version control"
        ) from error
    whole = max(weights for _, weights, _ in rows)
    return {
        target: figure(
            size * whole / weights / 1e9,
            "" if weights == whole else f"extrapolated from {weights / 1e9:.2f} G weights",
        )
        for target, weights, size in rows
    }


def _front(runs: Mapping[str, Run]) -> set[str]:
    # int8 and fused_int8 are one file: the pair would push neither off the frontier
    points = [
        Point(name, mean_interval(run.values[SCORER]))
        for name, run in runs.items()
        if SCORER in run.values
    ]
    sizes = {point.label: int(counted_bytes(point.label)) for point in points}
    higher = get_scorer(SCORER).higher_is_better
    return {point.label for point in pareto_front(points, sizes, higher)}


def _quality(
    place: Place, runs: Mapping[str, Run], front: set[str], variant: str
) -> tuple[Cell, Cell, Cell]:
    lacking = lacking_cell(place, variant, 7)
    values = runs[variant].values if variant in runs else {}
    exact = estimate(mean_interval(values[EXACT])) if EXACT in values else lacking
    if variant == place.reference:
        return REFERENCE, exact, REFERENCE
    if SCORER not in values:
        return lacking, exact, lacking
    distance = estimate(mean_interval(values[SCORER]))
    return distance, exact, words("yes" if variant in front else "no")
