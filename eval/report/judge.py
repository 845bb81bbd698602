"""Judge every variant by every score, with the procedure of `eval.verdict`.

Scores that compare pictures with the reference's measure how far a variant moved, not whether it
became worse, so they carry no verdict. Times are in the section on latency.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dit8.eval.categories import CategoryRow, categories_of, summarize_categories
from dit8.eval.exact_match import FEW, FEW_SHARES
from dit8.eval.margins import Margin
from dit8.eval.noise_floor import NoiseFloor, noise_floor
from dit8.eval.report.data import Measure, Outcome, ScoreTable, VariantVerdict
from dit8.eval.report.harmless import harmless_change
from dit8.eval.report.load import Evaluation, Measured
from dit8.eval.report.numbers import format_estimate, format_number, format_range
from dit8.eval.scorers import Scorer, get_scorer
from dit8.eval.stats import LEVEL, RESAMPLES, mean_interval
from dit8.eval.verdict import TIMES, Comparison, compare, conclude

Margins = Mapping[str, Margin]

RULES = (
    f"Brackets are {100 * LEVEL:.0f} % intervals over prompts, seeds of a prompt averaged first: "
    f"BCa bootstrap of {RESAMPLES} resamples, unless another method is named behind them. Δ is "
    "paired: variant minus reference for the same prompt and the same noise.",
    "Shares such as texts read exactly have most pairs tied. Closed intervals stand in for the "
    f"bootstrap where few prompts changed: newcombe where fewer than {FEW} pictures are exact in "
    f"one of the two only, adjusted wald where fewer than {FEW_SHARES} prompts changed a share.",
    "Equivalent: two one-sided tests reject, at 5 % after Holm's correction over the scores, every "
    "difference as large as the margin, which was declared beforehand. Worse, better: not shown "
    "equivalent, and the difference is not zero at 5 %, corrected likewise. Not decided: neither. "
    "An interval that contains zero does not show that two variants are equal.",
    "A variant is equivalent only if every score with a verdict says so, and worse if any does.",
    "The noise floor is what a harmless change to the reference alone shows: half the width of the "
    "interval of its paired difference, or the mean of a score that compares with the reference. "
    "A difference no larger is no evidence about the weights.",
)


@dataclass(frozen=True)
class Judged:
    """Hold what the statistics say of an evaluation."""

    verdicts: tuple[VariantVerdict, ...]
    tables: tuple[ScoreTable, ...]
    categories: tuple[CategoryRow, ...]
    notes: tuple[str, ...]


def judge(evaluation: Evaluation, margins: Margins) -> Judged:
    """Compare every variant with the reference.

    Raises:
        UserError: fewer than three prompts, a margin in another unit than its score's, a run of
            the noise floor that differs in more than arithmetic.
    """
    floors = measure_floors(evaluation)
    half_widths = {name: floor.half_width for name, floor in floors.items()}
    comparisons = {
        column.label: compare(
            column.scores, evaluation.reference.scores, margins, floors=half_widths
        )
        for column in evaluation.variants
    }
    verdicts = []
    for label, found in comparisons.items():
        whole = conclude(label, evaluation.reference.label, found, quote=quote)
        sentences = tuple(with_minus(one.verdict.sentence) for one in found)
        verdicts.append(VariantVerdict(label, whole.kind, whole.sentence, sentences))
    names = [name for name in _names(evaluation.columns) if name not in TIMES]
    tables = tuple(
        _table(get_scorer(name), evaluation, comparisons, margins.get(name), floors.get(name))
        for name in names
    )
    return Judged(tuple(verdicts), tables, _categories(evaluation), _notes(evaluation))


def measure_floors(evaluation: Evaluation) -> dict[str, NoiseFloor]:
    """Return the noise floor of every score; of several harmless runs the one that moved most."""
    floors: dict[str, NoiseFloor] = {}
    for column in evaluation.harmless:
        records = (one.record.get("identity", {}) for one in (evaluation.reference, column))
        change = harmless_change(*records, column.key.run_id)
        run_ids = evaluation.reference.key.run_id, column.key.run_id
        for name, floor in noise_floor(evaluation.rows, *run_ids, change=change).items():
            if name not in floors or _moved(floor) > _moved(floors[name]):
                floors[name] = floor
    return floors


def quote(one: Comparison) -> str:
    """Write a score's difference and margin as the tables of the page do."""
    assert one.margin is not None
    range_ = format_range(one.delta, signed=True)
    if "]" in range_:
        range_ = range_[: range_.index("]") + 1]  # the table names the method
    change = f"{format_estimate(one.delta, signed=True)} {range_}"
    return f"{one.scorer} {change} (margin ±{format_number(one.margin.value)})"


