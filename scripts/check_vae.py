"""Measure the ceiling of the mini: how its reference posters and their VAE reconstructions read.

    python scripts/check_vae.py                                   # three sets, about three minutes
    python scripts/check_vae.py --sets mini_easy --n 20

A prompt's seed is its poster's seed, so the reference pictures of the committed prompt sets can be
drawn again. Writes <out>, by default outputs/results/mini/vae.csv (set, picture, texts, exact, low,
high, psnr_db, n). Prints one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json

import numpy as np
import pandas as pd
from tqdm import tqdm

from eval.matching import exact_fraction
from eval.prompts import first_prompts, load_prompts
from eval.reading import read
from eval.stats import wilson_interval
from quant.atomic import write_atomically
from scripts.cli import ROOT, compose, from_root, one_sentence, prompt_file

SETS = ("mini_easy", "mini_medium", "mini_hard")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    made.add_argument("--n", type=int)
    made.add_argument("--out", default="outputs/results/mini/vae.csv")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import torch
from skimage.metrics import peak_signal_noise_ratio

from models.pipeline import load_pipeline, resolve_device
from models.poster_drawing import draw_poster
from models.posters import make_poster
from models.training.vae import reconstruct


def check_set(vae, name: str, n: int | None) -> list[dict]:
    """Read references and reconstructions of one set; two rows."""
    exact: dict[str, int] = {"reference": 0, "reconstruction": 0}
    psnr, texts = [], 0
    prompts = first_prompts(load_prompts(prompt_file(name)), n)
    for prompt in tqdm(prompts, desc=name, unit="poster"):
        poster = make_poster(name.removeprefix("mini_"), prompt.seed, held_out=True)
        assert poster.texts == prompt.texts, f"{prompt.id}: the poster's seed is not the prompt's"
        pixels = np.asarray(draw_poster(poster))
        again = reconstruct(vae, torch.from_numpy(pixels.copy())[None])[0].numpy()
        psnr.append(peak_signal_noise_ratio(pixels, again, data_range=255))
        texts += len(prompt.texts)
        for picture, shown in (("reference", pixels), ("reconstruction", again)):
            share = exact_fraction(prompt.texts, read(shown))
            exact[picture] += round(share * len(prompt.texts))
    rows = []
    for picture, count in exact.items():
        interval = wilson_interval(count, texts)
        rows.append(
            {
                "set": name,
                "picture": picture,
                "texts": texts,
                "exact": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "psnr_db": float(np.mean(psnr)) if picture == "reconstruction" else None,
                "n": len(prompts),
            }
        )
    return rows


def main() -> None:
    with one_sentence("check_vae"):
        arguments = parser().parse_args()
        model = compose("calibrate", []).model
        folder = from_root(model.path)
        vae = load_pipeline(folder, "float32", "float32", resolve_device("cpu")).vae
        rows = [row for name in arguments.sets for row in check_set(vae, name, arguments.n)]
        frame = pd.DataFrame(rows)
        out = ROOT / arguments.out
        write_atomically(out, lambda path: frame.to_csv(path, index=False, float_format="%.4f"))
        print(frame.to_string(index=False))
        print(json.dumps({"rows": len(rows), "out": arguments.out}))


if __name__ == "__main__":
    main()
