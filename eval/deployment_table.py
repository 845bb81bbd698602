"""Write the deployment map down: a page of markdown for readers, one line a cell for programs.

Pure: the same cells give the same bytes.
"""

import csv
import io
from collections.abc import Iterable, Sequence

from dit8.eval.deployment import (
    BASE,
    BEST,
    RESOLUTIONS,
    STEPS,
    TEXT_TOKENS,
    UNKNOWN,
    Cell,
    Gain,
)
from dit8.eval.gpus import Gpu
from dit8.eval.roofline import Fraction
from dit8.models.flops import CONTEXT_BYTES, VARIANTS

MISSING = "not measured"
COMMANDS = "`python scripts/bench_gemm.py` and `python scripts/bench_model.py`"
COLUMNS = (
    *("gpu", "variant", "resolution", "text_tokens"),
    *("roofline_step_ms", "predicted_step_ms", "measured_step_ms"),
    *("roofline_image_s", "predicted_image_s", "measured_image_s"),
    *("reported", "reported_source"),
    *("counted_gb", "measured_peak_gb", "memory_gb", "fits"),
)
LIMITS = (
    "A prediction for another card leaves out what its documents do not say: clocks under its "
    "power limit, kernels that nobody has timed on it, attention at head_dim 256 in its shared "
    "memory, and waiting for the host.\n"
)
MEANS = {
    "bf16_stock": "diffusers as it is: eager, text padded to 2048 rows, masked",
    "bf16": "the engine in bf16",
    "int8_unfused": "W8A8 in the engine; quantize, int32 product and dequantize are kernels of "
    "their own; 17 + 17 down-projections in bf16; no run measures it whole",
    "fused_int8": "W8A8 with fused producers and epilogues, the same 17 + 17 in bf16",
    "rotated": "the same with rotated activations, nothing in bf16",
}


def render_csv(cells: Sequence[Cell], gpus: Sequence[Gpu]) -> str:
    """Render one line per GPU, resolution and variant; an empty field is not known."""
    memory = {gpu.gpu: gpu.memory_gb for gpu in gpus}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        kinds = (cell.roofline, cell.predicted, cell.measured.times)
        writer.writerow(
            [
                *(cell.gpu, cell.variant, cell.resolution, TEXT_TOKENS),
                *(_number(kind.step_ms, ".5g", "") for kind in kinds),
                *(_number(kind.image_s, ".5g", "") for kind in kinds),
                *(cell.reported or "", cell.reported_source or ""),
                *(f"{cell.needed_gb:.2f}", _number(cell.measured.peak_gb, ".2f", "")),
                *(f"{memory[cell.gpu]:g}", "yes" if cell.fits else "no"),
            ]
        )
    return file.getvalue()


