"""Set every recipe and format side by side, and say of each whether it helps.

A row of the ablation is one way to store and multiply the weights. All rows are measured on the
same captions and noise, against the unquantized model in fp32 arithmetic: how far latents and
pictures moved, and what became of the texts, paired by caption. Whether a row helps is a question
about `naive`, W8A8 without any recipe, and is answered by the paired difference of their latent
errors, the most sensitive score. bf16 arithmetic alone is a row of its own, because it moves a
picture without quantizing anything.

Pure: the same ledger rows give the same values. `eval.ablation_table` writes them down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dit8.eval.run import Interval
from dit8.eval.stats import mean_interval, paired_interval
from dit8.models.types import SampleKey
from dit8.quant.errors import UserError

MEANS = ("latent_error", "psnr", "ssim")  # measured against the reference's pictures
DELTAS = ("ocr_exact", "ocr_ned")  # measured alone; the table has the difference to the reference
SCORERS = (*MEANS, *DELTAS)
ENGINE = "stock"

HELPS, HURTS, UNDECIDED = "helps", "hurts", "no difference seen"
MISSING = "not measured"


@dataclass(frozen=True)
class Cell:
    """One row of the ablation, by the columns of the ledger that name it."""

    name: str
    variant: str
    recipe: str = "none"
    dtype: str = "float32"  # of the arithmetic


# Smoothing strengths beside the 0.5 of `smooth_only`; nothing is protected in any of them.
ALPHAS = {"alpha_03": 0.3, "alpha_04": 0.4, "alpha_06": 0.6, "alpha_07": 0.7, "alpha_08": 0.8}
RECIPES = (
    *("naive", "per_tensor", "smooth_only", "protect_only"),
    *(f"ladder_{count}" for count in range(9)),
    *("smoothquant", "smooth_true", "alpha_search", *ALPHAS, "published", "rotate", "auto"),
)
BASE = "naive"
REFERENCE = Cell("fp32", "bf16")
ARITHMETIC = Cell("bf16", "bf16", dtype="bfloat16")
CELLS = (
    ARITHMETIC,
    *(Cell(recipe, "int8", recipe) for recipe in RECIPES),
    *(Cell(name, name) for name in ("fp8", "nf4", "q8_0", "q4_k")),
    Cell("comfy", "comfy", "smoothquant"),
)

Values = dict[SampleKey, float]


@dataclass(frozen=True)
class Run:
    """What the ledger holds of one cell: scorer -> value of every picture."""

    run_id: str
    values: dict[str, Values]


@dataclass(frozen=True)
class Entry:
    """One model's part of one row.

    Args:
        scores: scorer -> mean (MEANS) or paired difference to the reference (DELTAS); a scorer
            that was not measured is absent.
        change: latent error minus that of `naive`, paired; None where either is missing, and for
            `naive` itself.
        same_as: an earlier row with equal latent errors on every caption, or None.
    """

    model: str
    cell: Cell
    run_id: str | None
    scores: dict[str, Interval]
    change: Interval | None
    same_as: str | None

    @property
    def verdict(self) -> str:
        """Say whether the row helps against `naive`; "" for `naive` itself."""
        return "" if self.cell.name == BASE else judge(self.change)


def judge(change: Interval | None) -> str:
    """Name a change of an error: it helps or hurts if its interval excludes zero."""
    if change is None:
        return MISSING
    if change.high < 0:
        return HELPS
    return HURTS if change.low > 0 else UNDECIDED


def collect(
    rows: pd.DataFrame, models: Sequence[str], *, prompt_set: str, backend: str, captions: int
) -> dict[tuple[str, str], Run]:
    """Find the run of every cell in the ledger.

    Args:
        rows: of results/scores.csv.
        models: names of models.
        prompt_set, backend: of the rows to take.
        captions: rows that a complete run has of each scorer; runs of another size are not seen.

    Returns:
        (model, name of the cell) -> its run; cells without rows are absent.

    Raises:
        UserError: a cell has rows of several runs.
    """
    names = {(cell.variant, cell.recipe, cell.dtype): cell.name for cell in (REFERENCE, *CELLS)}
    mine = rows[
        rows["model"].isin(models)
        & (rows["prompt_set"] == prompt_set)
        & (rows["backend"] == backend)
        & (rows["engine"] == ENGINE)
        & rows["scorer"].isin(SCORERS)
    ]
    found: dict[tuple[str, str], Run] = {}
    columns = ["model", "variant", "recipe", "dtype", "run_id", "scorer"]
    for (model, *cell, run_id, scorer), group in mine.groupby(columns, sort=True):
        name = names.get(tuple(cell))
        if name is None or len(group) != captions:
            continue
        run = found.setdefault((model, name), Run(run_id, {}))
        if run.run_id != run_id:
            raise UserError(
                f"ablation: {model} {name} must have the rows of one run with {captions} captions "
                f"on {backend}, got runs {run.run_id} and {run_id}, which differ in what "
                "results/runs says of them; remove the rows of one from the ledger"
            )
        keys = zip(group["prompt_id"], group["seed"], strict=True)
        run.values[scorer] = {
            (prompt_id, int(seed)): float(value)
            for (prompt_id, seed), value in zip(keys, group["value"], strict=True)
        }
    return found


def is_measured(runs: Mapping[tuple[str, str], Run], model: str, cell: Cell) -> bool:
    """Tell whether a cell has every score it can have; the reference has no relative ones."""
    run = runs.get((model, cell.name))
    needed = DELTAS if cell == REFERENCE else SCORERS
    return run is not None and all(scorer in run.values for scorer in needed)


def ablate(runs: Mapping[tuple[str, str], Run], models: Sequence[str]) -> list[Entry]:
    """Compute every cell's scores and its change against `naive`.

    Returns:
        one entry per model and cell, cells in table order for each model.

    Raises:
        UserError: two cells of a model do not have the same captions.
    """
    entries = []
    for model in models:
        seen: dict[str, Values] = {}
        for cell in CELLS:
            run = runs.get((model, cell.name))
            latents = _values(runs, model, cell.name, "latent_error")
            base = _values(runs, model, BASE, "latent_error")
            change = None
            if latents is not None and base is not None and cell.name != BASE:
                change = paired_interval(latents, base)
            same = [name for name, values in seen.items() if values == latents]
            if latents is not None:
                seen[cell.name] = latents
            entries.append(
                Entry(
                    model=model,
                    cell=cell,
                    run_id=None if run is None else run.run_id,
                    scores=_scores(runs, model, cell),
                    change=change,
                    same_as=same[0] if same else None,
                )
            )
    return entries


def _scores(runs: Mapping[tuple[str, str], Run], model: str, cell: Cell) -> dict[str, Interval]:
    scores = {}
    for scorer in SCORERS:
        values = _values(runs, model, cell.name, scorer)
        reference = _values(runs, model, REFERENCE.name, scorer)
        if values is None:
            continue
        if scorer in MEANS:
            scores[scorer] = mean_interval(values)
        elif reference is not None:
            scores[scorer] = paired_interval(values, reference)
    return scores


def _values(
    runs: Mapping[tuple[str, str], Run], model: str, name: str, scorer: str
) -> Values | None:
    run = runs.get((model, name))
    return None if run is None else run.values.get(scorer)
