"""Table 6: every recipe and format against plain W8A8, on the mini and on its planted twin.

The mini's columns are those of `eval.ablation`; the real model's have the CLIPScore as well, which
is what the papers report of their ladder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit8.eval.ablation import ALPHAS, ARITHMETIC, BASE, CELLS, Entry, ablate, collect
from dit8.eval.ablation import Cell as Row
from dit8.eval.newest import newest_runs
from dit8.eval.reproduce.paper import load_reported, reported_cell, sources_note
from dit8.eval.reproduce.pictures import CAPTIONS as FULL_SETS
from dit8.eval.reproduce.pictures import draw_words
from dit8.eval.reproduce.plan import LADDER
from dit8.eval.reproduce.runs import (
    MINI,
    REAL,
    VARIANTS,
    Run,
    choose_recipes,
    lacking_cell,
    place_in,
    read_scores,
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
from dit8.eval.stats import mean_interval

SLUG = "ablation"
PLANTED = "mini_planted"
MODELS = {MINI.model: MINI.label, PLANTED: "mini with planted outliers (not Ideogram 4)"}
CAPTIONS = FULL_SETS[MINI.model]  # of a ledger that has none
COMMAND = "python scripts/ablation.py --run --hardware cuda"
PAPERS = "Ideogram 4, by the papers"
REAL_SCORERS = ("latent_error", "clipscore")
COLUMNS = (
    Column("row"),
    *(
        Column(label, MEASURED, where, unit, spec)
        for where in MODELS.values()
        for label, unit, spec in (
            ("latent error ↓", "", ".3g"),
            (f"change against {BASE}", "", "+.3g"),
            ("verdict", "", ""),
            ("PSNR ↑", "dB", ".1f"),
            ("Δ texts exact ↑", "", "+.3f"),
        )
    ),
    Column("latent error ↓", MEASURED, REAL.label, spec=".3g"),
    Column("CLIPScore ↑", MEASURED, REAL.label),
    Column("CLIPScore ↑", REPORTED, PAPERS),
    Column("CLIPScore, Δ", REPORTED, PAPERS, spec="+.2g"),
)
NOTES = (
    "Rows of the ledger: prompts {prompt_set}, {captions} captions, {backend}, engine stock; "
    f"rows of recipes are variant int8. Brackets are 95 % intervals over captions; the verdict is "
    f"that of the latent error against `{BASE}`, W8A8 without any recipe, paired by caption and "
    "not corrected for the number of rows. The row bf16 is bf16 arithmetic on unquantized weights, "
    "where all other rows multiply in float32. More of them: results/tables/ablation.md.",
    "`ladder_8` keeps 8 down-projections a branch, `smoothquant` the most fragile half: 17 of 34 "
    "in the real model, 4 of 8 in the mini, where `ladder_8` keeps all. The papers say 8 and 17 "
    "layers; whether a branch or in all is not known to us.",
)


def build(results: Path) -> Table:
    """Build the table from the ledger and the papers' figures."""
    reported = load_reported(SLUG)
    kept = _kept(results)
    found = collect(
        newest_runs(read_scores(results), results / "runs"),
        tuple(MODELS),
        **kept,
    )
    entries = {(entry.model, entry.cell.name): entry for entry in ablate(found, tuple(MODELS))}
    recipes = [row.recipe for row in CELLS if row.variant == "int8"]
    real = choose_recipes(results, place_in(results, REAL), REAL_SCORERS, recipes)
    lines = [
        (
            *keys(row.name),
            *(cell for model in MODELS for cell in _measured(entries[model, row.name])),
            *_real(real, row),
            reported_cell(reported, row.name, "clipscore"),
            reported_cell(reported, row.name, "clipscore_delta"),
        )
        for row in CELLS
    ]
    title = "ablation ladder"
    sources = ("results/scores.csv", "results/paper/ablation.csv")
    notes = (NOTES[0].format(**kept), NOTES[1], sources_note(reported))
    return Table(6, SLUG, title, COLUMNS, tuple(lines), notes, sources)


def _kept(results: Path) -> dict[str, Any]:
    """Say which rows count: those of the mini's place, runs with as many captions as any has."""
    place = place_in(results, MINI)
    rows, backend = read_scores(results), place.backends[0]  # no row uses the fused product
    rows = rows[(rows["prompt_set"] == place.prompt_set) & (rows["backend"] == backend)]
    rows = rows[rows["model"].isin(MODELS) & (rows["engine"] == place.engine)]
    captions = rows.groupby(["run_id", "scorer"]).size().max() if len(rows) else CAPTIONS
    return {"prompt_set": place.prompt_set, "backend": backend, "captions": int(captions)}


def _measured(entry: Entry) -> tuple[Cell, ...]:
    lacking = empty("not measured", COMMAND)
    scores = {
        name: estimate(entry.scores[name]) if name in entry.scores else lacking
        for name in ("latent_error", "psnr", "ocr_exact")
    }
    if entry.cell.name == BASE:
        change = verdict = REFERENCE
    elif entry.change is None:
        change = verdict = lacking
    else:
        change, verdict = estimate(entry.change), words(entry.verdict)
    return scores["latent_error"], change, verdict, scores["psnr"], scores["ocr_exact"]


def _real(runs: Mapping[str, Run], row: Row) -> tuple[Cell, ...]:
    if row.variant != "int8":
        return (_elsewhere(row),) * len(REAL_SCORERS)
    values = runs[row.recipe].values if row.recipe in runs else {}
    command = REAL.command(6) if row.recipe in LADDER else direct_command(row.recipe)
    return tuple(
        estimate(mean_interval(values[name])) if name in values else empty(REAL.lacking, command)
        for name in REAL_SCORERS
    )


def _elsewhere(row: Row) -> Cell:
    """Say where the real model's figures of a row without recipe stand."""
    if row == ARITHMETIC:
        return lacking_cell(REAL, row.variant, 6)
    if row.variant in VARIANTS:
        return empty("see tables 3 and 5")
    return empty("does not apply: not a variant of the papers")


def direct_command(recipe: str) -> str:
    """Return what converts and draws the real model with a recipe that is not in the plan."""
    words = [f"recipe={recipe}"]
    if recipe in ALPHAS:
        words = ["recipe=smooth_only", f"recipe.alpha={ALPHAS[recipe]}", f"recipe.name={recipe}"]
    convert = ("scripts/quantize.py", f"model={REAL.model}", f"hardware={REAL.hardware}", *words)
    variants, n = ("fused_int8",), FULL_SETS[REAL.model]
    draw = draw_words(REAL.model, REAL.hardware, variants, REAL_SCORERS, n, words)
    return f"python {' '.join(convert)} && python {' '.join(draw)}"