def render_markdown(
    gpus: Sequence[Gpu],
    fractions: Sequence[Fraction],
    cells: Sequence[Cell],
    gains: Sequence[Gain],
    card: Gpu,
) -> str:
    """Render peaks, calibration, check, times, gains, memory and reports.

    Args:
        gpus: of the table of peaks.
        fractions: of every unit.
        cells: of `eval.deployment.lay_out`.
        gains: of `eval.deployment.gains`.
        card: the one that was measured.
    """
    parts = [
        f"Both branches of a CFG step, {TEXT_TOKENS} text tokens; an image is {STEPS} steps and "
        "the text projection, without text encoder and VAE. **Roofline**: counted work at the "
        "stated peaks, which no kernel beats. **Predicted**: at the fractions of the peaks that "
        f"the {card.name} reached, which is an assumption for every other card. **Measured**: on "
        f"the {card.name} only. **Reported**: by papers, never run here.\n",
        "".join(f"- `{name}`: {meaning}\n" for name, meaning in MEANS.items()),
        f"## Where `{BEST}` beats `{BASE}`\n",
        _gains(gains, gpus),
        _verdict(gains, gpus),
        "## Times\n",
    ]
    for resolution in RESOLUTIONS:
        here = [cell for cell in cells if cell.resolution == resolution]
        for kind in ("roofline", "predicted"):
            if any(getattr(cell, kind) != UNKNOWN for cell in here):
                title = f"{kind.capitalize()}, {resolution} x {resolution}"
                parts.append(f"{title}: ms a CFG step, s an image:\n\n{_grid(here, gpus, kind)}")
    parts += [
        "## Memory\n",
        _memory(cells, gpus, card),
        "## Reported by papers\n",
        _reported(cells, gpus),
        f"## Check on the {card.name}\n",
        _check(cells, card),
        "## Fractions of the peaks\n",
        _table(
            ["unit", f"fraction reached by the {card.name}", "from"],
            ([f.unit, _number(f.value, ".3f"), f.basis] for f in fractions),
        ),
    ]
    if any(fraction.value is None for fraction in fractions):
        parts.append(f"What is not measured, {COMMANDS} fill in on such a card.\n")
    parts.append(LIMITS)
    parts += [
        "## Peaks by the documents\n",
        _peaks(gpus),
        "".join(f"- {gpu.name}: {gpu.source}.{_sentence(gpu.note)}\n" for gpu in gpus),
        "Dense, fp32 or int32 accumulation, decimal units; an empty cell is in no document that "
        "we found. GeForce cards halve bf16 and leave int8 whole, so that int8 is four times bf16 "
        "there and twice on the data center cards, but for the B300.\n",
    ]
    return "\n".join(parts)


def _peaks(gpus: Iterable[Gpu]) -> str:
    head = ["GPU", "sm", "SMs", "bf16 TFLOPS", "int8 TOPS", "int8 / bf16", "FP8 TFLOPS", "GB/s"]
    rows = (
        [
            *(gpu.name, str(gpu.sm), _number(gpu.sms, "d", ""), f"{gpu.bf16_tflops:g}"),
            *(f"{gpu.int8_tops:g}", f"{gpu.int8_tops / gpu.bf16_tflops:.2f}"),
            *(_number(gpu.fp8_tflops, "g", ""), f"{gpu.memory_gb_s:g}"),
            *(f"{gpu.memory_gb:g}", _number(gpu.l2_mb, "g", ""), gpu.int8_instruction),
        ]
        for gpu in gpus
    )
    return _table([*head, "GB", "L2 MB", "int8 peak by"], rows)


def _check(cells: Iterable[Cell], card: Gpu) -> str:
    rows = []
    for cell in cells:
        predicted, measured = cell.predicted.step_ms, cell.measured.times.step_ms
        if cell.gpu == card.gpu and (predicted is not None or measured is not None):
            both = predicted is not None and measured is not None
            error = f"{100 * (predicted / measured - 1):+.1f} %" if both else MISSING
            found = [_number(time, ".1f") for time in (predicted, measured)]
            rows.append([cell.variant, str(cell.resolution), *found, error])
    if not rows:
        return f"Nothing to check yet: whole steps are {MISSING}.\n"
    head = ["variant", "resolution", "predicted step, ms", "measured step, ms", "error"]
    return _table(head, rows)


def _grid(cells: Sequence[Cell], gpus: Iterable[Gpu], kind: str) -> str:
    found = {}
    for cell in cells:
        times = getattr(cell, kind)
        both = (f"{times.step_ms:.1f}, {times.image_s:.2f}") if times != UNKNOWN else MISSING
        found[cell.gpu, cell.variant] = both
    rows = ([gpu.name, *(found[gpu.gpu, name] for name in VARIANTS)] for gpu in gpus)
    return _table(["GPU", *VARIANTS], rows)


