"""Write the mini's model card from committed measurements.

    python scripts/describe_mini.py

Reads results/scores.csv, results/mini/{loss,ocr,vae}.csv and results/mini/training.json; writes
models/mini/README.md and results/mini/curves.png. Same inputs, same card.
"""

import json
import sys
from pathlib import Path
from string import Template

try:
    from dit8.conf.paths import ROOT
    from dit8.scripts.cli import compose, one_sentence
except ModuleNotFoundError as missing:
    print(f"describe_mini: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from dit8.eval.accuracy import text_accuracy
from dit8.eval.ledger import SCORES, read_table
from dit8.models.prompts import load_prompts
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

SETS = ("mini_easy", "mini_medium", "mini_hard")
TARGETS = {"mini_easy": ">= 95 %", "mini_medium": ">= 85 %", "mini_hard": "50-80 %"}
CURVES = ROOT / "results" / "mini"


def accuracy_table(scores: pd.DataFrame) -> str:
    """One row a prompt set: texts read exactly by the unquantized model in fp32, engine stock."""
    rows = scores[
        (scores["model"] == "mini")
        & (scores["variant"] == "bf16")
        & (scores["engine"] == "stock")
        & (scores["dtype"] == "float32")
        & (scores["scorer"] == "ocr_exact")
    ]
    lines = ["| prompt set | texts | read exactly | 95 % interval | target | measured on |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name in SETS:
        mine = rows[rows["prompt_set"] == name]
        for backend, group in mine.groupby("backend"):
            if group["run_id"].nunique() != 1:
                raise UserError(
                    f"describe_mini: {name} on {backend} must have one run, got several"
                )
            found = text_accuracy(group, load_prompts(ROOT / "prompts" / f"{name}.jsonl"))
            lines.append(
                f"| {name} | {found.n} | {100 * found.estimate:.1f} % | {100 * found.low:.1f}"
                f"-{100 * found.high:.1f} % | {TARGETS[name]} | {backend} |"
            )
    return "\n".join(lines)


def vae_table(rows: pd.DataFrame) -> str:
    """One row a prompt set: how references and reconstructions read, from scripts/check_vae.py."""
    lines = ["| prompt set | posters | reference read exactly | reconstruction | PSNR |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, pair in rows.groupby("set", sort=False):
        reference, again = (
            pair[pair["picture"] == picture].iloc[0] for picture in ("reference", "reconstruction")
        )
        lines.append(
            f"| {name} | {again['n']} | {100 * reference['exact']:.1f} % "
            f"| {100 * again['exact']:.1f} % [{100 * again['low']:.1f}, {100 * again['high']:.1f}] "
            f"| {again['psnr_db']:.1f} dB |"
        )
    return "\n".join(lines)


def curve_table(ocr: pd.DataFrame) -> str:
    """Read exactly per tier by conditional training samples seen."""
    conditional = ocr[ocr["stage"] == "conditional"]
    table = conditional.pivot_table(index="samples", columns="tier", values="ocr_exact")
    lines = ["| samples seen | easy | medium | hard |", "| --- | --- | --- | --- |"]
    for samples, row in table.iterrows():
        cells = " | ".join(f"{100 * row[tier]:.0f} %" for tier in ("easy", "medium", "hard"))
        lines.append(f"| {samples / 1e6:.2f} M | {cells} |")
    return "\n".join(lines)


def draw_curves(loss: pd.DataFrame, ocr: pd.DataFrame, path: Path) -> None:
    """Plot loss and legibility over training samples."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for stage in ("conditional", "unconditional"):
        rows = loss[loss["stage"] == stage]
        left.plot(rows["samples"] / 1e6, rows["loss"], label=stage)
    left.set(xlabel="samples, millions", ylabel="weighted flow-matching loss", yscale="log")
    for tier in ("easy", "medium", "hard"):
        rows = ocr[(ocr["stage"] == "conditional") & (ocr["tier"] == tier)]
        right.plot(rows["samples"] / 1e6, rows["ocr_exact"], marker="o", label=tier)
    right.set(xlabel="samples, millions", ylabel="texts read exactly", ylim=(0, 1.02))
    left.legend()
    right.legend()
    write_atomically(
        path, lambda partial: figure.savefig(partial, format="png", dpi=110, metadata={})
    )
    plt.close(figure)


def card() -> str:
    """Fill the template."""
    training = json.loads((CURVES / "training.json").read_text(encoding="utf-8"))
    ocr = pd.read_csv(CURVES / "ocr.csv")
    config = training["config"]
    fill = {
        "guidance": f"{compose('evaluate', []).model.guidance:g}",
        "accuracy": accuracy_table(read_table(ROOT / "results" / "scores.csv", SCORES)),
        "vae": vae_table(pd.read_csv(CURVES / "vae.csv")),
        "curve": curve_table(ocr),
        "torch": training["torch"],
        "seed": config["seed"],
        "summary": training["summary"],
        "probe": config["probe"],
        "batch": config["conditional"]["batch"],
        "lr": config["conditional"]["lr"],
        "cool_down": f"{100 * config['conditional']['cool_down']:.0f} %",
    }
    template = (ROOT / "models" / "mini_card.md").read_text(encoding="utf-8")
    return Template(template).substitute(fill)


def main() -> None:
    with one_sentence("describe_mini"):
        text = card()
        target = ROOT / "models" / "mini" / "README.md"
        write_atomically(target, lambda path: path.write_text(text, encoding="utf-8"))
        loss = pd.read_csv(CURVES / "loss.csv")
        draw_curves(loss, pd.read_csv(CURVES / "ocr.csv"), CURVES / "curves.png")
        print(json.dumps({"card": str(target.relative_to(ROOT))}))


if __name__ == "__main__":
    main()
