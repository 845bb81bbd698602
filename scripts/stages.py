"""The stages that several scripts share: open a model, calibrate it, quantize it.

Files are content-addressed, so a stage whose result exists is skipped and a changed configuration
never finds a stale one:

    <checkpoints>/<model>/calibration-<key>.safetensors
    <checkpoints>/<model>/<recipe>-<key>/model.safetensors, recipe.json
"""

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from conf.schema import CalibrateConfig, ModelConfig, QuantizeConfig, SamplerConfig
from eval.prompts import first_prompts, load_prompts
from eval.provenance import sha256_file
from eval.records import Prompt
from models.generate import Sampler, check_length, denoise
from models.ideogram4 import BRANCHES, architecture, branch_modules, source_sha256
from models.pipeline import load_pipeline, resolve_device
from models.planted import check_planted, plant_model
from quant.act_stats import load_stats
from quant.calibrate import calibrate
from quant.checkpoint import read_recipe, save_checkpoint
from quant.errors import UserError
from quant.keys import content_key
from quant.quantize import quantize_branch
from quant.recipe import quantized_linears, resolve_recipe
from quant.types import ActStats, Architecture, LayerReport, Recipe, ResolvedRecipe
from scripts.cli import from_root, terse

ENGINES = ("stock",)


@dataclass(frozen=True)
class Model:
    """A model on disk."""

    config: ModelConfig
    folder: Path
    sha256: str

    @property
    def key(self) -> str:
        return self.sha256[:12]


@dataclass(frozen=True)
class Quantized:
    """A checkpoint and what is known of it; `reports` is empty when it was there before."""

    path: Path
    resolved: ResolvedRecipe
    linears: int
    reports: tuple[LayerReport, ...]
    seconds: float


def open_model(config: ModelConfig) -> Model:
    """Find a model's folder and hash its weights; a planted model is derived when missing."""
    folder = from_root(config.path)
    plant = {} if config.plant is None else asdict(config.plant)
    source = plant.pop("source", None)
    if plant and (folder / "model_index.json").exists():
        check_planted(folder, **plant)
    elif plant:
        if not config.build_missing:
            raise UserError(
                f"model {config.name} is not in {terse(folder)}; "
                f"make it with scripts/plant_outliers.py model={config.name}"
            )
        print(f"model {config.name} is missing, planting it in {terse(folder)}", file=sys.stderr)
        plant_model(from_root(source), folder, **plant)
    if not (folder / "model_index.json").exists():
        raise UserError(
            f"model {config.name} must be a diffusers folder at {terse(folder)}, got nothing "
            "there; use model=mini, or put the weights of this model there"
        )
    return Model(config, folder, source_sha256(folder))


def check_engine(name: str) -> None:
    """Refuse an engine that does not exist."""
    if name not in ENGINES:
        raise UserError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")


def model_architecture(model: Model) -> Architecture:
    """Read the number of blocks; both branches have the same."""
    text = (model.folder / BRANCHES["conditional"] / "config.json").read_text(encoding="utf-8")
    return architecture(json.loads(text)["num_layers"])


def branch_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Load one branch's tensors, sharded or not, in the dtype they are stored in."""
    return {
        k: v for shard in sorted(folder.glob("*.safetensors")) for k, v in load_file(shard).items()
    }


def prompt_file(name: str) -> Path:
    """Find a prompt set by the name of its file in prompts/, or by its path."""
    known = from_root("prompts") / f"{name}.jsonl"
    path = known if known.exists() else Path(name)
    if not path.exists():
        sets = ", ".join(sorted(p.stem for p in from_root("prompts").glob("*.jsonl")))
        raise UserError(f"prompts must be one of {sets}, or a path to a jsonl file, got {name!r}")
    return path


def make_sampler(
    preset: SamplerConfig,
    model: ModelConfig,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
) -> Sampler:
    """Join a preset, a model's own settings and what the command line overrides."""
    return Sampler(
        name=preset.name,
        steps=preset.steps if steps is None else steps,
        guidance=model.guidance if guidance is None else guidance,
        final_guidance=model.final_guidance if guidance is None else guidance,
        final_steps=preset.final_steps,
        mu=preset.mu,
        std=preset.std,
        size_px=model.size if size is None else size,
        max_sequence_length=model.max_sequence_length,
    )


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
        }
    )


