"""One cell of an evaluation: generate, score, keep the rows, compare with the reference."""

import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from conf.schema import EvaluateConfig
from eval.categories import categories_of, render_categories, summarize_categories
from eval.ledger import LATENCY, SCORES, upsert, write_run
from eval.prompt_style import styled
from eval.prompts import first_prompts, load_prompts
from eval.provenance import describe, run_id
from eval.records import Prompt, RunKey
from eval.runs import pack_run, read_run, write_run_record
from eval.scorer_settings import Settings, configure_all
from eval.scoring import measured_everywhere, outcome_document, rows_of, score_run
from eval.stats import MIN_PROMPTS, latency_percentiles
from eval.table import render_markdown, score_document, summarize
from models.generate import Sampler, Timing, generate
from models.ideogram4 import BRANCHES
from models.pipeline import resolve_device, torch_dtype
from models.sampling import check_engine, open_engine
from models.variants import Variant, build_variant
from quant.errors import UserError
from quant.formats.table import get_format
from quant.keys import content_key, files_sha256
from quant.stored import checkpoint_files
from scripts.cli import ROOT, from_root, say_what_is_lacking, terse, variant_config
from scripts.conversion import checkpoint_sha256, find_checkpoint
from scripts.stages import (
    Model,
    make_sampler,
    open_model,
    prompt_file,
)


@dataclass(frozen=True)
class Cell:
    """Everything one run depends on, and the name that follows from it.

    Attributes:
        prompts: as the prompt set has them, which is what pictures are scored against.
        drawn: as the model sees them, see `eval.prompt_style`.
        identity: what run_id is a hash of.
    """

    config: EvaluateConfig
    model: Model
    variant: Variant
    sampler: Sampler
    prompts: tuple[Prompt, ...]
    drawn: tuple[Prompt, ...]
    checkpoint: Path | None
    batch: int
    identity: dict
    key: RunKey

    @property
    def folder(self) -> Path:
        return from_root(self.config.out) / self.key.run_id


def prepare(config: EvaluateConfig) -> Cell:
    """Resolve a configuration into a cell; builds the checkpoint where that is allowed."""
    check_engine(config.engine, staged=config.hardware.staged)
    configure_all(config.scorers, settings_of(config))
    torch_dtype(config.dtype)
    variant = Variant(**vars(config.variant))
    device = resolve_device(config.hardware.device)
    backend = variant.backend(device)
    sampler = make_sampler(config.sampler, config.model, config.steps, config.guidance, config.size)
    path = prompt_file(config.prompts or config.model.prompts)
    prompts = first_prompts(load_prompts(path), config.n)
    if len(prompts) < MIN_PROMPTS:
        raise UserError(
            f"n must be at least {MIN_PROMPTS}, got {len(prompts)}; fewer give no interval"
        )
    drawn = tuple(styled(prompt, config.prompt_style) for prompt in prompts)
    batch = config.hardware.batch if config.batch is None else config.batch
    if batch < 1:
        raise UserError(f"batch must be at least 1, got {batch}")
    model = open_model(config.model)
    checkpoint = None
    if variant.needs_checkpoint:
        checkpoint = find_checkpoint(config, model, get_format(variant.format))
    identity = {
        "model": {"name": config.model.name, "files_sha256": _model_files_sha256(model.folder)},
        "variant": asdict(variant),
        "recipe": asdict(config.recipe) if variant.has_recipe else None,
        "sampler": asdict(sampler),
        "dtype": config.dtype,
        "companion_dtype": config.model.companion_dtype,
        "engine": config.engine,
        "backend": backend,
        "batch": batch,
    }
    prompt_set = path.stem
    if config.prompt_style != "json":  # the default stays out: runs keep the names they have
        identity["prompt_style"] = config.prompt_style
        prompt_set += f"-{config.prompt_style}"
    captions = content_key([[p.id, p.caption, list(p.texts), p.seed] for p in drawn])
    name = run_id(identity, checkpoint_sha256(checkpoint), captions)
    key = RunKey(
        run_id=name,
        model=config.model.name,
        variant=variant.name,
        recipe=config.recipe.name if variant.has_recipe else "none",
        engine=config.engine,
        dtype=config.dtype,
        backend=backend,
        prompt_set=prompt_set,
    )
    return Cell(
        config, model, variant, sampler, tuple(prompts), drawn, checkpoint, batch, identity, key
    )


def settings_of(config: EvaluateConfig) -> Settings:
    """Return how a configuration asks to score."""
    return Settings(config.readers, config.score_text, config.scorer_options, config.overwrite)


