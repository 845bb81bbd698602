"""Find or make what lies on disk between a model and its pictures: statistics, checkpoints.

Files are content-addressed, so a stage whose result exists is skipped and a changed configuration
never finds a stale one:

    <checkpoints>/<model>/calibration-<key>.safetensors
    <checkpoints>/<model>/<recipe or format>-<key>/

A checkpoint's folder exists only complete; a changed model, calibration, recipe or LoRA has another
key.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from dit8.conf.paths import from_root, shorten
from dit8.conf.schema import CalibrateConfig, ConvertConfig, ModelConfig
from dit8.models.auto_recipe import resolve_auto
from dit8.models.generate import check_length, denoise
from dit8.models.model_folder import INDEX, components
from dit8.models.offload import staged
from dit8.models.pipeline import load_pipeline, resolve_device
from dit8.models.planted import check_planted, plant_model
from dit8.models.prompts import first_prompts, load_prompts, prompt_file
from dit8.models.types import Prompt, Sampler, make_sampler
from dit8.quant.architectures import architecture_of
from dit8.quant.architectures.ideogram4 import BRANCHES, branch_modules, source_sha256
from dit8.quant.calibrate import KIND, calibrate, load_stats
from dit8.quant.checkpoint.read import BranchSource, open_sources
from dit8.quant.checkpoint.stored import checkpoint_files, read_header
from dit8.quant.checkpoint.write import Origin, checkpoint_name, save_checkpoint
from dit8.quant.errors import UserError
from dit8.quant.files import content_key, file_sha256, files_sha256, locked, writing
from dit8.quant.formats.table import Format
from dit8.quant.lora import MergedSource, read_lora
from dit8.quant.recipe import quantized_linears, resolve_recipe
from dit8.quant.smoothquant import search_alphas
from dit8.quant.types import ActStats, Architecture, LayerReport, ResolvedRecipe, make_recipe

if TYPE_CHECKING:
    from diffusers import Ideogram4Pipeline

PLAN_TFLOPS = 30.0  # half of the 65.5 in bf16 that arXiv 2606.14598 measured on an RTX 3090


@dataclass(frozen=True)
class Model:
    """A model on disk."""

    config: ModelConfig
    folder: Path
    sha256: str

    @property
    def key(self) -> str:
        return self.sha256[:12]


def open_model(config: ModelConfig) -> Model:
    """Find a model's folder and hash its weights; a planted model is derived when missing."""
    folder = from_root(config.path)
    plant = {} if config.plant is None else asdict(config.plant)
    source = plant.pop("source", None)
    index = folder / INDEX
    if plant and not index.exists():
        if not config.build_missing:
            raise UserError(
                f"model {config.name} is not in {shorten(folder)}; "
                f"make it with scripts/plant_outliers.py model={config.name}"
            )
        with locked(folder):  # seconds; who waited finds it there
            if not index.exists():
                where = shorten(folder)
                print(f"model {config.name} is missing, planting it in {where}", file=sys.stderr)
                plant_model(from_root(source), folder, **plant)
    if plant:
        check_planted(folder, **plant)
    if not index.is_file():
        got = f"no {INDEX} in it" if folder.is_dir() else "a file" if folder.exists() else "nothing"
        raise UserError(
            f"model {config.name} must be a diffusers folder at {shorten(folder)}, got {got} "
            "there; use model=mini, or put the weights of this model there"
        )
    components(index.read_bytes(), shorten(index))  # before gigabytes are hashed
    return Model(config, folder, source_sha256(folder))


def model_configs(model: Model) -> dict[str, dict]:
    """Read the configuration of every branch."""
    return {
        branch: json.loads((model.folder / subfolder / "config.json").read_text(encoding="utf-8"))
        for branch, subfolder in BRANCHES.items()
    }


def model_architecture(model: Model) -> Architecture:
    """Describe the branches; all have the same architecture."""
    return architecture_of(next(iter(model_configs(model).values())))


def calibration_prompts(config: CalibrateConfig) -> list[Prompt]:
    """Load the calibration captions."""
    path = prompt_file(config.calibration.prompts or config.model.calibration)
    return first_prompts(load_prompts(path), config.calibration.n)


