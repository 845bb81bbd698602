"""Write the ablation down: a page of markdown for readers, a long-form CSV for programs.

Pure: the same entries give the same bytes. What the tables show is also said in sentences, which
are computed: a recipe that does not help is named as such.
"""

import csv
import io
from collections.abc import Sequence

from dit8.eval.ablation import (
    BASE,
    HELPS,
    HURTS,
    MEANS,
    MISSING,
    SCORERS,
    UNDECIDED,
    Entry,
)
from dit8.eval.run import Interval
from dit8.eval.stats import LEVEL

CHANGE = "latent_error_change"
COLUMNS = (
    *("model", "row", "variant", "recipe", "dtype", "run_id", "measure"),
    *("estimate", "low", "high", "method", "verdict"),
)
# header, scorer, format: what the second table shows
PICTURES = (
    ("PSNR, dB ↑", "psnr", ".1f"),
    ("SSIM ↑", "ssim", ".4f"),
    ("Δ texts read exactly ↑", "ocr_exact", "+.3f"),
)
RULE = (
    "Rows `naive` to `auto` are variant int8 (W8A8, unfused product) under that recipe, `comfy` is "
    "recipe smoothquant in that layout, `bf16` is the unquantized model in bf16 arithmetic; all "
    "others compute in fp32. Latent error, PSNR and SSIM compare with the unquantized model in "
    "fp32 on the same captions and noise; Δ is paired with the texts read in its pictures. "
    f"Brackets are {100 * LEVEL:.0f} % intervals over captions, by BCa unless another method is "
    "named.\n\n"
    f"Rule of the verdict: a row *{HELPS}* if the interval of its latent error minus that of "
    f"`{BASE}`, paired by caption, lies below zero, *{HURTS}* if it lies above; else "
    f"*{UNDECIDED}*. Nothing is corrected for the number of rows: of rows without any effect "
    f"about {100 * (1 - LEVEL):.0f} % are given one.\n"
)


def render_markdown(entries: Sequence[Entry], title: str) -> str:
    """Render two tables with the models side by side, the rule, and what follows from it.

    Args:
        entries: of `eval.ablation.ablate`.
        title: one line: prompts, captions, backend.
    """
    models = list(dict.fromkeys(entry.model for entry in entries))
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(entry.cell.name, []).append(entry)
    kinds = [_kind(model) for model in models]
    latents = [["row", *(f"{kind}: latent error ↓" for kind in kinds)]]
    latents[0] += [f"{kind}: change against {BASE}" for kind in kinds]
    pictures = [["row", *(f"{model}: {head}" for head, _, _ in PICTURES for model in models)]]
    for name, row in rows.items():
        errors = [_text(entry.scores.get("latent_error"), ".3g") for entry in row]
        latents.append([name, *errors, *(_change(entry) for entry in row)])
        scores = [_text(e.scores.get(scorer), spec) for _, scorer, spec in PICTURES for e in row]
        pictures.append([name, *scores])
    findings = [line for m in models for line in _findings([e for e in entries if e.model == m])]
    parts = [title + "\n", _table(latents), _table(pictures), RULE, *(f"{f}\n" for f in findings)]
    return "\n".join(parts)


def render_csv(entries: Sequence[Entry]) -> str:
    """Render one line per model, row and measure.

    Numbers have six digits: further ones depend on the order in which a processor adds.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        cell = entry.cell
        shared = [entry.model, cell.name, cell.variant, cell.recipe, cell.dtype, entry.run_id or ""]
        for scorer in SCORERS:
            measure = scorer if scorer in MEANS else f"{scorer}_delta"
            writer.writerow([*shared, measure, *_numbers(entry.scores.get(scorer)), ""])
        if cell.name != BASE:
            writer.writerow([*shared, CHANGE, *_numbers(entry.change), entry.verdict])
    return file.getvalue()


def _findings(entries: Sequence[Entry]) -> list[str]:
    """Say in words what one model shows: which recipes help, which do not, what is missing."""
    model = _kind(entries[0].model)
    missing = [entry.cell.name for entry in entries if not entry.scores]
    if len(missing) == len(entries):
        return [f"Nothing is measured on {model} yet."]
    recipes = [entry for entry in entries if entry.cell.variant == "int8"]
    named = {
        verdict: [entry.cell.name for entry in recipes if entry.verdict == verdict]
        for verdict in (HELPS, UNDECIDED, HURTS)
    }
    judged, helping = sum(map(len, named.values())), named[HELPS]
    lines = []
    if helping:
        lines.append(f"Recipes that help on {model}, {len(helping)} of {judged}: {_list(helping)}.")
    elif judged:
        lines.append(f"No recipe of {judged} helps on {model}.")
    if judged > len(helping):
        reasons = (("no difference is seen for", UNDECIDED), (f"{BASE} is better than", HURTS))
        parts = [f"{words} {_list(named[verdict])}" for words, verdict in reasons if named[verdict]]
        lines.append(
            f"Recipes that do not help on {model}, {judged - len(helping)} of {judged}: "
            f"{'; '.join(parts)}."
        )
    same = [f"{entry.cell.name} = {entry.same_as}" for entry in entries if entry.same_as]
    if same:
        lines.append(f"Equal latent errors on every caption of {model}: {_list(same)}.")
    if missing:
        lines.append(f"Not measured on {model}: {_list(missing)}.")
    return lines


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _kind(model: str) -> str:
    return f"{model} (outliers planted)" if "planted" in model else model


def _change(entry: Entry) -> str:
    if entry.cell.name == BASE:
        return ""
    if entry.change is None:
        return MISSING
    return f"{entry.verdict}, {_text(entry.change, '+.3g')}"


def _numbers(interval: Interval | None) -> list[str]:
    if interval is None:
        return ["", "", "", MISSING]
    numbers = (interval.estimate, interval.low, interval.high)
    return [*(f"{number:.6g}" for number in numbers), interval.method]


def _text(interval: Interval | None, spec: str) -> str:
    if interval is None:
        return MISSING
    text = f"{interval.estimate:{spec}} [{interval.low:{spec}}, {interval.high:{spec}}]"
    return text if interval.method == "bca" else f"{text} ({interval.method})"


def _table(lines: Sequence[list[str]]) -> str:
    """Lay out a header and rows as a markdown table with aligned columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    cells = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (lines[0], rule, *lines[1:])
    )
    return "".join(f"| {line} |\n" for line in cells)
