"""A two-layer model of the real classes, its inputs, and its calibration."""

import copy
import functools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from diffusers import Ideogram4Transformer2DModel

from dit8.quant.architectures.ideogram4 import BRANCHES, architecture, branch_modules
from dit8.quant.calibrate import calibrate
from dit8.quant.checkpoint.read import MemorySource
from dit8.quant.checkpoint.write import Origin, checkpoint_name, save_checkpoint
from dit8.quant.formats.table import FORMATS
from dit8.quant.recipe import resolve_recipe
from dit8.quant.types import Recipe

LAYERS, HIDDEN, FFN, TEXT, CHANNELS = 2, 128, 256, 13 * 16, 16
TEXT_TOKENS, GRID, STEPS = 5, 4, 3


@dataclass(frozen=True)
class Prompt:
    id: str
    seed: int


class Ideogram4Pipeline(SimpleNamespace):
    """Branches and nothing else, under the name by which a stock pipeline is known."""


@functools.cache
def first_branch(seed):
    torch.manual_seed(seed)
    branch = Ideogram4Transformer2DModel(
        in_channels=CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=64,
        num_attention_heads=2,
        intermediate_size=FFN,
        adaln_dim=64,
        llm_features_dim=TEXT,
        rope_theta=100,
        mrope_section=(12, 10, 10),
    )
    for name, parameter in branch.named_parameters():
        if "norm" in name:  # as made they are ones, which would hide a fold in the wrong place
            parameter.data.uniform_(0.5, 1.5)
    return branch.eval()


def make_branch(seed, dtype=torch.float32):
    return copy.deepcopy(first_branch(seed)).to(dtype)  # a fifth of the time of making it


def make_inputs(seed, *, padding=0, has_text=True, dtype=torch.float32, step=0):
    """Lay out [padding][text][image] as the pipeline does; the content ignores the padding."""
    generator = torch.Generator().manual_seed(seed)
    text, image = TEXT_TOKENS if has_text else 0, GRID * GRID
    features = torch.randn(1, TEXT_TOKENS, TEXT, generator=generator)
    latents = torch.randn(1, image, CHANNELS, generator=generator)
    start, length = padding + text, padding + text + image
    rows = torch.arange(image)
    positions = torch.zeros(1, length, 3, dtype=torch.long)
    positions[0, padding:start] = torch.arange(text)[:, None]
    image_positions = torch.stack([torch.zeros_like(rows), rows // GRID, rows % GRID], dim=1)
    positions[0, start:] = image_positions + 65536
    indicator = torch.zeros(1, length, dtype=torch.long)
    indicator[0, padding:start], indicator[0, start:] = 3, 2
    hidden, encoder = torch.zeros(1, length, CHANNELS), torch.zeros(1, length, TEXT)
    hidden[:, start:] = latents
    if has_text:
        encoder[:, padding:start] = features
    return {
        "hidden_states": hidden.to(dtype),
        "timestep": torch.full((1,), (step + 1) / (STEPS + 1)).to(dtype),
        "encoder_hidden_states": encoder.to(dtype),
        "position_ids": positions,
        "segment_ids": torch.where(indicator == 0, -1, 1),
        "indicator": indicator,
        "return_dict": False,
    }


@torch.no_grad()
def run_branch(branch, *, seed=7, padding=0, has_text=True):
    inputs = make_inputs(seed, padding=padding, has_text=has_text, dtype=branch.dtype)
    return branch(**inputs)[0][:, -GRID * GRID :]


@torch.no_grad()
def run_steps(pipeline, prompt, padding=0):
    for step in range(STEPS):
        cond = make_inputs(prompt.seed + 100 * step, padding=padding, step=step)
        uncond = make_inputs(prompt.seed + 100 * step, has_text=False, step=step)
        pipeline.transformer(**cond)
        pipeline.unconditional_transformer(**uncond)


def make_pipeline(dtype=torch.float32):
    return Ideogram4Pipeline(
        transformer=make_branch(0, dtype), unconditional_transformer=make_branch(1, dtype)
    )


def make_sources(dtype=torch.float32):
    modules = branch_modules(make_pipeline(dtype))
    return {branch: MemorySource(module.state_dict()) for branch, module in modules.items()}


def save(folder, stats=None, *, format="w8a8", sources=None, model_key="tiny", **fields):
    """Write a checkpoint of the tiny pipeline; returns what a user would load."""
    sources, target = sources or make_sources(), FORMATS[format]
    resolved = None
    if target.has_recipe:
        recipe = Recipe("test", **fields)
        described = architecture(LAYERS)
        resolved = resolve_recipe(recipe, described, stats, sources, model_key=model_key)
    configs = {branch: {"num_layers": LAYERS} for branch in BRANCHES}
    origin = Origin(model_key, "0" * 64, BRANCHES, configs)
    save_checkpoint(folder, target, sources, architecture(LAYERS), origin, resolved, stats)
    return folder / checkpoint_name(target)


@pytest.fixture(scope="session")
def tiny():
    """The helpers of this file, and the two-layer architecture."""
    return SimpleNamespace(
        architecture=architecture(LAYERS),
        make_branch=make_branch,
        make_pipeline=make_pipeline,
        make_sources=make_sources,
        save=save,
        run_branch=run_branch,
        run_steps=run_steps,
        steps=STEPS,
        image_tokens=GRID * GRID,
        text_tokens=TEXT_TOKENS,
        prompts=[Prompt("a", 1), Prompt("b", 2), Prompt("c", 3)],
        branch_modules=branch_modules,
    )


@pytest.fixture(scope="session")
def tiny_stats(tmp_path_factory):
    """Complete statistics of the pipeline that `tiny.make_pipeline()` makes; read only."""
    pipeline = make_pipeline()
    return calibrate(
        branch_modules(pipeline),
        architecture(LAYERS),
        lambda prompt: run_steps(pipeline, prompt),
        [Prompt("a", 1), Prompt("b", 2)],
        tmp_path_factory.mktemp("stats") / "stats.safetensors",
        model_key="tiny",
        prompts_key="two",
        sample_steps=(1,),
    )
