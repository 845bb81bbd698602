"""Quantize a model: calibrate (if needed), apply a recipe, write one W8A8 safetensors.

    python scripts/quantize.py                                    # the mini, the papers' recipe
    python scripts/quantize.py recipe=naive
    python scripts/quantize.py recipe=smoothquant recipe.alpha=0.7 recipe.name=alpha_07
    python scripts/quantize.py recipe.smoothing_carrier=explicit recipe.name=smooth_true

Writes <checkpoints>/<model>/<recipe>-<key>/model.safetensors and recipe.json; the same
configuration finds its checkpoint again. Prints the table of layers, and one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json

from rich.console import Console
from rich.table import Table

from conf.schema import QuantizeConfig
from quant.types import LayerReport
from scripts.cli import hydra_main, terse
from scripts.stages import open_model, peak_rss_bytes, quantize_model


def layer_table(reports: tuple[LayerReport, ...]) -> Table:
    """Lay out one row a linear: what became of it and why."""
    table = Table("branch", "linear", "input crest", "kept bf16", "int8 weight error %")
    for report in reports:
        table.add_row(
            report.branch,
            report.name,
            "" if report.crest is None else f"{report.crest:.1f}",
            "yes" if report.protected else "",
            f"{100 * report.weight_error:.3f}",
        )
    return table


@hydra_main("quantize")
def main(config: QuantizeConfig) -> None:
    model = open_model(config.model)
    quantized = quantize_model(config, model)
    if quantized.reports:
        Console(width=100).print(layer_table(quantized.reports))
    document = {
        "checkpoint": terse(quantized.path),
        "recipe": quantized.resolved.recipe.name,
        "linears": quantized.linears,
        "protected": len(quantized.resolved.protected),
        "seconds": round(quantized.seconds, 2),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