def _model_files_sha256(folder: Path) -> str:
    """Hash every file of a model folder that can change a picture: all but its card."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".md")
    return files_sha256(files, root=folder)


def reference_of(cell: Cell) -> Cell:
    """Return the cell of the reference variant: same prompts, sampler, dtype and hardware."""
    name = cell.config.model.reference
    if cell.variant.name == name:
        return cell
    return prepare(replace(cell.config, variant=variant_config(name)))


def draw(cell: Cell, reference: str | None) -> None:
    """Generate the pictures that are missing and keep record and latency of the run."""
    config, key, results = cell.config, cell.key, from_root(cell.config.results)
    write_run_record(cell.folder, key, cell.prompts, reference)
    # A run stopped after its last picture still lacks its record.
    if _complete(cell) and (results / "runs" / f"{key.run_id}.json").exists():
        return
    started, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    timing = Timing((), ()) if _complete(cell) else _draw_missing(cell)
    stages = {"image": timing.image_ms, "step": timing.step_ms}
    latency = [
        asdict(key) | {"stage": stage} | latency_percentiles(durations)
        for stage, durations in stages.items()
        if durations
    ]
    upsert(results / "latency.csv", LATENCY, latency, overwrite=True)
    record = {
        "run": asdict(key),
        "identity": cell.identity,
        "config": asdict(config),
        "checkpoint_sha256": checkpoint_sha256(cell.checkpoint),
        "model_sha256": cell.model.sha256,
        "prompts": [[p.id, p.seed] for p in cell.prompts],
        "seeds": "noise: sha256('<prompt id>/<seed>'), see models/generate.py",
        "started": started,
        "seconds": round(time.monotonic() - start, 3),
        "pictures_made": len(timing.image_ms),
        "branch_bytes": branch_bytes(cell),
        **describe(ROOT),
    }
    write_run(results / "runs", key.run_id, record)


def branch_bytes(cell: Cell) -> int | None:
    """Count the bytes of both branches' weights as the variant keeps them on disk.

    None for weights that are rounded after loading, which no file holds.
    """
    if cell.variant.format == "rounded":
        return None
    files = checkpoint_files(cell.checkpoint or cell.model.folder, BRANCHES)
    return sum(file.stat().st_size for file in files)


def _draw_missing(cell: Cell) -> Timing:
    config, key = cell.config, cell.key
    device = resolve_device(config.hardware.device)
    staged = config.hardware.staged
    pipeline = build_variant(
        cell.variant,
        cell.model.folder,
        cell.checkpoint,
        model_key=cell.model.key,
        dtype=config.dtype,
        companion_dtype=config.model.companion_dtype,
        device=torch.device("cpu") if staged else device,
    )
    engine = open_engine(config.engine, pipeline, device, staged=staged)
    with tqdm(total=len(cell.prompts), desc=f"{key.variant} {key.run_id}", unit="image") as bar:
        _, timing = generate(
            pipeline,
            cell.drawn,
            cell.sampler,
            cell.folder,
            batch=cell.batch,
            metadata=asdict(key),
            progress=bar.update,
            engine=engine,
        )
    return timing


def evaluate(config: EvaluateConfig) -> tuple[dict, str]:
    """Evaluate one cell; returns its JSON document and its tables as text, reference included.

    Scorers that cannot run here or that fail stand in the document under "not_measured" and
    "failed" with the reason, which is also said on stderr, and are in no row.
    """
    cell = prepare(config)
    reference = reference_of(cell)
    ledger = from_root(config.results) / "scores.csv"
    settings = settings_of(config)
    upsert(ledger, SCORES, [])  # a ledger that cannot be kept is found before the first picture
    is_reference = reference.key.run_id == cell.key.run_id
    if not is_reference and not _complete(reference):
        print(f"reference {reference.variant.name} comes first", file=sys.stderr)
    draw(reference, None)
    reference_run = read_run(reference.folder)
    outcomes = [score_run(reference_run, None, config.scorers, ledger, settings)]
    if not is_reference:
        draw(cell, reference.key.run_id)
        run = read_run(cell.folder)
        outcomes.append(score_run(run, reference_run, config.scorers, ledger, settings))
    document = {"variant": cell.variant.name, "n": len(cell.prompts), "backend": cell.key.backend}
    document |= {"run_id": cell.key.run_id, "pictures": terse(cell.folder)}
    document["reference"] = terse(reference.folder)
    if config.archive:
        document["archive"] = terse(pack_run(cell.folder))
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


def _complete(cell: Cell) -> bool:
    return all((cell.folder / f"{p.id}_{p.seed}.png").exists() for p in cell.prompts)
