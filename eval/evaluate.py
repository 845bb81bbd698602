"""Evaluate one cell: generate, score, keep the rows, compare with the reference.
"""

import sys
from dit8.conf.paths import from_root, shorten
from dit8.conf.schema import EvaluateConfig
from dit8.eval.categories import categories_of, render_categories, summarize_categories
from dit8.eval.ledger import SCORES, upsert
from dit8.eval.run import Run, pack_run, read_run
from dit8.eval.score import Outcome, measured_everywhere, outcome_document, rows_of, score_run
from dit8.eval.table import render_markdown, score_document, summarize
from dit8.quant.files import locked
from dit8.eval.job import Cell, prepare, reference_of, settings_of
from dit8.scripts.cli import say_what_is_lacking
from dit8.eval.workers import draw, draw_shard
from dit8.eval.shards import WHOLE


def evaluate(config: EvaluateConfig) -> tuple[dict, str]:
    """Evaluate one cell; returns its JSON document and its tables as text, reference included.

    Scorers that cannot run here or that fail stand in the document under "not_measured" and
    "failed" with the reason, which is also said on stderr, and are in no row. A shard is drawn and
    nothing else: scores compare whole runs.
    """
    cell = prepare(config)
    if not cell.shard.is_whole:
        return _draw_shard(cell), ""
    reference = reference_of(cell)
    ledger = from_root(config.results) / "scores.csv"
    upsert(ledger, SCORES, [])  # a ledger that cannot be kept is found before the first picture
    is_reference = reference.key.run_id == cell.key.run_id
    if not is_reference and reference.missing(WHOLE):
        print(f"reference {reference.variant.name} comes first", file=sys.stderr)
    lacking = reference.missing(WHOLE) + (0 if is_reference else cell.missing(WHOLE))
    draw(reference, None)
    reference_run = read_run(reference.folder)
    outcomes = [_score(reference, reference_run, None)]
    if not is_reference:
        draw(cell, reference.key.run_id)
        run = read_run(cell.folder)
        outcomes.append(_score(cell, run, reference_run))
    document = _document(cell) | {"drawn": lacking, "reference": shorten(reference.folder)}
    if config.archive:
        document["archive"] = shorten(pack_run(cell.folder))
    document |= outcome_document(*outcomes)
    say_what_is_lacking(document)
    measured = measured_everywhere(config.scorers, *outcomes)
    rows = rows_of(ledger, [cell.key.run_id, reference.key.run_id], measured)
    if rows.empty:
        return document | score_document([], cell.variant.name, config.dtype), ""
    name = reference.variant.name
    summary = summarize(rows, reference=name)
    kinds = summarize_categories(rows, categories_of(reference_run.samples), reference=name)
    tables = [render_markdown(summary), render_categories(kinds, name)]
    document |= score_document(summary, cell.variant.name, config.dtype)
    return document, "\n".join(filter(None, tables))


def _score(cell: Cell, run: Run, reference: Run | None) -> list[Outcome]:
    """Score a run alone: jobs that need the same one find the scores of the first."""
    config, name = cell.config, f"{cell.key.variant} {cell.key.run_id}"

    def waiting() -> None:
        print(f"waiting for another process that scores {name}", file=sys.stderr)

    with locked(cell.folder / "scoring", waiting):  # what is there is read inside
        ledger = from_root(config.results) / "scores.csv"
        return score_run(run, reference, config.scorers, ledger, settings_of(config))


def _draw_shard(cell: Cell) -> dict:
    """Draw the cell's shard; says what of the run is still missing."""
    lacking = cell.missing(cell.shard)
    draw_shard(cell, None if _is_reference(cell) else reference_of(cell).key.run_id)
    shards = {"drawn": lacking, "shard": str(cell.shard), "missing": cell.missing(WHOLE)}
    return _document(cell) | shards | {"failed": {}}


def _document(cell: Cell) -> dict:
    document = {"variant": cell.variant.name, "n": len(cell.prompts), "backend": cell.key.backend}
    return document | {"run_id": cell.key.run_id, "pictures": shorten(cell.folder)}


def _is_reference(cell: Cell) -> bool:
    return cell.variant.name == cell.config.model.reference
