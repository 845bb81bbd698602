"""Tabulate results/bench/model.csv.

    python scripts/model_speed_table.py                           # results/tables/model_speed.md

One table a run and resolution: runs are never mixed, because times of two cards, or of one card on
two days, have no ratio. Prints one JSON document last.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"model_speed_table: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.ledger import read_table
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--results", default="results")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.scripts.kernel_components import COMPONENTS
from dit8.scripts.model_paths import PATHS
from dit8.scripts.model_rows import FULL_STEPS, MODEL

Rows = Sequence[Mapping[str, Any]]
ORDER = list(PATHS.values())


def model_table(rows: Rows) -> str:
    """Lay out rows as Markdown: speed and memory of each run, then where the time goes."""
    parts = ["Newest first: an older run is of what the code was then."] if rows else []
    beside_stock = {row["run_id"] for row in rows if row["engine"] == "stock"}
    # what is compared with stock diffusers comes first, and the newest: older ones it replaces
    for run_id in sorted(
        {row["run_id"] for row in rows}, key=lambda run: (run in beside_stock, run), reverse=True
    ):
        own = [row for row in rows if row["run_id"] == run_id]
        for size_px in sorted({row["resolution"] for row in own}, reverse=True):
            cells = _cells(row for row in own if row["resolution"] == size_px)
            first = next(row for row in own if row["resolution"] == size_px)
            title = (
                f"{first['gpu']}, {size_px} x {size_px} px, {first['text_tokens']} text tokens, "
                f"random weights; {first['versions']}; run {run_id}"
            )
            tables = [table for table in (speed_table(cells), component_table(cells)) if table]
            parts.append("\n\n".join([title, *tables]))
    return "\n\n".join(parts or ["No model was measured."]) + "\n"


def _cells(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Mapping]]:
    """Arrange rows: (variant, engine), in the order of PATHS -> quantity -> row."""
    cells: dict[tuple[str, str], dict[str, Mapping]] = {}
    for row in rows:
        cells.setdefault((row["variant"], row["engine"]), {})[row["quantity"]] = row
    return dict(sorted(cells.items(), key=lambda item: ORDER.index(item[0])))


def speed_table(cells: Mapping[tuple[str, str], Mapping[str, Mapping]]) -> str:
    """Tabulate step, image and peak; the ratios are of the steps of this run."""
    steps = {key: own["cfg_step_ms"]["value"] for key, own in cells.items() if "cfg_step_ms" in own}
    capped = [own["peak_bytes_capped"] for own in cells.values() if "peak_bytes_capped" in own]
    lines = [f"Peak with its context, capped: {row['value'] / 1e9:.2f} GB" for row in capped]
    if steps:
        lines += [
            f"| variant | engine | CFG step, ms | {FULL_STEPS}-step image, s | peak, GB "
            "| against stock | against bf16 dit8 |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
    for (variant, engine), own in cells.items():
        if (variant, engine) not in steps:
            continue
        peak = own.get("peak_bytes")
        entries = [
            variant,
            engine,
            _interval(own["cfg_step_ms"], 1),
            _interval(own["image_s"], 2) if "image_s" in own else "",
            "" if peak is None else f"{peak['value'] / 1e9:.1f}",
            *(
                f"{steps[anchor] / steps[variant, engine]:.2f}x" if anchor in steps else ""
                for anchor in (PATHS["stock"], PATHS["bf16"])
            ),
        ]
        lines.append("| " + " | ".join(entries) + " |")
    return "\n".join(lines)


def component_table(cells: Mapping[tuple[str, str], Mapping[str, Mapping]]) -> str:
    """Tabulate kernel ms per CFG step; "waiting" is what of the step no kernel ran."""
    profiled = {key: own for key, own in cells.items() if f"ms_{COMPONENTS[0]}" in own}
    if not profiled:
        return ""
    lines = [
        f"| kernel ms per CFG step | {' | '.join(COMPONENTS)} | waiting |",
        f"| --- |{' --- |' * (len(COMPONENTS) + 1)}",
    ]
    for (variant, engine), own in profiled.items():
        values = [own[f"ms_{name}"]["value"] for name in COMPONENTS]
        waiting = "" if "cfg_step_ms" not in own else own["cfg_step_ms"]["value"] - sum(values)
        texts = [f"{value:.1f}" for value in (*values, waiting) if value != ""]
        lines.append(f"| {variant}, {engine} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _interval(row: Mapping[str, Any], digits: int) -> str:
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def main() -> None:
    with one_sentence("model_speed_table"):
        results = from_root(parser().parse_args().results)
        rows = read_table(results / "bench" / "model.csv", MODEL).to_dict("records")
        text, page = model_table(rows), results / "tables" / "model_speed.md"
        write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
        print(json.dumps({"page": shorten(page), "rows": len(rows)}))


if __name__ == "__main__":
    main()