def calibration_path(config: CalibrateConfig, model: Model) -> Path:
    """Name the statistics file of a model and its calibration."""
    key = content_key([model.key, calibration_key(config)])
    return from_root(config.checkpoints) / config.model.name / f"calibration-{key}.safetensors"


def calibrate_model(config: CalibrateConfig, model: Model) -> tuple[Path, ActStats]:
    """Take activation statistics, or continue or read what is there."""
    path = calibration_path(config, model)
    prompts = calibration_prompts(config)
    if path.exists():
        stats = load_stats(path)
        if len(stats.done) == stats.total:
            return path, stats
    sampler = make_sampler(config.calibration.sampler, config.model)
    device = resolve_device(config.hardware.device)
    pipeline = load_pipeline(
        model.folder, config.calibration.dtype, config.model.companion_dtype, device
    )
    check_length(pipeline, prompts, sampler.max_sequence_length)
    with tqdm(total=len(prompts), desc="calibrate", unit="prompt") as bar:

        def progress(done: int, _: int) -> None:
            bar.update(done - bar.n)

        stats = calibrate(
            branch_modules(pipeline),
            model_architecture(model),
            lambda prompt: denoise(pipeline, [prompt], sampler),
            prompts,
            path,
            model_key=model.key,
            prompts_key=calibration_key(config),
            progress=progress,
        )
    return path, stats


def make_recipe(config: QuantizeConfig) -> Recipe:
    """Turn the configuration group into the core's recipe."""
    return Recipe(**asdict(config.recipe))


def checkpoint_path(config: QuantizeConfig, model: Model) -> Path:
    """Name the checkpoint of a model, a calibration and a recipe."""
    recipe = make_recipe(config)
    key = content_key([model.key, calibration_key(config), asdict(recipe)])
    folder = from_root(config.checkpoints) / config.model.name / f"{recipe.name}-{key}"
    return folder / "model.safetensors"


def quantize_model(config: QuantizeConfig, model: Model) -> Quantized:
    """Make the checkpoint of a recipe, calibrating first if needed; keep one that exists."""
    start = time.monotonic()
    path = checkpoint_path(config, model)
    if path.exists():
        resolved = read_recipe(path)
        linears = sum(
            len(quantized_linears(model_architecture(model), resolved, b)) for b in BRANCHES
        )
        return Quantized(path, resolved, linears, (), time.monotonic() - start)
    recipe = make_recipe(config)
    stats = None
    if recipe.alpha is not None or recipe.protect != 0:
        _, stats = calibrate_model(config, model)
    branch_architecture = model_architecture(model)
    states = {branch: branch_weights(model.folder / a) for branch, a in BRANCHES.items()}
    resolved = resolve_recipe(recipe, branch_architecture, stats, states, model_key=model.key)
    branches, reports = {}, []
    for branch in tqdm(states, desc="quantize", unit="branch"):
        quantized = quantize_branch(states[branch], branch_architecture, branch, resolved, stats)
        branches[branch] = quantized.tensors
        reports += quantized.reports
    save_checkpoint(path, branches, resolved, source_sha256=model.sha256)
    linears = sum(not report.protected for report in reports)
    return Quantized(path, resolved, linears, tuple(reports), time.monotonic() - start)


def find_checkpoint(config: QuantizeConfig, model: Model) -> Path:
    """Return a variant's checkpoint; a missing one is built for models where that is cheap."""
    path = checkpoint_path(config, model)
    if path.exists():
        return path
    if not config.model.build_missing:
        raise UserError(
            f"checkpoint {terse(path)} is missing; make it with "
            f"python scripts/quantize.py model={config.model.name} recipe={config.recipe.name}"
        )
    print(f"checkpoint {terse(path)} is missing, building it", file=sys.stderr)
    return quantize_model(config, model).path


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def checkpoint_sha256(path: Path | None) -> str | None:
    """Hash a checkpoint; None for a variant without one."""
    return None if path is None else sha256_file(path)
