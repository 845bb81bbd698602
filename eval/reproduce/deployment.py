"""Table 8: the deployment map: seconds a picture on each card, measured, predicted, reported.

The same cells as results/tables/deployment_map.md, which has rooflines, memory and documents too.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dit8.conf.paths import ROOT
from dit8.eval.calibration import calibrate, known, load_bench, measured
from dit8.eval.deployment import BASE, RESOLUTIONS, lay_out
from dit8.eval.deployment import Cell as Place
from dit8.eval.gpus import Gpu, load_peaks, load_reported
from dit8.eval.reproduce import bench
from dit8.eval.reproduce.table import (
    COUNTED,
    MEASURED,
    PREDICTED,
    REPORTED,
    Cell,
    Column,
    Table,
    empty,
    figure,
    keys,
    words,
)
from dit8.models.flops import CONTEXT_BYTES, VARIANTS

SLUG = "deployment"
CONF = ROOT / "conf" / "gpus"
CARD = "h200"  # the one that was measured
WHERE, OTHERS, PAPERS = "that card, random weights", "fractions of the H200", "the papers"
SIZE = RESOLUTIONS[0]
WEIGHTS_GB = 60.0  # what scripts/bench_model.py makes: both branches in bf16, and a variant of them
UNFUSED, FUSED = "int8_unfused", "fused_int8"
SLOWER = re.compile(r"(\d+\.\d+)x slower than its bf16 path")  # as conf/gpus/reported.csv writes it
Cells = Mapping[tuple[str, str, int], Place]
COLUMNS = (
    Column("GPU"),
    Column("variant"),
    *(Column(f"image, {size} px", MEASURED, WHERE, "s", ".2f") for size in RESOLUTIONS),
    *(Column(f"image, {size} px", PREDICTED, OTHERS, "s", ".2f") for size in RESOLUTIONS),
    Column(f"times {BASE}, {SIZE} px", PREDICTED, OTHERS, spec=".2f"),
    *(Column(f"{size} px", REPORTED, PAPERS) for size in RESOLUTIONS),
    Column(f"memory, {SIZE} px", COUNTED, "from the architecture", "GB", ".1f"),
    Column("fits", COUNTED, "from the architecture"),
)
NOTES = (
    "48 steps of both branches and the text projection, without text encoder and VAE. Predicted: "
    "counted work at the fractions of the stated peaks that the H200 reached, an assumption for "
    "every other card; for {} it holds only for kernels on an integer instruction "
    f"that Triton does not emit there. Times {BASE}: how many times as fast as {BASE} in the same "
    "engine. Rooflines, peaks and their documents: results/tables/deployment_map.md.",
    "Reported figures: arXiv 2606.12280, arXiv 2606.14598 (conf/gpus/reported.csv); quoted, not "
    "measured here.",
)


def build(results: Path) -> Table:
    """Build the table from conf/gpus and results/bench, as scripts/deployment_map.py does."""
    gpus = load_peaks(CONF / "peaks.csv")
    card = next(gpu for gpu in gpus if gpu.gpu == CARD)
    base = load_bench(results / "bench", card)
    rates = known(calibrate(base, card))
    found = {}
    for gpu in gpus:  # a card that was measured counts, whatever the fractions are from
        found |= measured(load_bench(results / "bench", gpu), gpu)
    cells = lay_out(gpus, rates, found, load_reported(CONF / "reported.csv"))
    by_key = {(cell.gpu, cell.variant, cell.resolution): cell for cell in cells}
    peak_gb = _peak_gb(results)
    lines = [_line(gpu, variant, by_key, peak_gb) for gpu in gpus for variant in VARIANTS]
    unreached = ", ".join(gpu.name for gpu in gpus if not gpu.reachable)
    title = "deployment map"
    sources = ("results/bench/gemm.csv", "results/bench/model.csv", "conf/gpus/peaks.csv")
    sources += ("conf/gpus/reported.csv",)
    notes = (NOTES[0].format(unreached), _contradictions(gpus, by_key), NOTES[1])
    notes = tuple(filter(None, notes))
    return Table(8, SLUG, title, COLUMNS, tuple(lines), notes, sources)


def _line(gpu: Gpu, variant: str, cells: Cells, peak_gb: float | None) -> tuple[Cell, ...]:
    here = [cells[gpu.gpu, variant, size] for size in RESOLUTIONS]
    base = cells[gpu.gpu, BASE, SIZE].predicted.image_s
    own = here[0].predicted.image_s
    lacking = empty("not predicted", "python scripts/bench_gemm.py; python scripts/bench_model.py")
    gain = lacking if base is None or own is None else figure(base / own)
    return (
        *keys(gpu.name, variant),
        *(_measured(gpu, place) for place in here),
        *(lacking if p.predicted.image_s is None else figure(p.predicted.image_s) for p in here),
        gain,
        *(words(p.reported) if p.reported else empty("not reported") for p in here),
        figure(here[0].needed_gb),
        words("yes" if here[0].fits else "no", _exceeded(gpu, here[0], peak_gb)),
    )


def _exceeded(gpu: Gpu, place: Place, peak_gb: float | None) -> str:
    """Say where a count fits a card that the measured peak of the engine's path does not."""
    if place.variant != UNFUSED or peak_gb is None or not place.fits:
        return ""
    if peak_gb + CONTEXT_BYTES / 1e9 <= gpu.memory_gb:
        return ""
    return (
        f"counted, not measured: int8 in our engine, which decodes a linear at a time beside its "
        f"codes, peaked at {peak_gb:.1f} GB beside CUDA's context (table 1) and does not fit"
    )


def _peak_gb(results: Path) -> float | None:
    """Return the measured peak of the engine's unfused int8, table 1's."""
    timed = bench.choose(
        bench.read_bench(results), bench.H200, ("int8", "dit8"), SIZE, "peak_bytes"
    )
    return timed.figures["peak_bytes"].estimate / 1e9 if timed else None


def _measured(gpu: Gpu, place: Place) -> Cell:
    image_s = place.measured.times.image_s
    if image_s is not None:
        return figure(image_s)
    if place.variant == UNFUSED:
        return empty("no path of the engine: no run measures it whole")
    if not place.fits:
        return empty("does not apply: it does not fit the card")
    if gpu.gpu == CARD:
        return empty("not measured", bench.command(bench.ENGINE))
    if gpu.memory_gb < WEIGHTS_GB:
        return empty("needs that card; scripts/bench_model.py makes whole weights, which exceed it")
    # no rate of a healthy card is known of those that nobody has
    return empty("needs that card", f"{bench.command(bench.ENGINE)} --expected-tflops RATE")


def _contradictions(gpus: Iterable[Gpu], cells: Cells) -> str:
    """Say of cards without a measurement where the papers' ratio to bf16 is against ours."""
    said = []
    for gpu in gpus:
        place, base = (cells[gpu.gpu, name, SIZE] for name in (FUSED, BASE))
        slower = SLOWER.match(place.reported or "")
        own, other = place.predicted.image_s, base.predicted.image_s
        if slower and own is not None and other is not None:
            said.append(
                f"{gpu.name}: predicted {other / own:.2f} times as fast as {BASE}, reported "
                f"{float(slower[1]):g} times slower"
            )
    if not said:
        return ""
    return (
        f"The reported ratios of {FUSED} contradict the predictions, which assume kernels that "
        f"reach on every card what they reached on the H200: {'; '.join(said)}. Nobody here has "
        "these cards; until they are measured the reported ratios are the better evidence."
    )
