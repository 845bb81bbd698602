"""Evaluate one job: generate, score, keep the rows, compare with the reference."""

import sys

from dit8.conf.paths import from_root, shorten
from dit8.conf.schema import EvaluateConfig
from dit8.eval.categories import categories_of, render_categories, summarize_categories
from dit8.eval.job import Job, prepare, reference_of, settings_of
from dit8.eval.ledger import SCORES, upsert
from dit8.eval.run import Run, pack_run, read_run
from dit8.eval.score import (
    Outcome,
    measured_everywhere,
    outcome_document,
    rows_of,
    say_what_is_lacking,
    score_run,
)
from dit8.eval.shards import WHOLE
from dit8.eval.table import render_markdown, score_document, summarize
from dit8.eval.workers import draw, draw_shard
from dit8.quant.files import locked


def evaluate(config: EvaluateConfig) -> tuple[dict, str]:
    """Evaluate one job; returns its JSON document and its tables as text, reference included.

    Scorers that cannot run here or that fail stand in the document under "not_measured" and
    "failed" with the reason, which is also said on stderr, and are in no row. A shard is drawn and
    nothing else: scores compare whole runs.
    """
    job = prepare(config)
    if not job.shard.is_whole:
        return _draw_shard(job), ""
    reference = reference_of(job)
    ledger = from_root(config.results) / "scores.csv"
    upsert(ledger, SCORES, [])  # a ledger that cannot be kept is found before the first picture
    is_reference = reference.key.run_id == job.key.run_id
    if not is_reference and reference.missing(WHOLE):
        print(f"reference {reference.variant.name} comes first", file=sys.stderr)
    lacking = reference.missing(WHOLE) + (0 if is_reference else job.missing(WHOLE))
    draw(reference, None)
    reference_run = read_run(reference.folder)
    outcomes = [_score(reference, reference_run, None)]
    if not is_reference:
        draw(job, reference.key.run_id)
        run = read_run(job.folder)
        outcomes.append(_score(job, run, reference_run))
    document = _document(job) | {"drawn": lacking, "reference": shorten(reference.folder)}
    if config.archive:
        document["archive"] = shorten(pack_run(job.folder))
    document |= outcome_document(*outcomes)
    say_what_is_lacking(document)
    measured = measured_everywhere(config.scorers, *outcomes)
    rows = rows_of(ledger, [job.key.run_id, reference.key.run_id], measured)
    if rows.empty:
        return document | score_document([], job.variant.name, config.dtype), ""
    name = reference.variant.name
    summary = summarize(rows, reference=name)
    kinds = summarize_categories(rows, categories_of(reference_run.samples), reference=name)
    tables = [render_markdown(summary), render_categories(kinds, name)]
    document |= score_document(summary, job.variant.name, config.dtype)
    return document, "\n".join(filter(None, tables))


def _score(job: Job, run: Run, reference: Run | None) -> list[Outcome]:
    """Score a run alone: jobs that need the same one find the scores of the first."""
    config, name = job.config, f"{job.key.variant} {job.key.run_id}"

    def waiting() -> None:
        print(f"waiting for another process that scores {name}", file=sys.stderr)

    with locked(job.folder / "scoring", waiting):  # what is there is read inside
        ledger = from_root(config.results) / "scores.csv"
        return score_run(run, reference, config.scorers, ledger, settings_of(config))


def _draw_shard(job: Job) -> dict:
    """Draw the job's shard; says what of the run is still missing."""
    lacking = job.missing(job.shard)
    draw_shard(job, None if _is_reference(job) else reference_of(job).key.run_id)
    shards = {"drawn": lacking, "shard": str(job.shard), "missing": job.missing(WHOLE)}
    return _document(job) | shards | {"failed": {}}


def _document(job: Job) -> dict:
    document = {"variant": job.variant.name, "n": len(job.prompts), "backend": job.key.backend}
    return document | {"run_id": job.key.run_id, "pictures": shorten(job.folder)}


def _is_reference(job: Job) -> bool:
    return job.variant.name == job.config.model.reference
