"""Table 4: texts read exactly and edit distance, per kind of content, JSON against raw captions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dit8.conf.paths import ROOT
from dit8.eval.categories import split_by_category
from dit8.eval.exact_match import delta_interval
from dit8.eval.reproduce.paper import Reported, load_reported, reported_cell, sources_note
from dit8.eval.reproduce.runs import (
    CPU,
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
from dit8.eval.reproduce.runs import RAW as RAW_SUFFIX
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
from dit8.eval.stats import MIN_PROMPTS, mean_interval
from dit8.models.prompts import load_prompts
from dit8.models.types import SampleKey

SLUG = "text"
PROMPTS = ROOT / "prompts"
SCORERS = ("ocr_exact", "ocr_ned")
LABELS = {"ocr_exact": "exact", "ocr_ned": "NED"}
JSON, RAW, CHANGE, UNKNOWN = "JSON", "raw", "JSON − raw", "of version 1"
ALL = "all"
PAPERS = "Ideogram 4, by the papers"
REPORTED_AS = {JSON: "json", RAW: "raw", CHANGE: "change", UNKNOWN: "unknown"}
COLUMNS = (
    Column("captions"),
    Column("content"),
    Column("variant"),
    *(
        Column(f"{LABELS[name]}{suffix}", MEASURED, place.label, spec=spec)
        for place in PLACES
        for name in SCORERS
        for suffix, spec in (("", ".3f"), (", Δ to fp8", "+.3f"))
    ),
    *(Column(LABELS[name], REPORTED, PAPERS, spec=".3f") for name in SCORERS),
)
NOTES = (
    "Exact: share of a picture's texts that PP-OCRv6 reads exactly, higher is better. NED: edit "
    "distance over the longer length, lower is better. Δ is paired by caption and noise; brackets "
    "are 95 % intervals over captions, by BCa unless another method is named. Raw captions are "
    f"plain sentences that name the same texts, prompt sets with `{RAW_SUFFIX}` in the ledger. "
    f"Rows {CHANGE} are the paired difference of the two, both of one kind of device: GPUs if raw "
    "captions were drawn there, otherwise the CPU. Kinds of content are those of the prompt "
    "set; a kind says where to look, a verdict comes from all captions together.",
)

Values = Mapping[SampleKey, float]
Runs = Mapping[str, Run]


def build(results: Path) -> Table:
    """Build the table from the ledger, the prompt sets and the papers' figures."""
    reported = load_reported(SLUG)
    runs: dict[tuple[Place, str], Runs] = {}
    for place in PLACES:
        own = place_in(results, place)
        runs[place, JSON] = choose_runs(results, own, SCORERS)
        runs[place, CHANGE], runs[place, RAW] = _arms(results, own)
    lines = [
        _line(runs, reported, style, ALL, name, {})
        for style in (JSON, RAW, CHANGE)
        for name in VARIANTS
    ]
    lines += [
        _foreign(reported, row)
        for row in reported
        if row.variant not in VARIANTS or row.quantity.startswith(REPORTED_AS[UNKNOWN])
    ]
    kinds = {
        prompt.id: prompt.category
        for prompt in load_prompts(PROMPTS / f"{REAL.prompt_set}.jsonl")
        if prompt.category and prompt.texts
    }
    measured = [name for name in VARIANTS if name in runs[REAL, JSON]]
    for kind in sorted(set(kinds.values())):
        for name in measured or ["every variant"]:
            lines.append(_line(runs, reported, JSON, kind, name, kinds))
    title = "texts read exactly and edit distance, per kind of content, JSON against raw captions"
    sources = (
        *("results/scores.csv", "results/runs", f"prompts/{REAL.prompt_set}.jsonl"),
        "results/paper/text.csv",
    )
    notes = (rule(results), *NOTES, sources_note(reported))
    return Table(4, SLUG, title, COLUMNS, tuple(lines), notes, sources)


def _arms(results: Path, place: Place) -> tuple[Runs, Runs]:
    """Return the runs with JSON and with raw captions, both of one kind of device."""
    for backends in (place.backends, CPU):
        there = replace(place, backends=backends)
        json, raw = (choose_runs(results, there, SCORERS, is_raw=raw) for raw in (False, True))
        if raw:
            return json, raw
    return {}, {}


def _line(
    runs: Mapping[tuple[Place, str], Runs],
    reported: tuple[Reported, ...],
    style: str,
    kind: str,
    variant: str,
    kinds: Mapping[str, str],
) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for place in PLACES:
        for name in SCORERS:
            if kind != ALL and place is MINI:
                cells += [empty(f"does not apply: {MINI.prompt_set} is of one kind")] * 2
            elif style == CHANGE:
                pair = (runs[place, CHANGE].get(variant), runs[place, RAW].get(variant))
                cells += _change(place, name, variant, *pair)
            else:
                cells += _pair(place, name, runs[place, style], variant, kind, kinds)
    return (
        *keys(style, kind, variant),
        *cells,
        *(
            reported_cell(reported, variant, f"{REPORTED_AS[style]}_{LABELS[name].lower()}")
            if kind == ALL
            else empty("figures of the papers' kinds are not known to us")
            for name in SCORERS
        ),
    )


def _pair(
    place: Place, scorer: str, runs: Runs, variant: str, kind: str, kinds: Mapping[str, str]
) -> Sequence[Cell]:
    """Return the mean of a variant and its difference to FP8."""
    values = _values(runs, variant, scorer, kind, kinds)
    if values is None:
        return [lacking_cell(place, variant, 4)] * 2
    if len({prompt for prompt, _ in values}) < MIN_PROMPTS:
        return [empty(f"fewer than {MIN_PROMPTS} captions of this kind")] * 2
    mean = estimate(mean_interval(values))
    if variant == PAPERS_REFERENCE:
        return [mean, REFERENCE]
    base = _values(runs, PAPERS_REFERENCE, scorer, kind, kinds)
    if base is None:
        return [mean, empty("fp8 is not measured", place.command(4))]
    return [mean, estimate(delta_interval(get_scorer(scorer).bounds, values, base))]


def _change(
    place: Place, scorer: str, variant: str, json: Run | None, raw: Run | None
) -> Sequence[Cell]:
    """Return the paired difference of a variant's two arms; the second column has no meaning."""
    both = [run.values.get(scorer) if run else None for run in (json, raw)]
    if both[0] is None or both[1] is None:
        return [lacking_cell(place, variant, 4)] * 2
    change = delta_interval(get_scorer(scorer).bounds, both[0], both[1])
    return [estimate(change, spec="+.3f"), empty("does not apply to a difference")]


def _values(
    runs: Runs, variant: str, scorer: str, kind: str, kinds: Mapping[str, str]
) -> Values | None:
    values = runs[variant].values.get(scorer) if variant in runs else None
    if values is None or kind == ALL:
        return values
    return split_by_category(values, kinds).get(kind, {})


def _foreign(reported: tuple[Reported, ...], row: Reported) -> tuple[Cell, ...]:
    """Return the line of a reported figure that belongs to no line of ours."""
    style = next(s for s, name in REPORTED_AS.items() if row.quantity.startswith(f"{name}_"))
    reason = "does not apply: the papers' captions or variant are not told"
    cells = (empty(reason),) * (4 * len(SCORERS))
    names = (f"{REPORTED_AS[style]}_{LABELS[name].lower()}" for name in SCORERS)
    return (
        *keys(style, ALL, row.variant),
        *cells,
        *(reported_cell(reported, row.variant, name) for name in names),
    )
