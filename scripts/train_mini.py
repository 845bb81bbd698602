"""Train the mini: VAE, then the conditional and the unconditional branch, on one GPU.

    python scripts/train_mini.py                                  # about half an hour on one H200
    python scripts/train_mini.py                                  # again: goes on where it stopped
    python scripts/train_mini.py size=toy out=outputs/rehearsal workers=1 readers=1 probe=2 \\
        pool.slot=64 pool.easy=64 pool.medium=64 pool.hard=64 vae.batch=4 vae.seconds=5 \\
        conditional.batch=8 conditional.seconds=8 unconditional.batch=8 unconditional.seconds=5
                                                                  # rehearsal on a CPU, a minute

Writes the training checkpoint (see models/training/checkpoint.py) at every evaluation, the curves
`loss.csv` and `ocr.csv` (in <out>, or in curves=FOLDER, as results/mini), and at the end the
diffusers folder `<out>/mini`. Stopped within the VAE, which takes five minutes, it begins that
stage anew. The posters are drawn anew in every run, so a resumed run sees fresh ones.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import hydra_main, parse_first
except ModuleNotFoundError as missing:
    print(f"train_mini: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import numpy as np

from dit8.conf.schema import TrainMiniConfig
from dit8.eval.matching import read_one
from dit8.models.training.curves import Curves
from dit8.quant.errors import UserError

if __name__ == "__main__":
    parse_first("train_mini", __doc__)  # help and mistakes end here: what follows takes seconds

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit8.models.mini import FULL, TOY, MiniSize, build_pipeline, save_pipeline
from dit8.models.pipeline import resolve_device
from dit8.models.posters import TIERS
from dit8.models.training.branch import Average, train_branch
from dit8.models.training.checkpoint import (
    STAGES,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from dit8.models.training.pool import Pool, PoolFiller, encode_latents
from dit8.models.training.reading import Probe, Reader, draw_probe, make_probe, references
from dit8.models.training.text import fill_features
from dit8.models.training.vae import reconstruct, train_vae

# With a key mask the memory-efficient kernel, without one flash attention. cuDNN's took over 25 s
# to start at these shapes.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
VAE_SHARES = {"slot": 0.0, "easy": 0.25, "medium": 0.35, "hard": 0.40}


def evaluate_vae(vae, probes: list[Probe], reader: Reader, curves: Curves, step: int) -> None:
    """Log PSNR and legibility of reconstructions, and legibility of the references themselves."""
    for probe in probes:
        pixels = references(probe.posters)
        again = reconstruct(vae, torch.from_numpy(pixels).to(probe.noise.device)).cpu().numpy()
        error = ((pixels.astype(float) - again) ** 2).mean(axis=(1, 2, 3)).clip(1e-6)
        psnr = float((10 * np.log10(255**2 / error)).mean())
        shared = {"tier": probe.tier, "step": step, "n": len(pixels)}
        reader.read(pixels, probe.posters, curves.ocr(stage="reference", **shared))
        report = curves.ocr(stage="reconstruction", psnr_db=psnr, **shared)
        reader.read(again, probe.posters, report)


def train_both(
    config: TrainMiniConfig,
    out: Path,
    pipeline,
    pool: Pool,
    probes: list[Probe],
    reader: Reader,
    curves: Curves,
    compile_model: bool,
) -> None:
    """Train what is left of the conditional and the unconditional branch."""
    branches = {
        "conditional": pipeline.transformer,
        "unconditional": pipeline.unconditional_transformer,
    }
    for name, model in branches.items():
        state = load_state(out)
        if state["stage"] != name:
            continue
        options = asdict(config.conditional if name == "conditional" else config.unconditional)
        model.to(pool.latents.device)
        if state["step"]:
            load_weights(model, out / "raw.safetensors")
        elif name == "unconditional":  # starts from the conditional branch: same pictures
            load_weights(model, out / "conditional.safetensors")
        average = Average(model)
        if state["step"]:
            load_weights(average.model, out / f"{name}.safetensors")
            average.steps = state["step"]

        def at_pause(elapsed, step, name=name, model=model, average=average, options=options):
            save_weights(average.model, out / f"{name}.safetensors")
            save_weights(model, out / "raw.safetensors")
            save_state(out, {"stage": name, "elapsed": elapsed, "step": step})
            for probe in probes if name == "conditional" else ():
                pictures = draw_probe(average.model, pipeline.vae, probe, config.probe_steps)
                report = curves.ocr(
                    stage=name,
                    tier=probe.tier,
                    step=step,
                    samples=step * options["batch"],
                    n=len(probe.posters),
                )
                reader.read(pictures, probe.posters, report)

        with sdpa_kernel(BACKENDS, set_priority=True):
            train_branch(
                model,
                average,
                pool,
                conditional=name == "conditional",
                elapsed=state["elapsed"],
                first_step=state["step"],
                log=curves.loss,
                at_pause=at_pause,
                compile_model=compile_model,
                **options,
            )
        following = STAGES[STAGES.index(name) + 1]
        save_state(out, {"stage": following, "elapsed": 0.0, "step": 0})
        (out / "raw.safetensors").unlink()
        if config.stop_after == name:
            break


def run_stages(
    config: TrainMiniConfig,
    out: Path,
    pipeline,
    size: MiniSize,
    device: torch.device,
    curves: Curves,
) -> None:
    """Draw posters, then run every stage that is left, up to `stop_after`."""
    state = load_state(out)
    vae, encoder = pipeline.vae, pipeline.text_encoder
    compile_model = device.type == "cuda"
    draw_seed = config.seed * 1000 + state["step"]
    torch.manual_seed(draw_seed)
    counts = {tier: getattr(config.pool, tier) for tier in TIERS}
    filler = PoolFiller(counts, draw_seed, config.workers, device)
    reader = Reader(config.readers, read_one)
    probes = [
        make_probe(tier, config.probe, encoder, 4 * size.latent_channels, device)
        for tier in TIERS[1:]
    ]
    if state["stage"] == "vae":
        shares = torch.tensor([VAE_SHARES[tier] for tier in TIERS], device=device)
        step = train_vae(
            vae,
            filler,
            shares=shares,
            log=curves.loss,
            compile_model=compile_model,
            **asdict(config.vae),
        )
        evaluate_vae(vae, probes, reader, curves, step)
        encode_latents(filler.wait(), vae)
        save_weights(vae, out / "vae.safetensors", keep_fp32=("bn.",))
        load_weights(vae, out / "vae.safetensors")
        save_state(out, {"stage": "conditional", "elapsed": 0.0, "step": 0})
    else:
        encode_latents(filler.wait(), vae, keep_statistics=True)
    if config.stop_after != "vae":
        fill_features(filler.pool, encoder)
        train_both(config, out, pipeline, filler.pool, probes, reader, curves, compile_model)
    filler.stop()
    reader.close()


def train(config: TrainMiniConfig) -> Path:
    """Run every stage that is left; returns the folder of the checkpoint."""
    if config.stop_after not in STAGES:
        raise UserError(f"stop_after must be one of {', '.join(STAGES)}, got {config.stop_after!r}")
    if config.size not in ("full", "toy"):
        raise UserError(f"size must be full or toy, got {config.size!r}")
    out = from_root(config.out)
    out.mkdir(parents=True, exist_ok=True)
    device = resolve_device(config.device)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    size = FULL if config.size == "full" else TOY
    curves = Curves(from_root(config.curves or config.out))
    state = load_state(out)
    print(f"stage {state['stage']}, {state['elapsed']:.0f} s spent, on {device}")

    pipeline = build_pipeline(size, config.seed)
    encoder = pipeline.text_encoder
    for name, module in (("vae", pipeline.vae), ("text_encoder", encoder)):
        if (out / f"{name}.safetensors").exists():
            load_weights(module, out / f"{name}.safetensors")
        module.to(device)
    save_weights(encoder, out / "text_encoder.safetensors")
    # bf16 weights, fp32 arithmetic: what a user who loads the saved folder in fp32 computes.
    load_weights(encoder, out / "text_encoder.safetensors")

    if state["stage"] != "done":
        run_stages(config, out, pipeline, size, device, curves)
    if load_state(out)["stage"] == "done":
        load_weights(pipeline.transformer, out / "conditional.safetensors")
        load_weights(pipeline.unconditional_transformer, out / "unconditional.safetensors")
        save_pipeline(pipeline.to("cpu"), out / "mini")
    return out


@hydra_main("train_mini")
def main(config: TrainMiniConfig) -> None:
    start = time.monotonic()
    out = train(config)
    summary = {"out": shorten(out), "stage": load_state(out)["stage"]}
    summary["seconds"] = round(time.monotonic() - start, 1)
    (out / "run.json").write_text(
        json.dumps(summary | {"config": asdict(config)}, indent=2, sort_keys=True) + "\n"
    )
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
