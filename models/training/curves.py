"""The training's two curves, loss and legibility, appended to CSV files and printed."""

import csv
import time
from collections.abc import Callable
from pathlib import Path

LOSS = ("stage", "step", "samples", "loss", "lr", "samples_per_s", "seconds")
OCR = ("stage", "tier", "step", "samples", "ocr_exact", "ocr_ned", "psnr_db", "n")


class Curves:
    """Append rows to `loss.csv` and `ocr.csv` in a folder; a resumed training goes on below."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.start = folder, time.monotonic()
        for name, columns in (("loss", LOSS), ("ocr", OCR)):
            if not (folder / f"{name}.csv").exists():
                self._append(name, columns)

    def _append(self, name: str, cells) -> None:
        with open(self.folder / f"{name}.csv", "a", newline="", encoding="utf-8") as file:
            rounded = [f"{c:.6g}" if isinstance(c, float) else c for c in cells]
            csv.writer(file, lineterminator="\n").writerow(rounded)

    def loss(self, **row) -> None:
        """Keep one point of the loss; `seconds` since this run began is added."""
        row["seconds"] = time.monotonic() - self.start
        self._append("loss", [row.get(column, "") for column in LOSS])
        print(_readable(row), flush=True)

    def ocr(self, **fixed) -> Callable[[float, float], None]:
        """Return a callback that keeps (share read exactly, mean edit distance) with `fixed`."""

        def report(exact: float, ned: float) -> None:
            row = fixed | {"ocr_exact": exact, "ocr_ned": ned}
            self._append("ocr", [row.get(column, "") for column in OCR])
            print("OCR", _readable(row), flush=True)

        return report


def _readable(row: dict) -> str:
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
