"""Table 5: how far each variant's pictures are from the reference's, on the same noise.

A distance says how far a picture moved, not whether it became worse: there is no margin and no
verdict. The paper's reference is FP8, the mini's the unquantized weights.
"""

from collections.abc import Mapping
from pathlib import Path

from dit8.eval.exact_match import delta_interval
from dit8.eval.reproduce.paper import load_reported, reported_cell, sources_note
from dit8.eval.reproduce.runs import (
    MINI,
    PLACES,
    REAL,
    VARIANTS,
    Place,
    Run,
    choose_runs,
    lacking_cell,
    place_in,
    rule,
)
from dit8.eval.reproduce.table import (
    MEASURED,
    REFERENCE,
    REPORTED,
    Cell,
    Column,
    Table,
    empty,
    estimate,
    keys,
)
from dit8.eval.scorers import get_scorer
from dit8.eval.stats import mean_interval

SLUG = "fidelity"
SCORERS = ("latent_error", "psnr", "ssim", "lpips")
LABELS = {"latent_error": "latent error ↓", "psnr": "PSNR ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓"}
SPECS = {"psnr": ".2f", "ssim": ".4f"}
COMPARED = {MINI: "int8", REAL: "fused_int8"}  # what a card of 24 GB holds of the two
EXTRA = {"lpips": "needs the extra lpips and its backbone"}
PAPERS = "Ideogram 4 against fp8, by the papers"


def _columns(place: Place) -> tuple[Column, ...]:
    where = f"{place.label}, against {place.reference}"
    units = {"psnr": "dB"}
    scores = (
        Column(LABELS[name], MEASURED, where, units.get(name, ""), SPECS.get(name, ".4g"))
        for name in SCORERS
    )
    return (*scores, Column(f"latent error, Δ to {COMPARED[place]}", MEASURED, where, spec="+.3g"))


COLUMNS = (
    Column("variant"),
    *_columns(MINI),
    *_columns(REAL),
    Column(LABELS["lpips"], REPORTED, PAPERS, spec=".3f"),
)
NOTES = (
    "Brackets are 95 % intervals over captions by BCa; Δ is paired by caption and noise. PSNR and "
    "LPIPS of two models say nothing about each other.",
    "The papers' figure of INT8 stands in the row int8, as they name it; int8 and fused_int8 are "
    "one checkpoint, and fused_int8 is what is drawn of Ideogram 4 on a card of 24 GB.",
)


def build(results: Path) -> Table:
    """Build the table from the ledger and the papers' figures."""
    reported = load_reported(SLUG)
    runs = {place: choose_runs(results, place_in(results, place), SCORERS) for place in PLACES}
    lines = [
        (
            *keys(variant),
            *(cell for place in PLACES for cell in _cells(place, runs[place], variant)),
            reported_cell(reported, variant, "lpips"),
        )
        for variant in VARIANTS
    ]
    reason = "does not apply: the paper's figures name two variants"
    for row in reported:
        if row.variant not in VARIANTS:
            blank = (empty(reason),) * (len(COLUMNS) - 2)
            lines.append(
                (*keys(row.variant), *blank, reported_cell(reported, row.variant, "lpips"))
            )
    title = "fidelity to the reference's pictures"
    sources = ("results/scores.csv", "results/runs", "results/paper/fidelity.csv")
    notes = (rule(results), *NOTES, sources_note(reported))
    return Table(5, SLUG, title, COLUMNS, tuple(lines), notes, sources)


def _cells(place: Place, runs: Mapping[str, Run], variant: str) -> tuple[Cell, ...]:
    if variant == place.reference:
        blank = empty("does not apply to the reference")
        return (*(REFERENCE,) * len(SCORERS), blank)
    cells = []
    for name in SCORERS:
        values = runs[variant].values.get(name) if variant in runs else None
        if values is None:
            cells.append(lacking_cell(place, variant, 5, _lacking(place, name)))
        else:
            cells.append(estimate(mean_interval(values)))
    return (*cells, _against(place, runs, variant))


def _against(place: Place, runs: Mapping[str, Run], variant: str) -> Cell:
    """Return the latent error minus that of the place's COMPARED."""
    base = COMPARED[place]
    if variant == base:
        return REFERENCE
    pair = [runs[v].values.get("latent_error") if v in runs else None for v in (variant, base)]
    if pair[0] is None or pair[1] is None:
        return lacking_cell(place, variant, 5)
    return estimate(delta_interval(get_scorer("latent_error").bounds, pair[0], pair[1]))


def _lacking(place: Place, scorer: str) -> str:
    """Say why a scorer has no figure, if not for the place's own reason."""
    return EXTRA[scorer] if place is MINI and scorer in EXTRA else ""
