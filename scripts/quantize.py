"""Quantize a model: calibrate (if needed), apply a recipe, write a checkpoint.

    python scripts/quantize.py                                    # the mini, the papers' recipe
    python scripts/quantize.py recipe=rotate                      # any file of conf/recipe
    python scripts/quantize.py recipe=smoothquant recipe.alpha=0.7 recipe.name=alpha_07
    python scripts/quantize.py recipe.keep=[conditional.layers.0.feed_forward.w2]
    python scripts/quantize.py format=q4_k                        # or fp8 nf4 q8_0 comfy bf16
    python scripts/quantize.py release=true                       # a folder ready to publish

Recipes decide about int8 weights and activations, so formats that only store weights (fp8, nf4,
q8_0, q4_k, bf16) have none. Writes <checkpoints>/<model>/<recipe or format>-<key>/; the same
configuration finds its checkpoint again. Prints the table of layers, and one JSON document last.
"""

import json
import sys
from pathlib import Path

try:
    from dit8.conf.paths import ROOT, from_root, shorten
    from dit8.scripts.cli import hydra_main, parse_first
except ModuleNotFoundError as missing:
    print(f"quantize: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from rich.console import Console
from rich.table import Table

from dit8.conf.schema import QuantizeConfig
from dit8.eval.provenance import git_state, versions
from dit8.quant.model_card import ReleaseCard, base_of
from dit8.quant.release import find_licence, write_release

if __name__ == "__main__":
    parse_first("quantize", __doc__)  # help and mistakes end here: what follows takes seconds

from dit8.models.artifacts import Model, Quantized, open_model, quantize_model
from dit8.models.memory import peak_rss_bytes
from dit8.quant.formats.table import Format, get_format
from dit8.quant.types import LayerReport


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


def release(config: QuantizeConfig, model: Model, target: Format, quantized: Quantized) -> Path:
    """Lay a checkpoint out as one would publish it; returns the folder."""
    base, git = base_of(config.model.name), git_state(ROOT)
    resolved = quantized.resolved
    lora = None
    if config.lora is not None:
        lora = f"{Path(config.lora).name}, strength {config.lora_scale:g}"
    label = target.name if resolved is None else f"{target.name}-{resolved.recipe.name}"
    card = ReleaseCard(
        name=f"{config.model.name}-{label}",
        format=target.name,
        recipe=None if resolved is None else resolved.recipe.name,
        base=base,
        source_sha256=model.sha256,
        quantized=quantized.linears,
        protected=0 if resolved is None else len(resolved.protected),
        commit=git["commit"],
        dirty=bool(git["dirty"]),
        versions=versions(),
        lora=lora,
        evaluation=(),
        licence_text=find_licence(ROOT if base.repository is None else model.folder),
    )
    folder = from_root(config.checkpoints) / "releases" / card.name
    write_release(folder, quantized.path, card)
    return folder


@hydra_main("quantize")
def main(config: QuantizeConfig) -> None:
    target = get_format(config.format)
    model = open_model(config.model)
    quantized = quantize_model(config, model, target)
    resolved = quantized.resolved
    if quantized.reports:
        Console(width=100).print(layer_table(quantized.reports))
    for key, reason in {} if resolved is None else resolved.reasons.items():
        print(f"{key}: {reason}", file=sys.stderr)
    document = {
        "checkpoint": shorten(quantized.path),
        "format": target.name,
        "recipe": None if resolved is None else resolved.recipe.name,
        "linears": quantized.linears,
        "protected": 0 if resolved is None else len(resolved.protected),
        "bytes": quantized.size_bytes,
        "seconds": round(quantized.seconds, 2),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if config.release:
        document["release"] = shorten(release(config, model, target, quantized))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
