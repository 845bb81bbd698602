"""The stage that makes checkpoints: a model in one of the formats, int8 ones under a recipe.

Checkpoints are content-addressed: <checkpoints>/<model>/<recipe or format>-<key>/ exists only
complete, and a changed model, calibration, recipe or LoRA has another key.
"""

import math
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from dit8.conf.paths import from_root, shorten
from dit8.conf.schema import ConvertConfig
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.checkpoint.read import BranchSource, open_sources
from dit8.quant.checkpoint.stored import checkpoint_files, read_header
from dit8.quant.checkpoint.write import Origin, checkpoint_name, save_checkpoint
from dit8.quant.errors import UserError
from dit8.quant.files import content_key, file_sha256, files_sha256, locked
from dit8.quant.formats.table import Format
from dit8.quant.lora import MergedSource, read_lora
from dit8.quant.recipe import quantized_linears, resolve_recipe
from dit8.quant.smoothquant import search_alphas
from dit8.quant.types import ActStats, Architecture, LayerReport, ResolvedRecipe
from dit8.scripts.auto_recipe import resolve_auto
from dit8.scripts.cli import make_recipe
from dit8.scripts.stages import (
    Model,
    calibrate_model,
    calibration_key,
    model_architecture,
    model_configs,
)


@dataclass(frozen=True)
class Quantized:
    """A checkpoint and what is known of it; `reports` is empty when it was there before."""

    path: Path
    resolved: ResolvedRecipe | None  # None for formats without a recipe
    linears: int  # quantized, both branches
    reports: tuple[LayerReport, ...]
    size_bytes: int
    seconds: float


def checkpoint_path(config: ConvertConfig, model: Model, target: Format) -> Path:
    """Name the checkpoint of a model, a format, and for int8 formats a calibration and a recipe."""
    label, content = target.name, [model.key, target.name]
    if config.lora is not None:
        content.append([file_sha256(from_root(config.lora)), config.lora_scale])
    if target.has_recipe:
        recipe = make_recipe(config.recipe)
        label = recipe.name if target.name == "w8a8" else f"{target.name}-{recipe.name}"
        content.append(asdict(recipe))
        if recipe.needs_stats:
            content.append(calibration_key(config))
    folder = from_root(config.checkpoints) / config.model.name
    return folder / f"{label}-{content_key(content)}"


def checkpoint_file(folder: Path, target: Format) -> Path:
    """Name what a user passes on: the one file of a format, or the folder of several."""
    name = checkpoint_name(target)
    return folder / name if name else folder


def _finished_checkpoint(folder: Path, target: Format) -> Path:
    """Name the file of a folder that is there; folders appear whole, so one that is not was cut."""
    path = checkpoint_file(folder, target)
    if not path.exists():
        raise UserError(
            f"checkpoint {shorten(folder)} must hold {path.name}, got a folder without it; delete "
            "it and start again"
        )
    return path


def quantize_model(config: ConvertConfig, model: Model, target: Format) -> Quantized:
    """Make the checkpoint of a format and recipe, calibrating first if needed; keep an old one."""
    start = time.monotonic()
    folder = checkpoint_path(config, model, target)

    def waiting() -> None:
        print(
            f"waiting for another process that makes a checkpoint of {config.model.name}",
            file=sys.stderr,
        )

    # One at a time, since those of a model share its calibration; who waited finds it finished.
    with nullcontext() if folder.exists() else locked(folder.parent / "building", waiting):
        if not folder.exists():
            return _convert(config, model, target, folder, start)
    found = read_header(_finished_checkpoint(folder, target), BRANCHES)
    return _quantized(folder, target, found.resolved, model_architecture(model), (), start)


def _convert(
    config: ConvertConfig, model: Model, target: Format, folder: Path, start: float
) -> Quantized:
    described = model_architecture(model)
    stats = None
    if target.has_recipe and make_recipe(config.recipe).needs_stats:
        _, stats = calibrate_model(config, model)
    with open_sources(model.folder, described, BRANCHES) as plain:
        sources, merged = plain, None
        if config.lora is not None:
            shapes = {branch: source.shapes for branch, source in plain.items()}
            lora = read_lora(from_root(config.lora), described, BRANCHES, shapes)
            sources = {b: MergedSource(s, lora, b, config.lora_scale) for b, s in plain.items()}
            merged = f"{file_sha256(from_root(config.lora))[:12]} x {config.lora_scale:g}"
        resolved = None
        if target.has_recipe:
            resolved = decide(config, model, described, stats, sources)
        values = sum(math.prod(shape) for s in sources.values() for shape in s.shapes.values())
        with tqdm(total=values, desc=folder.name, unit="weight", unit_scale=True) as bar:
            reports = save_checkpoint(
                folder,
                target,
                sources,
                described,
                Origin(model.key, model.sha256, BRANCHES, model_configs(model), merged),
                resolved,
                stats,
                progress=bar.update,
            )
    return _quantized(folder, target, resolved, described, reports, start)


def decide(
    config: ConvertConfig,
    model: Model,
    described: Architecture,
    stats: ActStats | None,
    sources: Mapping[str, BranchSource],
) -> ResolvedRecipe:
    """Resolve the recipe: by rule, by searching the smoothing strengths, or by measured damage."""
    recipe = make_recipe(config.recipe)
    if recipe.method == "auto":
        return resolve_auto(config, recipe, model, described, stats, sources)
    resolved = resolve_recipe(recipe, described, stats, sources, model_key=model.key)
    if recipe.alpha_grid:
        resolved = search_alphas(resolved, described, stats, sources)
    return resolved


def _quantized(
    folder: Path,
    target: Format,
    resolved: ResolvedRecipe | None,
    described: Architecture,
    reports: tuple[LayerReport, ...],
    start: float,
) -> Quantized:
    linears = len(BRANCHES) * len(described.stored)
    if resolved is not None:
        linears = sum(len(quantized_linears(described, resolved, b)) for b in BRANCHES)
    path = checkpoint_file(folder, target)
    size = sum(file.stat().st_size for file in checkpoint_files(path, BRANCHES))
    return Quantized(path, resolved, linears, reports, size, time.monotonic() - start)


def find_checkpoint(config: ConvertConfig, model: Model, target: Format) -> Path:
    """Return a variant's checkpoint; a missing one is built for models where that is cheap."""
    folder = checkpoint_path(config, model, target)
    if folder.exists():
        return _finished_checkpoint(folder, target)
    if not config.model.build_missing:
        recipe = f" recipe={config.recipe.name}" if target.has_recipe else ""
        raise UserError(
            f"checkpoint {shorten(folder)} is missing; make it with python scripts/quantize.py "
            f"model={config.model.name} format={target.name}{recipe}"
        )
    print(f"checkpoint {shorten(folder)} is missing, building it", file=sys.stderr)
    return quantize_model(config, model, target).path


def checkpoint_sha256(path: Path | None) -> str | None:
    """Hash a checkpoint's weight files; None for a variant without one."""
    if path is None:
        return None
    if path.is_file():
        return file_sha256(path)
    return files_sha256(checkpoint_files(path, BRANCHES), root=path)
