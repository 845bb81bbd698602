"""A tiny pipeline of the real classes, on disk and loaded, in which every layer does something."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import Ideogram4Pipeline

from dit8.models.generate import denoise
from dit8.models.mini import TOY, build_pipeline, save_pipeline
from dit8.models.pipeline import load_pipeline
from dit8.models.posters import caption_json, make_poster
from dit8.models.types import Prompt, Sampler
from dit8.quant.architectures.ideogram4 import branch_modules


@torch.no_grad()
def wake(pipeline: Ideogram4Pipeline, seed: int) -> None:
    """Fill what starts at zero or one, which would hide an error: adaLN, output, norms, VAE."""
    generator = torch.Generator().manual_seed(seed)
    for branch in branch_modules(pipeline).values():
        for name, parameter in branch.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif "adaln_modulation" in name or name.startswith("final_layer"):
                parameter.normal_(0, 0.1, generator=generator)
    for name, parameter in pipeline.vae.named_parameters():
        if "norm" in name:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    pipeline.vae.bn.running_mean.normal_(0, 0.5, generator=generator)
    pipeline.vae.bn.running_var.uniform_(0.5, 2.0, generator=generator)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """A diffusers folder of toy size; read only."""
    pipeline = build_pipeline(TOY, seed=0)
    wake(pipeline, seed=1)
    folder = tmp_path_factory.mktemp("toy") / "mini"
    save_pipeline(pipeline, folder)
    return folder


@pytest.fixture(scope="session")
def toy(toy_folder) -> Ideogram4Pipeline:
    """The folder loaded in fp32; read only."""
    return load_pipeline(toy_folder, "float32", "float32", torch.device("cpu"))


@pytest.fixture(scope="session")
def toy_prompts() -> list[Prompt]:
    """Five captions of different lengths."""
    tiers = ("easy", "medium", "hard", "easy", "medium")
    posters = [make_poster(tier, seed, held_out=True) for seed, tier in enumerate(tiers)]
    return [Prompt(f"toy-{p.seed}", caption_json(p), p.texts, p.seed) for p in posters]


@pytest.fixture(scope="session")
def small_sampler() -> Sampler:
    """Two steps, the second unguided, at 64 x 64 px: a hundredth of a second a picture."""
    return Sampler("small", 2, 3.0, 1.0, 1, 0.0, 1.75, 64, 80)


@pytest.fixture(scope="session")
def record_branches(small_sampler, toy_prompts):
    """Return a function: pipeline -> what went in and out of each branch, call by call."""

    def record(pipeline) -> dict[str, list[SimpleNamespace]]:
        calls: dict[str, list[SimpleNamespace]] = {}
        handles = []
        for branch, module in branch_modules(pipeline).items():
            kept = calls[branch] = []

            def keep(_, __, inputs, output, kept=kept):
                kept.append(SimpleNamespace(inputs=inputs, output=output[0]))

            handles.append(module.register_forward_hook(keep, with_kwargs=True))
        try:
            denoise(pipeline, toy_prompts[:2], small_sampler)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    return record


@pytest.fixture(scope="session")
def stock_velocity():
    """Return a function: a branch's own forward, its text padded on the left and masked."""

    @torch.no_grad()
    def run(module, texts, grid, latents, time: float, pad: int = 3) -> torch.Tensor:
        lengths = [0] * len(latents) if texts is None else [len(text) for text in texts]
        slots = max(lengths) + (0 if texts is None else pad)
        layout = Ideogram4Pipeline._prepare_ids(lengths, *grid, slots, torch.device("cpu"))
        features = torch.zeros(len(latents), slots + latents.shape[1], module.llm_cond_norm.dim[0])
        for sample, length in enumerate(lengths):
            if length:
                features[sample, slots - length : slots] = texts[sample]
        noise = torch.nn.functional.pad(latents, (0, 0, slots, 0))
        position_ids, segment_ids, indicator = (part.to(module.device) for part in layout)
        (velocity,) = module(
            hidden_states=noise.to(module.device, module.dtype),
            timestep=torch.full((len(latents),), time).to(module.device, module.dtype),
            encoder_hidden_states=features.to(module.device, module.dtype),
            position_ids=position_ids,
            segment_ids=segment_ids,
            indicator=indicator,
            return_dict=False,
        )
        return velocity[:, slots:].float()

    return run
