"""Map where fused int8 pays: GPU by GPU, from their peaks, checked on the one that was measured.

    python scripts/deployment_map.py                              # from the committed rows
    python scripts/bench_gemm.py && python scripts/bench_model.py # your own, on a GPU: an H200
    python scripts/deployment_map.py --results outputs/results --gpu h200

Reads conf/gpus (peaks and reported figures, with their documents) and <results>/bench (our rows).
Without rows the prediction is "not measured" and the rooflines stand alone. Writes
<results>/tables/deployment_map.md and .csv. Prints one JSON document last.
"""

import argparse
import json
import sys

try:
    from dit8.conf.paths import ROOT, from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"deployment_map: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.calibration import calibrate, known, load_bench, measured
from dit8.eval.deployment import RESOLUTIONS, gains, lay_out
from dit8.eval.deployment_table import MISSING, render_csv, render_markdown
from dit8.eval.gpus import load_peaks, load_reported
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

PEAKS, REPORTED = "conf/gpus/peaks.csv", "conf/gpus/reported.csv"


def draw_map(arguments: argparse.Namespace) -> dict:
    """Read, calibrate, predict, write both tables.

    Raises:
        UserError: an unknown GPU, or a table that is not one.
    """
    gpus = load_peaks(ROOT / PEAKS)
    cards = {gpu.gpu: gpu for gpu in gpus}
    if arguments.gpu not in cards:
        raise UserError(
            f"gpu must be one of {', '.join(cards)}, got {arguments.gpu!r}; "
            f"correct it or add a row to {PEAKS}"
        )
    card, results = cards[arguments.gpu], from_root(arguments.results)
    bench = load_bench(results / "bench", card)
    fractions = calibrate(bench, card)
    rates = known(fractions)
    cells = lay_out(gpus, rates, measured(bench, card), load_reported(ROOT / REPORTED))
    found = list(gains(cells, gpus, rates))
    texts = {
        "md": render_markdown(gpus, fractions, cells, found, card),
        "csv": render_csv(cells, gpus),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(results / "tables" / f"deployment_map.{suffix}")
        write_atomically(paths[-1], lambda p, text=text: p.write_text(text, encoding="utf-8"))
    print(texts["md"])
    largest = [gain for gain in found if gain.resolution == RESOLUTIONS[0]]
    return {
        "tables": [shorten(path) for path in paths],
        "calibrated_on": card.gpu,
        "fractions": {f.unit: MISSING if f.value is None else round(f.value, 3) for f in fractions},
        "step_errors": {
            f"{cell.variant}@{cell.resolution}": round(
                cell.predicted.step_ms / cell.measured.times.step_ms - 1, 3
            )
            for cell in cells
            if cell.predicted.step_ms and cell.measured.times.step_ms
        },
        "gains_roofline": {gain.gpu: round(gain.roofline, 2) for gain in largest},
        "gains_predicted": {
            gain.gpu: round(gain.predicted, 2) if gain.predicted else MISSING for gain in largest
        },
    }


def main() -> None:
    with one_sentence("deployment_map"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--results", default="results")
        parser.add_argument("--gpu", default="h200", help="the card that was measured")
        print(json.dumps(draw_map(parser.parse_args())))


if __name__ == "__main__":
    main()
