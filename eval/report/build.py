"""Make the report of some runs: what the other modules find, put together as one page.

Nothing is decided here. What could not be measured is said on the page, with the way to get it.
"""

from pathlib import Path

from dit8.eval.reading import obstacle as reading_obstacle
from dit8.eval.report import LIMIT_MB
from dit8.eval.report.data import Page, Speed
from dit8.eval.report.gallery import Readings, lay_out
from dit8.eval.report.judge import RULES, Margins, judge
from dit8.eval.report.load import Evaluation
from dit8.eval.report.origins import describe_origins, page_facts, weight_sizes
from dit8.eval.report.pictures import MEGABYTE
from dit8.eval.report.readings import read_run_texts
from dit8.eval.report.render import write_page
from dit8.eval.score import MEASURED

STAGES = ("image", "step")
CAVEAT_OF_THE_MINI = (
    "These are posters of the bundled mini, a small model that draws nothing else. Its scores say "
    "whether a variant keeps what this model does, and whether the laboratory works; they say "
    "nothing about Ideogram 4, about photographs, or about how people would judge."
)


def make_report(
    evaluation: Evaluation,
    out: Path,
    *,
    margins: Margins,
    limit_mb: float = LIMIT_MB,
    readers: int = 1,
) -> tuple[Path, Page]:
    """Write <out>/report.html and its plots.

    Args:
        evaluation: of `eval.report.load`.
        margins: scorer -> margin, declared beforehand.
        limit_mb: for all pictures of the page, in MB of 10^6 bytes.
        readers: processes that read texts.

    Returns:
        path of the HTML file, and what it says.

    Raises:
        UserError: pictures that are damaged or do not fit, fewer than three prompts, a folder that
            cannot be written.
    """
    page = make_page(evaluation, margins, limit_mb * MEGABYTE, readers)
    return write_page(page, out), page


def make_page(
    evaluation: Evaluation, margins: Margins, limit_bytes: float, readers: int = 1
) -> Page:
    """Put together everything the page says."""
    judged = judge(evaluation, margins)
    readings, notes = _read(evaluation, readers)
    measures = [table.measure for table in judged.tables]
    gallery = lay_out(evaluation, measures, readings, limit_bytes)
    reference = evaluation.reference
    sizes = weight_sizes(evaluation)
    if not sizes:
        notes.append(
            "Quality over memory is not drawn: the records of these runs do not hold the size of "
            "their weights; draw them again with scripts/evaluate.py."
        )
    return Page(
        title=f"{reference.key.model}, {reference.key.prompt_set}: "
        f"{_count(len(evaluation.variants), 'variant')} against {reference.label}",
        facts=page_facts(evaluation),
        caveat=CAVEAT_OF_THE_MINI if reference.key.model.startswith("mini") else "",
        reference=reference.label,
        verdicts=judged.verdicts,
        tables=judged.tables,
        categories=judged.categories,
        speeds=_speeds(evaluation),
        sizes=sizes,
        exhibits=gallery.exhibits,
        ranked_by=gallery.ranked_by,
        gallery_note=gallery.note,
        origins=describe_origins(evaluation),
        notes=(*_unmeasured(evaluation), *judged.notes, *notes),
        rules=RULES,
    )


def _read(evaluation: Evaluation, readers: int) -> tuple[Readings, list[str]]:
    """Read all pictures that are asked for texts, or tell why not."""
    if not any(sample.texts for sample in evaluation.reference.run.samples):
        return {}, []
    obstacle = reading_obstacle()
    if obstacle is not None:
        return {}, [f"The texts in the pictures were not read: {obstacle}"]
    return {c.label: read_run_texts(c.run, readers) for c in evaluation.columns}, []


def _unmeasured(evaluation: Evaluation) -> list[str]:
    """Say of every scorer that some run lacks why, once for all runs with the same reason."""
    lacking: dict[tuple[str, str, str], list[str]] = {}
    for column in evaluation.columns:
        for name, entry in column.scorers.items():
            if entry["status"] != MEASURED and name not in column.scores:
                key = (name, entry["status"], entry.get("reason", ""))
                lacking.setdefault(key, []).append(column.label)
    return [
        f"{name} {status} ({', '.join(labels)}): {reason}"
        for (name, status, reason), labels in lacking.items()
    ]


def _speeds(evaluation: Evaluation) -> tuple[Speed, ...]:
    speeds = []
    for stage in STAGES:
        base = evaluation.reference.latency.get(stage)
        for column in evaluation.columns:
            row = column.latency.get(stage)
            if row is None:
                continue
            ratio = None if base is None else row["p50_ms"] / base["p50_ms"]
            times = (row["p20_ms"], row["p50_ms"], row["p80_ms"])
            speeds.append(Speed(column.label, stage, int(row["n"]), *times, ratio))
    return tuple(speeds)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