def calibration_key(config: CalibrateConfig) -> str:
    """Hash everything that moves an activation, the weights aside."""
    sampler = make_sampler(config.calibration.sampler, config.model)
    return content_key(
        {
            "prompts": [[p.id, p.caption, p.seed] for p in calibration_prompts(config)],
            "sampler": asdict(sampler),
            "dtype": config.calibration.dtype,
            "companion_dtype": config.model.companion_dtype,
            "samples": config.calibration.samples,
            "kind": KIND,
        }
    )


def calibration_path(config: CalibrateConfig, model: Model) -> Path:
    """Name the statistics file of a model and its calibration."""
    key = content_key([model.key, calibration_key(config)])
    return from_root(config.checkpoints) / config.model.name / f"calibration-{key}.safetensors"


def calibration_plan(
    pipeline: "Ideogram4Pipeline", config: CalibrateConfig, prompts: int, sampler: Sampler
) -> str:
    """Say what a calibration will take, before it starts: memory from sizes, time from FLOPs.

    2 FLOP per weight and token, both branches, attention left out (13 % at full size). The time is
    for a device that sustains PLAN_TFLOPS; the progress bar shows the true one after a prompt.
    """
    modules = {"text encoder": pipeline.text_encoder, **branch_modules(pipeline)}
    sizes = {name: _bytes(module) for name, module in modules.items()}
    resident = max(sizes.values()) if config.hardware.staged else sum(sizes.values())
    linears = [m for m in pipeline.transformer.modules() if hasattr(m, "in_features")]
    weights = sum(linear.in_features * linear.out_features for linear in linears)
    tokens = 2 * (sampler.size_px // 16) ** 2 + sampler.max_sequence_length
    flop = 2 * weights * tokens * sampler.steps * prompts
    listed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items())
    return (
        f"calibrate: {prompts} prompts x {sampler.steps} steps; {listed}; "
        f"{resident / 1e9:.2f} GB of weights on the device at a time, activations on top; "
        f"{flop / 1e15:.3g} PFLOP, {flop / 1e12 / PLAN_TFLOPS / 60:.2g} min at {PLAN_TFLOPS:g} "
        "TFLOPS sustained"
    )


def _bytes(module: torch.nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def calibrate_model(config: CalibrateConfig, model: Model) -> tuple[Path, ActStats]:
    """Take activation statistics, or continue or read what is there."""
    path = calibration_path(config, model)
    prompts = calibration_prompts(config)
    if path.exists():
        stats = load_stats(path)
        if len(stats.done) == stats.total:
            return path, stats
    with writing(path):  # refused here, not minutes later when the first prompt is done
        path.parent.mkdir(parents=True, exist_ok=True)
    sampler = make_sampler(config.calibration.sampler, config.model)
    device = resolve_device(config.hardware.device)
    home = torch.device("cpu") if config.hardware.staged else device
    pipeline = load_pipeline(
        model.folder, config.calibration.dtype, config.model.companion_dtype, home
    )
    check_length(pipeline.tokenizer, prompts, sampler.max_sequence_length)
    print(calibration_plan(pipeline, config, len(prompts), sampler), file=sys.stderr)
    stage = staged(pipeline, device) if config.hardware.staged else nullcontext()
    with stage, tqdm(total=len(prompts), desc="calibrate", unit="prompt") as bar:

        def progress(done: int, _: int) -> None:
            bar.update(done - bar.n)

        stats = calibrate(
            branch_modules(pipeline),
            model_architecture(model),
            lambda prompt: denoise(pipeline, [prompt], sampler, decode=False),
            prompts,
            path,
            model_key=model.key,
            prompts_key=calibration_key(config),
            sample_steps=sample_steps(config.calibration.samples, len(prompts), sampler.steps),
            progress=progress,
        )
    return path, stats


def sample_steps(samples: int, prompts: int, steps: int) -> tuple[int, ...]:
    """Spread the rows that a calibration keeps evenly over prompts and steps."""
    per_prompt = min(steps, math.ceil(samples / prompts))
    return tuple((2 * index + 1) * steps // (2 * per_prompt) for index in range(per_prompt))


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
        prompts = calibration_prompts(config)
        sampler = make_sampler(config.calibration.sampler, config.model)
        return resolve_auto(
            config, recipe, model.folder, described, stats, sources, prompts, sampler
        )
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
