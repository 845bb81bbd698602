"""Check that clip-mini ranks: right posters above the same with one thing wrong.

    python scripts/check_clip_mini.py                             # three sets, minutes on a CPU
    python scripts/check_clip_mini.py --sets mini_easy --n 20     # a part
    python scripts/check_clip_mini.py --folder outputs/train_clip_mini/clip_mini --results outputs/c

Draws the reference posters of the committed prompt sets (a prompt's seed is its poster's seed) and
their perturbed versions, saves them as PNG and scores them with the scorer `clip_mini`, so all of
the path that a score takes is in the check. Writes <results>/mini/clip_mini.csv and
<results>/tables/clip_mini.md. Prints one JSON document last.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"check_clip_mini: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import numpy as np
import pandas as pd
from PIL import Image

from dit8.models.prompts import first_prompts, load_prompts, prompt_file
from dit8.models.types import Prompt, Sample
from dit8.quant.files import write_atomically

SETS = ("mini_easy", "mini_medium", "mini_hard")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    made.add_argument("--n", type=int, help="of the first prompts of each set; default: all")
    made.add_argument("--folder", help="of the model; default: models/clip_mini")
    made.add_argument("--results", default="outputs/results")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.eval.clip_models import LOCAL_DIR
from dit8.eval.poster_ranking import rank_posters
from dit8.eval.scorers.clipscore import CLIP_MINI, SCORERS
from dit8.eval.text_image import TextImageScorer
from dit8.models.poster_variants import PERTURBATIONS
from dit8.models.posters import Poster, make_poster

LEAST = 0.9  # a kind is ranked when the lower end of its interval is at least this
WRONG = {
    "word": "another word",
    "letter": "another letter",
    "color": "another colour",
    "moved": "moved by a quarter",
    "blurred": "blurred by 3 px",
}
HEADER = """\
# Does clip-mini rank posters?

Reference posters of the prompt sets, whose words no training has seen, against the same with one
thing wrong, both scored against the right caption by `clip_mini`. *Ranked rightly*: the right one
scores higher; chance is 50 %. A kind of mistake is judged by this score where the lower end of the
95 % Wilson interval is at least {least:.0%}. Made by `scripts/check_clip_mini.py`.
"""


def posters_of(name: str, prompts: Sequence[Prompt]) -> list[Poster]:
    """Return the posters that the prompts of a set were made from."""
    tier = name.removeprefix("mini_")
    posters = [make_poster(tier, prompt.seed, held_out=True) for prompt in prompts]
    for poster, prompt in zip(posters, prompts, strict=True):
        assert poster.texts == prompt.texts, f"{prompt.id}: the poster's seed is not the prompt's"
    return posters


def score_saved(scorer: TextImageScorer, folder: Path):
    """Return a function that saves pictures and scores the files against given texts."""

    def score(pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        samples = []
        for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            path = folder / f"{index}.png"
            picture.save(path)
            samples.append(Sample(Prompt(str(index), "", (), 0, text), path, None, 0.0))
        return scorer.score(samples)

    return score


def render(rows: pd.DataFrame) -> str:
    """Write the page from the rows of the CSV file."""
    lines = [
        HEADER.format(least=LEAST),
        "| set | what is wrong | posters | ranked rightly, % | right scores | wrong is lower by | "
        "judged |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows.itertuples():
        rate = f"{100 * row.rate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        judged = "yes" if row.low >= LEAST else "no"
        lines.append(
            f"| {row.set} | {WRONG[row.kind]} | {row.n} | {rate} | {row.right:.1f} | "
            f"{row.drop:.1f} | {judged} |"
        )
    judged = [k for k in PERTURBATIONS if (rows[rows["kind"] == k]["low"] >= LEAST).all()]
    names = ", ".join(WRONG[kind] for kind in judged) or "none"
    lines += ["", f"Judged on every set: {names}.", ""]
    return "\n".join(lines)


def check(arguments: argparse.Namespace) -> dict:
    """Rank the posters of every set and write both files."""
    (scorer,) = (s for s in SCORERS if s.name == "clip_mini")
    backbone = f"{LOCAL_DIR}{from_root(arguments.folder)}" if arguments.folder else CLIP_MINI
    # `rank_posters` has made the text already: content in words, as the scorer's own mode does
    scorer = replace(scorer, backbone=backbone, score_text="idea")
    frames = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.sets:
            prompts = first_prompts(load_prompts(prompt_file(name)), arguments.n)
            ranks = rank_posters(posters_of(name, prompts), score_saved(scorer, Path(temporary)))
            frames.append(pd.DataFrame([{"set": name} | asdict(rank) for rank in ranks]))
    rows = pd.concat(frames, ignore_index=True).round(4)
    results = from_root(arguments.results)
    table, page = results / "mini" / "clip_mini.csv", results / "tables" / "clip_mini.md"
    text = render(rows)
    write_atomically(table, lambda path: rows.to_csv(path, index=False))
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    print(text)
    lowest = rows.loc[rows["rate"].idxmin()]
    return {
        "out": shorten(page),
        "sha256": scorer.identity()["sha256"],
        "lowest": {"set": lowest["set"], "kind": lowest["kind"], "rate": float(lowest["rate"])},
        "judged": int((rows["low"] >= LEAST).sum()),
        "rows": len(rows),
    }


def main() -> None:
    with one_sentence("check_clip_mini"):
        print(json.dumps(check(parser().parse_args())))


if __name__ == "__main__":
    main()
