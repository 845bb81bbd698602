"""Write the mini's prompt sets: posters with words that training never saw.

    python scripts/make_prompts.py                                # rewrites prompts/mini_*.jsonl

Deterministic: the committed files are what this prints. No word occurs in two sets.
"""

import json
import sys

try:
    from dit8.conf.paths import ROOT
except ModuleNotFoundError as missing:
    print(f"make_prompts: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import numpy as np

from dit8.eval.matching import exact_fraction
from dit8.eval.reading import read
from dit8.models.poster_drawing import draw_poster
from dit8.models.posters import Poster, caption, make_poster
from dit8.quant.files import write_atomically

SETS = {  # name -> (tiers in turn, captions, first poster seed)
    "mini_easy": (("easy",), 200, 1_000_000),
    "mini_medium": (("medium",), 200, 2_000_000),
    "mini_calibration": (("easy", "medium", "hard"), 32, 4_000_000),
    "mini_hard": (("hard",), 200, 3_000_000),
}
# The mini writes 95 % of the whole hard tier legibly. What it finds hard within it was measured on
# other seeds (results/LOG.md): small capitals, fine strokes, digits. All together: two thirds.
HARD_CAP_PX = 21.5  # the tier goes from 18 to 40
HARD_FACES = ("mono", "roman", "serif")
HARD_SPARE_SEED = 3_500_000


def is_wanted(name: str, poster: Poster) -> bool:
    """Tell whether a poster belongs in a set, its tier aside."""
    if name != "mini_hard":
        return True
    texts = [element for element in poster.elements if element.kind == "text"]
    return all(
        text.cap_px <= HARD_CAP_PX
        and text.face in HARD_FACES
        and any(character.isdigit() for character in text.text)
        for text in texts
    )


def is_legible(poster: Poster) -> bool:
    """Tell whether the poster itself is read; the detector misses 4 % of the small ones."""
    return exact_fraction(poster.texts, read(np.asarray(draw_poster(poster)))) == 1.0


def prompt_sets() -> dict[str, list[dict]]:
    """Make all rows; a poster with a word used before is passed over for the next seed."""
    used: set[str] = set()
    sets: dict[str, list[dict]] = {}
    for name, (tiers, count, seed) in SETS.items():
        rows = sets[name] = []
        while len(rows) < count:
            poster = make_poster(tiers[len(rows) % len(tiers)], seed, held_out=True)
            seed += 1
            if used & set(poster.texts) or not is_wanted(name, poster):
                continue
            used |= set(poster.texts)
            rows.append(_row(name, len(rows), poster))
    _replace_illegible(sets["mini_hard"], used)
    return sets


def _row(name: str, index: int, poster: Poster) -> dict:
    return {
        "id": f"{name.removeprefix('mini_')}-{index:03d}",
        "caption": caption(poster),
        "texts": list(poster.texts),
        "seed": poster.seed,
    }


def _replace_illegible(rows: list[dict], used: set[str]) -> None:
    """Put a legible poster, from seeds of its own, in the place of each that is not."""
    seed = HARD_SPARE_SEED
    for index, row in enumerate(rows):
        poster = make_poster("hard", row["seed"], held_out=True)
        spare = poster
        while not is_legible(spare) or (spare is not poster and used & set(spare.texts)):
            spare, seed = make_poster("hard", seed, held_out=True), seed + 1
            while not is_wanted("mini_hard", spare):
                spare, seed = make_poster("hard", seed, held_out=True), seed + 1
        if spare is not poster:
            used |= set(spare.texts)
            rows[index] = _row("mini_hard", index, spare)


def main() -> None:
    for name, rows in prompt_sets().items():
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
        text = "\n".join(lines) + "\n"
        path = ROOT / "prompts" / f"{name}.jsonl"
        write_atomically(path, lambda partial, text=text: partial.write_text(text))
        print(f"{path.relative_to(ROOT)}: {len(rows)} captions")


if __name__ == "__main__":
    main()