def _gains(gains: Sequence[Gain], gpus: Iterable[Gpu]) -> str:
    found = {(gain.gpu, gain.resolution): gain for gain in gains}
    rows = []
    for gpu in gpus:
        here = [found[gpu.gpu, resolution] for resolution in RESOLUTIONS]
        kinds = ("roofline", "predicted", "measured")
        texts = [" / ".join(_times(getattr(gain, kind)) for gain in here) for kind in kinds]
        level = here[0].break_even
        rows.append([gpu.name, *texts, f"{level:.2f}" if level <= 1 else "never"])
    sizes = " / ".join(map(str, RESOLUTIONS))
    head = [f"bf16 time over int8 time, at {sizes}", "roofline", "predicted", "measured"]
    return _table([*head, "break-even"], rows)


def _times(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}x"


def _verdict(gains: Sequence[Gain], gpus: Iterable[Gpu]) -> str:
    """Say in words where int8 wins: by the prediction, or by the roofline while there is none."""
    here = {gain.gpu: gain for gain in gains if gain.resolution == RESOLUTIONS[0]}
    basis = "roofline" if any(gain.predicted is None for gain in here.values()) else "predicted"
    wins, loses, unreached = [], [], []
    for gpu in gpus:
        ratio = getattr(here[gpu.gpu], basis)
        group = (wins if ratio > 1 else loses) if gpu.reachable else unreached
        group.append(f"{gpu.name} ({_times(ratio)})")
    lines = [f"By the {basis} times at {RESOLUTIONS[0]}:\n"]
    if wins:
        lines.append(f"- int8 wins on {', '.join(wins)};")
    if loses:
        lines.append(f"- it loses on {', '.join(loses)};")
    if unreached:
        lines.append(
            f"- on {', '.join(unreached)} the figure holds only for kernels on the integer "
            "instruction that reaches the peak, which Triton does not emit there (compare what "
            "papers report)."
        )
    lines.append(
        "\nBreak-even: the fraction of the int8 peak that the products must reach for a step to "
        f"take as long as in bf16, at {RESOLUTIONS[0]}."
    )
    return "\n".join(lines) + "\n"


def _memory(cells: Sequence[Cell], gpus: Sequence[Gpu], card: Gpu) -> str:
    here = {(cell.gpu, cell.variant): cell for cell in cells if cell.resolution == RESOLUTIONS[0]}
    rows = []
    for name in VARIANTS:
        own = here[card.gpu, name]
        sizes = [f"{own.needed_gb:.1f}", _number(own.measured.peak_gb, ".1f")]
        fits = ("yes" if here[gpu.gpu, name].fits else "no" for gpu in gpus)
        rows.append([name, *sizes, *fits])
    labels = (f"{gpu.name}, {gpu.memory_gb:g} GB" for gpu in gpus)
    head = [f"does it fit, at {RESOLUTIONS[0]}", "counted, GB", f"measured on the {card.name}, GB"]
    return (
        _table([*head, *labels], rows)
        + "\nBoth branches on the card while denoising, a batch of one: weights as on disk, "
        f"activations, {CONTEXT_BYTES / 1e9:g} GB for the CUDA context (an assumption; the "
        "measured peak is without it). Text encoder and VAE are staged. A card's memory is taken "
        "as decimal GB, the cautious reading.\n"
    )


def _reported(cells: Iterable[Cell], gpus: Sequence[Gpu]) -> str:
    names = {gpu.gpu: gpu.name for gpu in gpus}
    rows = (
        [
            *(names[cell.gpu], cell.variant, str(cell.resolution), cell.reported),
            *(_number(cell.roofline.image_s, ".1f"), _number(cell.predicted.image_s, ".1f")),
            cell.reported_source or "",
        ]
        for cell in cells
        if cell.reported
    )
    head = ["GPU", "variant", "resolution", "reported", "our roofline, s", "our prediction, s"]
    return _table([*head, "source"], rows) + (
        "\nTheir forward is not our engine: around the products it does what `bf16_stock` does.\n"
    )


def _sentence(note: str | None) -> str:
    return "" if note is None else f" {note[0].upper()}{note[1:]}."


def _number(value: float | None, spec: str, missing: str = MISSING) -> str:
    return missing if value is None else f"{value:{spec}}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
