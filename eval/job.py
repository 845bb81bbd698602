"""One run of an evaluation: everything it depends on, and the name that follows from it."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import yaml

from dit8.conf.paths import CONF, from_root
from dit8.conf.schema import EvaluateConfig, RecipeConfig, VariantConfig
from dit8.eval.prompt_style import styled
from dit8.eval.provenance import run_id
from dit8.eval.run import RunKey
from dit8.eval.score import Settings, configure_all
from dit8.eval.shards import Shard, parse_shard
from dit8.eval.stats import MIN_PROMPTS
from dit8.models.artifacts import Model, checkpoint_sha256, find_checkpoint, open_model
from dit8.models.engine.sampling import check_engine
from dit8.models.generate import sample_paths
from dit8.models.pipeline import Variant, resolve_device, torch_dtype
from dit8.models.prompts import first_prompts, load_prompts, prompt_file
from dit8.models.types import Prompt, Sampler, make_sampler
from dit8.quant.errors import UserError
from dit8.quant.files import content_key, files_sha256
from dit8.quant.formats.table import get_format


@dataclass(frozen=True)
class Job:
    """Everything one run depends on, and the name that follows from it.

    Attributes:
        prompts: as the prompt set has them, which is what pictures are scored against.
        drawn: as the model sees them, see `eval.prompt_style`.
        identity: what run_id is a hash of.
        shard: the part of the pictures that is drawn here.
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
    shard: Shard

    @property
    def folder(self) -> Path:
        return from_root(self.config.out) / self.key.run_id

    @property
    def record(self) -> Path:
        """Name the run's record, which is written when all its pictures are there."""
        return from_root(self.config.results) / "runs" / f"{self.key.run_id}.json"

    def missing(self, shard: Shard) -> int:
        """Count the pictures of a shard that are not there yet."""
        prompts = shard.of(self.prompts, self.batch)
        return sum(not sample_paths(prompt, self.folder)[0].exists() for prompt in prompts)


def prepare(config: EvaluateConfig) -> Job:
    """Resolve a configuration into a job; builds the checkpoint where that is allowed."""
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
    shard = parse_shard(config.shard)
    check_devices(config.hardware.devices, device)
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
        recipe=recipe_label(config.recipe) if variant.has_recipe else "none",
        engine=config.engine,
        dtype=config.dtype,
        backend=backend,
        prompt_set=prompt_set,
    )
    return Job(
        config,
        model,
        variant,
        sampler,
        tuple(prompts),
        drawn,
        checkpoint,
        batch,
        identity,
        key,
        shard,
    )


def check_devices(devices: int, device: torch.device) -> None:
    """Refuse a number of devices that this machine does not have.

    Raises:
        UserError: fewer than one, or more than the GPUs that torch sees.
    """
    if devices < 1:
        raise UserError(f"hardware.devices must be at least 1, got {devices}; use 1")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(
            f"hardware.devices must be at most {found}, the GPUs that torch sees here, got "
            f"{devices}; lower it or look at CUDA_VISIBLE_DEVICES"
        )


def recipe_label(recipe: RecipeConfig) -> str:
    """Name a recipe in the ledger, such as smoothquant or smoothquant+alpha=0.3.

    The name of a file of conf/recipe stands for what is in it, so fields that the command line
    changed follow it, in the order of the alphabet. A name without a file is the user's own.
    """
    known = recipe_config(recipe.name)
    if known is None:
        return recipe.name
    own, plain = asdict(recipe), asdict(known)
    changed = [
        f"{field}={json.dumps(own[field], separators=(',', ':'))}"
        for field in sorted(own)
        if own[field] != plain[field]
    ]
    return "+".join([recipe.name, *changed])


def variant_config(name: str) -> VariantConfig:
    """Read one file of conf/variant."""
    path = CONF / "variant" / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"variant must be one of {known}, got {name!r}; correct the name")
    return VariantConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))


def recipe_config(name: str) -> RecipeConfig | None:
    """Read one file of conf/recipe; None: there is none."""
    path = CONF / "recipe" / f"{name}.yaml"
    if not path.exists():
        return None
    return RecipeConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))


def settings_of(config: EvaluateConfig) -> Settings:
    """Return how a configuration asks to score."""
    return Settings(config.readers, config.score_text, config.scorer_options, config.overwrite)


def _model_files_sha256(folder: Path) -> str:
    """Hash every file of a model folder that can change a picture: all but its card."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".md")
    return files_sha256(files, root=folder)


def reference_of(job: Job) -> Job:
    """Return the job of the reference variant: same prompts, sampler, dtype and hardware."""
    name = job.config.model.reference
    if job.variant.name == name:
        return job
    return prepare(replace(job.config, variant=variant_config(name)))
