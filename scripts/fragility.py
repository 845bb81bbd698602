"""Profile what every linear of a model suffers from int8, step by step.

    python scripts/fragility.py                                   # the mini, 2 captions, 20 steps
    python scripts/fragility.py model=mini_planted hardware=cuda n=16
    python scripts/fragility.py model=ideogram4 hardware=cuda hardware.batch=1 latents=false
    python scripts/fragility.py random=true hardware=cuda calibration.sampler.steps=2
    python scripts/fragility.py random=true full=false layers=4   # the same path on a laptop

For each linear of both branches: largest magnitude, crest and kurtosis of its input at every
denoising step, and the damage of quantizing it alone (plain W8A8, no smoothing): relative error of
the branch's velocity at every step, and of the final latents. `random=true` takes a model with
random weights of the real widths instead, for which there are no latents.

Stopped and started again it continues with the linears not yet done. Writes <results>/<model>.csv,
<results> being outputs/results/fragility unless told, .svg (heat map) and .md (ranking and its
stability). Prints one JSON document last. Measure in float32: in bfloat16 a change anywhere also
rolls the roundings behind it anew. With random weights, 34 blocks, a linear's damage read 5e-3 that
way, and 3e-4 in float32.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import hydra_main, parse_first
except ModuleNotFoundError as missing:
    print(f"fragility: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.conf.schema import FragilityConfig
from dit8.eval.fragility import as_frame, csv_text, make_rows, render, verdict
from dit8.quant.errors import UserError
from dit8.quant.files import content_key, write_atomically

if __name__ == "__main__":
    parse_first("fragility", __doc__)  # help and mistakes end here: what follows takes seconds

import torch

from dit8.eval.fragility_map import draw_map
from dit8.models.artifacts import calibration_prompts, model_architecture, open_model
from dit8.models.generate import check_length, denoise
from dit8.models.pipeline import load_pipeline, resolve_device, torch_dtype
from dit8.models.random_ideogram4 import RandomPrompt, build_random, run_random
from dit8.models.types import make_sampler
from dit8.quant.architectures.ideogram4 import BRANCHES, architecture, branch_modules
from dit8.quant.auto import role_of
from dit8.scripts.profiling import Running, Subject, profile

METHOD = 1  # raise it when a number changes its meaning: states of before are then left alone


def open_pipeline(config: FragilityConfig) -> Subject:
    """Take a model's pipeline and its calibration captions."""
    model, dtype = open_model(config.model), config.calibration.dtype
    sampler = make_sampler(config.calibration.sampler, config.model, size=config.size)
    prompts = calibration_prompts(config)
    device = resolve_device(config.hardware.device)

    def load() -> Running:
        pipeline = load_pipeline(model.folder, dtype, config.model.companion_dtype, device)
        check_length(pipeline.tokenizer, prompts, sampler.max_sequence_length)

        def latents(batch: Sequence) -> torch.Tensor:
            return denoise(pipeline, batch, sampler, decode=False)[1]

        measured = latents if config.latents else None
        return Running(branch_modules(pipeline), lambda prompt: latents([prompt]), measured)

    texts = [[prompt.id, prompt.caption, prompt.seed] for prompt in prompts]
    precision = [dtype, config.model.companion_dtype]
    return Subject(
        config.model.name if dtype == "float32" else f"{config.model.name}_{dtype}",
        [model.key, texts, asdict(sampler), precision, config.latents],
        tuple(BRANCHES),
        model_architecture(model),
        prompts[::2] + prompts[1::2],
        load,
    )


def open_random(config: FragilityConfig) -> Subject:
    """Take two branches with random weights."""
    if config.layers < 1 or config.n < 1 or min(config.image_tokens, config.text_tokens) < 1:
        raise UserError(
            "layers, n, image_tokens and text_tokens must be at least 1, got "
            f"{config.layers}, {config.n}, {config.image_tokens} and {config.text_tokens}; "
            "correct them"
        )
    device, dtype = resolve_device(config.hardware.device), config.calibration.dtype
    layout = {
        "steps": config.calibration.sampler.steps,
        "image_tokens": config.image_tokens,
        "text_tokens": config.text_tokens,
    }

    def load() -> Running:
        branches = build_random(
            config.layers, full=config.full, dtype=torch_dtype(dtype), device=device, seed=0
        )
        return Running(branches, partial(run_random, branches, **layout), None)

    prompts = [RandomPrompt(f"random-{seed}", seed) for seed in range(config.n)]
    name = f"random_{'full' if config.full else 'small'}_{config.layers}"
    return Subject(
        name if dtype == "float32" else f"{name}_{dtype}",
        [name, config.n, layout, dtype],
        tuple(BRANCHES),
        architecture(config.layers),
        prompts[::2] + prompts[1::2],
        load,
    )


def rows_of(subject: Subject, state: Mapping, part: int, prompts: slice) -> list[dict]:
    """Lay out the rows over some of the prompts; `part` is their place in the state's moments."""
    rows = []
    for branch in subject.branches:
        for linear in subject.architecture.stored:
            group = subject.architecture.group_of(linear)
            damage = state["damage"][f"{branch}.{linear.name}"]
            quantities: dict[str, Any] = {
                name: [float("nan") if v is None else v for v in values]
                for name, values in state["moments"][part][f"{branch}/{group.name}"].items()
            }
            velocity = torch.tensor(damage["velocity"][prompts], dtype=torch.float64)
            quantities["damage_velocity"] = velocity.square().mean(dim=0).sqrt().tolist()
            if damage["latents"]:
                latents = torch.tensor(damage["latents"][prompts], dtype=torch.float64)
                quantities["damage_latents"] = float(latents.square().mean().sqrt())
            rows += make_rows(subject.name, branch, linear.name, role_of(group), quantities)
    return rows


@hydra_main("fragility")
def main(config: FragilityConfig) -> None:
    start = time.monotonic()
    subject = open_random(config) if config.random else open_pipeline(config)
    key = content_key([METHOD, subject.identity])
    path = from_root(config.state) / f"{subject.name}-{key}.json"
    state = profile(subject, config.hardware.batch, path)
    cut, count = subject.first_half, len(subject.prompts)
    frame = as_frame(rows_of(subject, state, 0, slice(count)))
    halves = [
        as_frame(rows_of(subject, state, part, prompts))
        for part, prompts in enumerate((slice(cut), slice(cut, count)), start=1)
        if count > 1
    ]
    steps = 1 + int(frame["step"].max())
    title = f"Fragility of {subject.name}: {count} prompts, {steps} steps"
    text = render(title, frame, halves)
    path = from_root(config.results) / f"{subject.name}.csv"
    write_atomically(path, lambda p: p.write_text(csv_text(frame), encoding="utf-8"))
    write_atomically(
        path.with_suffix(".svg"), lambda p: draw_map(frame, p, f"{title}, one linear in W8A8")
    )
    write_atomically(path.with_suffix(".md"), lambda p: p.write_text(text, encoding="utf-8"))
    print(text)
    document = {
        "rows": shorten(path),
        "linears": len(state["damage"]),
        "verdict": verdict(frame),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
