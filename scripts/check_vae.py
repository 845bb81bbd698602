"""Measure the ceiling of the mini: how its reference posters and their VAE reconstructions read.

    python scripts/check_vae.py                                   # three sets, about three minutes
    python scripts/check_vae.py --sets mini_easy --n 20

A prompt's seed is its poster's seed, so the reference pictures of the committed prompt sets can be
drawn again. Writes <out>, by default outputs/results/mini/vae.csv (set, picture, texts, exact, low,
high, psnr_db, n). Prints one JSON document last.
"""

import argparse
import json
import sys

try:
    from dit8.conf.paths import ROOT, from_root
    from dit8.scripts.cli import compose, one_sentence
except ModuleNotFoundError as missing:
    print(f"check_vae: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import numpy as np
import pandas as pd
from tqdm import tqdm

from dit8.eval.matching import exact_fraction
from dit8.eval.reading import read
from dit8.eval.stats import wilson_interval
from dit8.models.prompts import first_prompts, load_prompts, prompt_file
from dit8.quant.files import write_atomically

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

from dit8.models.pipeline import load_pipeline, resolve_device
from dit8.models.poster_drawing import draw_poster
from dit8.models.posters import make_poster
from dit8.models.training.vae import reconstruct


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
