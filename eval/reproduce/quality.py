"""Table 3: scores of a picture alone, per variant, with the paired difference to FP8.

FP8 is what the papers compare with: the highest precision that was published. The verdict is that
of `eval.verdict`, Holm over this table's scorers of a variant, margins of conf/margins.yaml.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dit8.eval.margins import load_margins
from dit8.eval.reproduce.paper import load_reported, reported_cell, sources_note
from dit8.eval.reproduce.runs import (
    MINI,
    PAPERS_REFERENCE,
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
    words,
)
from dit8.eval.scorers import get_scorer
from dit8.eval.stats import mean_interval
from dit8.eval.verdict import Comparison, compare

SLUG = "quality"
SCORERS = ("pickscore", "clipscore", "hpsv2", "clip_mini")
OF_MINI = ("clip_mini",)  # a model of the mini's own posters
PAPERS = "Ideogram 4, by the papers"
COLUMNS = (
    Column("score"),
    Column("unit"),
    Column("variant"),
    *(
        Column(label, MEASURED, place.label, spec=spec)
        for place in PLACES
        for label, spec in (("mean", ".4g"), ("Δ to fp8", "+.3g"), ("verdict", ""))
    ),
    Column("mean", REPORTED, PAPERS),
    Column("Δ to fp8", REPORTED, PAPERS, spec="+.3g"),
)
NOTE = (
    "Brackets are 95 % intervals over captions by BCa; Δ is paired by caption and noise. A verdict "
    "needs a margin of conf/margins.yaml. On which scale the papers print their scores is not "
    "known to us; compare signs and intervals, not sizes. They report INT8 against NF4 as well: "
    "CLIPScore {}."
)


def build(results: Path) -> Table:
    """Build the table from the ledger and the papers' figures."""
    reported = load_reported(SLUG)
    runs = {place: choose_runs(results, place_in(results, place), SCORERS) for place in PLACES}
    judged = {place: _judge(own) for place, own in runs.items()}
    lines = []
    for name in SCORERS:
        scorer = get_scorer(name)
        arrow = "↑" if scorer.higher_is_better else "↓"
        for variant in VARIANTS:
            cells = [
                cell
                for place in PLACES
                for cell in _cells(place, runs[place], judged[place], name, variant)
            ]
            own = reported_cell(reported, variant, name)
            delta = reported_cell(reported, variant, f"{name}_delta")
            lines.append((*keys(f"{name} {arrow}", scorer.unit, variant), *cells, own, delta))
    title = "standalone quality, and paired differences to FP8"
    sources = ("results/scores.csv", "results/runs", "results/paper/quality.csv")
    nf4 = reported_cell(reported, "int8", "clipscore_delta_to_nf4")
    said = f"{nf4.value:+.1f} [{nf4.low:+.2f}, {nf4.high:+.2f}], {nf4.note}"
    notes = (rule(results), NOTE.format(said), sources_note(reported))
    return Table(3, SLUG, title, COLUMNS, tuple(lines), notes, sources)


def _judge(runs: Mapping[str, Run]) -> dict[tuple[str, str], Comparison]:
    """Compare every variant with FP8: (variant, scorer) -> what it shows."""
    if PAPERS_REFERENCE not in runs:
        return {}
    margins, base = load_margins(), runs[PAPERS_REFERENCE].values
    return {
        (variant, one.scorer): one
        for variant, run in runs.items()
        if variant != PAPERS_REFERENCE
        for one in compare(run.values, base, margins)
    }


def _cells(
    place: Place,
    runs: Mapping[str, Run],
    judged: Mapping[tuple[str, str], Comparison],
    scorer: str,
    variant: str,
) -> Sequence[Cell]:
    values = runs[variant].values.get(scorer) if variant in runs else None
    if values is None:
        return (_lacking(place, scorer, variant),) * 3
    mean = estimate(mean_interval(values))
    if variant == PAPERS_REFERENCE:
        return mean, REFERENCE, REFERENCE
    found = judged.get((variant, scorer))
    if found is None:
        return mean, *(empty("fp8 is not measured", place.command(3)),) * 2
    return mean, estimate(found.delta), words(found.verdict.kind)


def _lacking(place: Place, scorer: str, variant: str) -> Cell:
    if place is REAL and scorer in OF_MINI:
        return empty("does not apply: a model of the mini's own posters")
    if place is MINI and scorer not in OF_MINI:
        every = ",".join(VARIANTS)
        names = ",".join(name for name in SCORERS if name not in OF_MINI)
        return empty(
            "needs the scorers' weights, and judges posters they were not made for",
            f"python scripts/evaluate.py -m variant={every} scorers=[{names}] n=200 hardware=cuda",
        )
    return lacking_cell(place, variant, 3)
