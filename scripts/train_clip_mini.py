"""Train clip-mini: two small towers that tell how well a poster fits its caption.

    python scripts/train_clip_mini.py --folder models/clip_mini   # 17 minutes on one H200
    python scripts/train_clip_mini.py --folder models/clip_mini   # again: goes on where it stopped
    python scripts/train_clip_mini.py --size toy --out outputs/rehearsal_clip --seconds 20 \\
        --every-seconds 10 --groups 2 --fresh 1 --blurred 2 --pool 8 --probe 4 --workers 0
                                                                  # rehearsal on a CPU

Saves at every evaluation, and appends to <out>/loss.csv and <out>/ranks.csv: how often held-out
posters score higher than the same with one thing wrong (models/poster_variants.py). At the end it
writes the open_clip folder. The optimizers' moments are not kept, so a resumed run warms up again,
and it draws fresh posters. Prints one JSON document last.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

try:
    from dit8.conf.paths import ROOT, from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"train_clip_mini: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import numpy as np
from PIL import Image

from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--folder", help="where the finished model goes; default: <out>/clip_mini")
    add("--out", default="outputs/train_clip_mini")
    add("--size", choices=("full", "fine", "toy"), default="full")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--eager", action="store_true", help="do not compile the loss, which a GPU gets")
    add("--seconds", type=float, default=900.0, help="of training, without evaluations")
    add("--every-seconds", type=float, default=90.0)
    add("--groups", type=int, default=256, help="of eight posters, in a batch")
    add("--fresh", type=int, default=16, help="groups newly drawn for each step")
    add("--blurred", type=int, default=256, help="pictures of a batch also shown blurred")
    add("--pool", type=int, default=8192, help="groups kept on the device: 1.6 MB each")
    add("--workers", type=int, default=10, help="drawing processes; 0: draw in this one")
    add("--probe", type=int, default=128, help="held-out posters of each tier to rank")
    add("--lr", type=float, default=2e-3)
    add("--cool-down", type=float, default=0.4)
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import torch

from dit8.eval.poster_ranking import rank_posters
from dit8.eval.score_text import content_in_words
from dit8.models.clip_mini import (
    CONTEXT,
    FINE,
    FULL,
    MAX_BYTES,
    TOY,
    WEIGHTS,
    ClipSize,
    build_clip,
    build_clip_tokenizer,
    encode_texts,
    save_clip,
)
from dit8.models.pipeline import resolve_device
from dit8.models.posters import TIERS, make_poster
from dit8.models.training.branch import Average
from dit8.models.training.checkpoint import load_state, load_weights, save_state, save_weights
from dit8.models.training.clip import train_clip
from dit8.models.training.clip_stream import GROUP, Reservoir, stream
from dit8.models.training.pool import to_signal

SIZES = {"full": FULL, "fine": FINE, "toy": TOY}
PROBE_SEED = 6_000_000  # apart from the published sets' and from the mini's own probe
PROBE_BATCH = 64
PLACES = ("out", "folder", "device")  # arguments that do not describe the model


class ScoreWith:
    """Score pictures by the cosine that a model in training gives."""

    def __init__(self, model: torch.nn.Module, device: torch.device):
        self.model, self.device = model, device
        self.tokenizer = build_clip_tokenizer()

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """Return cosines, float64 (n,)."""
        found = []
        for low in range(0, len(pictures), PROBE_BATCH):
            part = slice(low, low + PROBE_BATCH)
            pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures[part]]))
            ids = encode_texts(self.tokenizer, list(texts[part])).to(self.device)
            image = self.model.encode_image(to_signal(pixels.to(self.device)), normalize=True)
            text = self.model.encode_text(ids, normalize=True)
            found.append((image * text).sum(dim=1).double().cpu())
        return torch.cat(found).numpy()


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append to a CSV file, which begins with the row's keys; also print the row."""
    shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
    begins = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if begins:
            writer.writeheader()
        writer.writerow(shown)
    print(" ".join(f"{key}={value}" for key, value in shown.items()), flush=True)


