"""Train the mini: VAE, then the conditional and the unconditional branch, on one GPU.

    python scripts/train_mini.py                                  # about half an hour on one H200
    python scripts/train_mini.py out=outputs/train_mini           # again: goes on where it stopped
    python scripts/train_mini.py size=toy vae.seconds=5 conditional.seconds=10 \\
        unconditional.seconds=5 readers=0                         # rehearsal on a CPU, a minute

Writes the training checkpoint (see models/training/checkpoint.py) at every evaluation, the curves
`loss.csv` and `ocr.csv`, and at the end the diffusers folder `<out>/mini`. The posters are drawn
anew in every run, so a resumed run sees fresh ones.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import csv
import json
import time

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.mini import FULL, TOY, build_pipeline, save_pipeline
from models.posters import TIERS
from models.training.branch import Average, train_branch
from models.training.checkpoint import load_state, load_weights, save_state, save_weights
from models.training.pool import PoolFiller, encode_latents
from models.training.reading import Reader, draw_probe, make_probe, references
from models.training.text import fill_features
from models.training.vae import reconstruct, train_vae
from quant.errors import UserError

# With a key mask the memory-efficient kernel, without one flash attention. cuDNN's took over 25 s
# to start at these shapes.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
VAE_SHARES = {"slot": 0.0, "easy": 0.25, "medium": 0.35, "hard": 0.40}


class Curves:
    """Append loss and OCR rows to two CSV files and print them."""

    LOSS = ("stage", "step", "samples", "loss", "lr", "samples_per_s", "seconds")
    OCR = ("stage", "tier", "step", "samples", "ocr_exact", "ocr_ned", "psnr_db", "n")

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.start = folder, time.monotonic()
        for name, columns in (("loss", self.LOSS), ("ocr", self.OCR)):
            if not (folder / f"{name}.csv").exists():
                self._write(name, columns)

    def _write(self, name: str, row) -> None:
        with open(self.folder / f"{name}.csv", "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    def loss(self, **row) -> None:
        row["seconds"] = time.monotonic() - self.start
        cells = [row.get(key, "") for key in self.LOSS]
        self._write("loss", [f"{c:.6g}" if isinstance(c, float) else c for c in cells])
        print(*(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))

    def ocr(self, **row) -> None:
        cells = [row.get(key, "") for key in self.OCR]
        self._write("ocr", [f"{c:.4f}" if isinstance(c, float) else c for c in cells])
        print(
            "OCR",
            *(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()),
            flush=True,
        )


def evaluate_vae(vae, probes, reader: Reader, curves: Curves, step: int) -> None:
    """Log PSNR and legibility of reconstructions, and legibility of the references themselves."""
    for probe in probes:
        pixels = references(probe.posters)
        again = reconstruct(vae, torch.from_numpy(pixels).to(probe.noise.device)).cpu().numpy()
        error = ((pixels.astype(float) - again) ** 2).mean(axis=(1, 2, 3)).clip(1e-6)
        psnr = float((10 * torch.log10(255**2 / torch.from_numpy(error))).mean())
        for stage, pictures in (("reference", pixels), ("reconstruction", again)):

            def report(exact, ned, stage=stage, tier=probe.tier, psnr=psnr):
                curves.ocr(
                    stage=stage,
                    tier=tier,
                    step=step,
                    ocr_exact=exact,
                    ocr_ned=ned,
                    psnr_db=psnr if stage == "reconstruction" else "",
                    n=len(pixels),
                )

            reader.read(pictures, probe.posters, report)
        print(f"vae {probe.tier}: {psnr:.2f} dB", flush=True)


def train(config: DictConfig) -> Path:
    """Run every stage that is left; returns the folder of the checkpoint."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = device.type == "cuda"
    compile_model = cuda if config["compile"] is None else config["compile"]
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    size = {"full": FULL, "toy": TOY}[config.size]
    curves = Curves(Path(config.log_dir or out))
    state = load_state(out)
    print(f"stage {state['stage']}, {state['elapsed']:.0f} s spent, on {device}")

    pipeline = build_pipeline(size, config.seed)
    stored = {"vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
    for name, module in stored.items():
        if (out / f"{name}.safetensors").exists():
            load_weights(module, out / f"{name}.safetensors")
        module.to(device)
    save_weights(pipeline.text_encoder, out / "text_encoder.safetensors")
    # bf16 weights, fp32 arithmetic: what a user who loads the saved folder in fp32 computes.
    load_weights(pipeline.text_encoder, out / "text_encoder.safetensors")
    torch.manual_seed(config.seed * 1000 + state["step"])

    counts = {tier: config.pool[tier] for tier in TIERS}
    filler = PoolFiller(counts, config.seed * 1000 + state["step"], config.workers, device)
    reader = Reader(config.readers)
    channels = 4 * size.latent_channels
    probes = [
        make_probe(tier, config.probe, pipeline.text_encoder, channels, device)
        for tier in TIERS[1:]
    ]
    vae = pipeline.vae
    if state["stage"] == "vae":
        shares = torch.tensor([VAE_SHARES[tier] for tier in TIERS], device=device)
        step = train_vae(
            vae, filler, shares=shares, log=curves.loss, compile_model=compile_model, **config.vae
        )
        evaluate_vae(vae, probes, reader, curves, step)
        pool = filler.wait()
        encode_latents(pool, vae)
        save_weights(vae, out / "vae.safetensors", keep_fp32=("bn.",))
        load_weights(vae, out / "vae.safetensors")
        state = {"stage": "conditional", "elapsed": 0.0, "step": 0}
        save_state(out, state)
    else:
        pool = filler.wait()
        encode_latents(pool, vae, keep_statistics=True)
    if config.stop_after != "vae":
        fill_features(pool, pipeline.text_encoder)
        train_branches(config, out, pipeline, pool, probes, reader, curves, state, compile_model)
    reader.close()
    if load_state(out)["stage"] == "done":
        for name in ("conditional", "unconditional"):
            branch = (
                pipeline.transformer
                if name == "conditional"
                else (pipeline.unconditional_transformer)
            )
            load_weights(branch, out / f"{name}.safetensors")
        save_pipeline(pipeline.to("cpu"), out / "mini")
    return out


def train_branches(config, out, pipeline, pool, probes, reader, curves, state, compile_model):
    """Train what is left of the conditional and the unconditional branch."""
    device = pool.latents.device
    branches = {
        "conditional": pipeline.transformer,
        "unconditional": pipeline.unconditional_transformer,
    }
    for name, model in branches.items():
        if state["stage"] != name:
            continue
        options = dict(config[name])
        model.to(device)
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

                def report(exact, ned, tier=probe.tier):
                    curves.ocr(
                        stage=name,
                        tier=tier,
                        step=step,
                        ocr_exact=exact,
                        ocr_ned=ned,
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
        following = {"conditional": "unconditional", "unconditional": "done"}[name]
        state = {"stage": following, "elapsed": 0.0, "step": 0}
        save_state(out, state)
        (out / "raw.safetensors").unlink()
        if config.stop_after == name:
            break


@hydra.main(version_base=None, config_path="../conf", config_name="train_mini")
def main(config: DictConfig) -> None:
    start = time.monotonic()
    try:
        out = train(config)
    except UserError as error:
        sys.exit(f"train_mini: {error}")
    summary = {
        "out": str(out),
        "stage": load_state(out)["stage"],
        "seconds": round(time.monotonic() - start, 1),
        "config": OmegaConf.to_container(config),
    }
    (out / "run.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")
    print(json.dumps({k: summary[k] for k in ("out", "stage", "seconds")}))


if __name__ == "__main__":
    main()