def with_minus(sentence: str) -> str:
    """Write minus signs for the hyphens in front of numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", sentence)


def _table(
    scorer: Scorer,
    evaluation: Evaluation,
    comparisons: Mapping[str, Sequence[Comparison]],
    margin: Margin | None,
    floor: NoiseFloor | None,
) -> ScoreTable:
    outcomes = []
    for column in evaluation.columns:
        if scorer.name not in column.scores:
            continue
        mean = mean_interval(column.scores[scorer.name])
        found = [c for c in comparisons.get(column.label, ()) if c.scorer == scorer.name]
        if found:
            one = found[0]
            kind = one.verdict.kind
            outcomes.append(Outcome(column.label, mean, one.delta, one.p_tost, kind))
        else:
            outcomes.append(Outcome(column.label, mean))
    known = (column.scorers.get(scorer.name, {}) for column in evaluation.columns)
    identity = next((entry["identity"] for entry in known if "identity" in entry), {})
    measure = Measure(
        name=scorer.name,
        unit=scorer.unit,
        higher_is_better=scorer.higher_is_better,
        bounds=scorer.bounds,
        preprocessing=scorer.preprocessing,
        is_relative=scorer.needs_reference,
        margin=None if margin is None else margin.value,
        reason="" if margin is None else margin.reason,
        identity=identity_line(identity),
        floor=floor,
    )
    return ScoreTable(measure, tuple(outcomes))


def identity_line(identity: Mapping[str, object]) -> str:
    """Write what a score depends on as one line, hashes cut; the record has nested values."""
    parts = []
    for name, value in sorted(identity.items()):
        if isinstance(value, str | int | float | bool):
            text = str(value)
            parts.append(f"{name} {text[:12] if re.fullmatch('[0-9a-f]{64}', text) else text}")
    return ", ".join(parts)


def _names(columns: Sequence[Measured]) -> list[str]:
    """Return every score that some column has: those that judge first, then the relative ones."""
    names = sorted({name for column in columns for name in column.scores})
    return sorted(names, key=lambda name: get_scorer(name).needs_reference)


def _moved(floor: NoiseFloor) -> float:
    scorer = get_scorer(floor.scorer)
    if not scorer.needs_reference:
        return floor.half_width
    best = scorer.bounds[scorer.higher_is_better]
    return abs(floor.shift.estimate - best)


def _notes(evaluation: Evaluation) -> tuple[str, ...]:
    """Name what would make the verdicts worth more."""
    if not evaluation.variants or evaluation.harmless:
        return ()
    return (
        "The noise floor was not measured: evaluate the reference once more with dtype=bfloat16 "
        "or another engine, score it against the reference, and pass that run.",
    )


def _categories(evaluation: Evaluation) -> tuple[CategoryRow, ...]:
    """Break the reading scores down; the runs go by their labels, a variant may occur twice."""
    labels = {column.key.run_id: column.label for column in evaluation.columns}
    rows = evaluation.rows[evaluation.rows["run_id"].isin(labels)]
    rows = rows.assign(variant=rows["run_id"].map(labels))
    categories = categories_of(evaluation.reference.run.samples)
    reference = evaluation.reference.label
    return tuple(summarize_categories(rows, categories, reference=reference))