def evaluate(model: torch.nn.Module, device: torch.device, n: int, out: Path, step: int) -> float:
    """Append how held-out posters are ranked; returns the lowest rate."""
    lowest = 1.0
    for tier in TIERS[1:]:
        posters = [make_poster(tier, PROBE_SEED + i, held_out=True) for i in range(n)]
        for rank in rank_posters(posters, ScoreWith(model, device)):
            append_row(out / "ranks.csv", {"step": step, "tier": tier} | asdict(rank))
            lowest = min(lowest, rank.rate)
    return lowest


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is left of the schedule and write the folder."""
    size: ClipSize = SIZES[arguments.size]
    for name in ("seconds", "groups", "fresh", "pool", "probe", "every_seconds"):
        if getattr(arguments, name) <= 0:
            raise UserError(
                f"--{name.replace('_', '-')} must be positive, got {getattr(arguments, name)}; "
                "correct it"
            )
    if not 0 <= arguments.blurred <= arguments.groups * GROUP or arguments.workers < 0:
        raise UserError(
            f"--blurred must be in [0, {arguments.groups * GROUP}] and --workers 0 or more, got "
            f"{arguments.blurred} and {arguments.workers}; correct them"
        )
    out = from_root(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    device = resolve_device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    state = load_state(out)
    print(f"{state['elapsed']:.0f} of {arguments.seconds:.0f} s spent, on {device}", flush=True)
    model = build_clip(size, arguments.seed)
    if state["step"]:
        load_weights(model, out / "raw.safetensors")
    model.to(device)
    average = Average(model)
    if state["step"]:
        load_weights(average.model, out / "average.safetensors")
        average.steps = state["step"]
    draw_seed = arguments.seed * 1000 + state["step"]
    torch.manual_seed(draw_seed)
    start, lowest = time.monotonic(), [float("nan")]

    def log(**row: Any) -> None:
        append_row(out / "loss.csv", row | {"seconds": time.monotonic() - start})

    def at_pause(elapsed: float, step: int) -> None:
        save_weights(average.model, out / "average.safetensors")
        save_weights(model, out / "raw.safetensors")
        save_state(out, {"stage": "clip", "elapsed": elapsed, "step": step})
        lowest[0] = evaluate(average.model, device, arguments.probe, out, step)

    if state["elapsed"] < arguments.seconds:
        train_clip(
            model,
            average,
            stream(draw_seed, arguments.fresh, arguments.workers, content_in_words),
            Reservoir(arguments.pool, CONTEXT, device),
            seconds=arguments.seconds,
            elapsed=state["elapsed"],
            first_step=state["step"],
            groups=arguments.groups,
            blurred=arguments.blurred,
            lr=arguments.lr,
            cool_down=arguments.cool_down,
            every_seconds=arguments.every_seconds,
            compile_model=device.type == "cuda" and not arguments.eager,
            log=log,
            at_pause=at_pause,
        )
    folder = from_root(arguments.folder or str(out / "clip_mini"))
    load_weights(average.model, out / "average.safetensors")
    save_clip(average.model, size, folder)
    steps = load_state(out)["step"]
    facts = {
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__.partition("+")[0],
        "steps": steps,
        "samples": f"{steps * arguments.groups * GROUP / 1e6:.2f} M",
        **{f"size_{key}": value for key, value in asdict(size).items()},
        **{key: value for key, value in vars(arguments).items() if key not in PLACES},
    }
    write_card(facts, folder)
    record = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    write_atomically(out / "run.json", lambda path: path.write_text(record, encoding="utf-8"))
    nbytes = (folder / WEIGHTS).stat().st_size
    if nbytes > MAX_BYTES:
        raise UserError(f"{folder / WEIGHTS} has {nbytes} bytes, expected {MAX_BYTES} at most")
    return {
        "folder": shorten(folder),
        "bytes": nbytes,
        "steps": steps,
        "lowest_rate": None if np.isnan(lowest[0]) else round(lowest[0], 4),
        "seconds": round(time.monotonic() - start, 1),
    }


def write_card(facts: dict[str, Any], folder: Path) -> None:
    """Fill the model card."""
    template = (ROOT / "models" / "clip_mini_card.md").read_text(encoding="utf-8")
    text = Template(template).substitute(facts)
    write_atomically(folder / "README.md", lambda path: path.write_text(text, encoding="utf-8"))


def main() -> None:
    with one_sentence("train_clip_mini"):
        print(json.dumps(train(parser().parse_args())))


if __name__ == "__main__":
    main()
