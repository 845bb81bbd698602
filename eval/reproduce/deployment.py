"""Table 8: the deployment map: seconds a picture on each card, measured, predicted, reported.

The same cells as results/tables/deployment_map.md, which has rooflines, memory and documents too.
"""

from collections.abc import Mapping
from pathlib import Path

from eval.calibration import calibrate, known, load_bench, measured
from eval.deployment import BASE, RESOLUTIONS, lay_out
from eval.deployment import Cell as Place
from eval.gpus import Gpu, load_peaks, load_reported
from eval.reproduce.table import (
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
from models.work import VARIANTS

SLUG = "deployment"
CONF = Path(__file__).resolve().parents[2] / "conf" / "gpus"
CARD = "h200"  # the one that was measured
WHERE, OTHERS, PAPERS = "that card, random weights", "fractions of the H200", "the papers"
SIZE = RESOLUTIONS[0]
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
    lines = [_line(gpu, variant, by_key) for gpu in gpus for variant in VARIANTS]
    unreached = ", ".join(gpu.name for gpu in gpus if not gpu.reachable)
    title = "deployment map"
    sources = ("results/bench/gemm.csv", "results/bench/model.csv", "conf/gpus/peaks.csv")
    sources += ("conf/gpus/reported.csv",)
    notes = (NOTES[0].format(unreached), NOTES[1])
    return Table(8, SLUG, title, COLUMNS, tuple(lines), notes, sources)


def _line(gpu: Gpu, variant: str, cells: Mapping[tuple[str, str, int], Place]) -> tuple[Cell, ...]:
    here = [cells[gpu.gpu, variant, size] for size in RESOLUTIONS]
    base = cells[gpu.gpu, BASE, SIZE].predicted.image_s
    own = here[0].predicted.image_s
    lacking = empty("not predicted", "python scripts/bench_gemm.py; python scripts/bench_model.py")
    gain = lacking if base is None or own is None else figure(base / own)
    return (
        *keys(gpu.name, variant),
        *(_measured(gpu, place.variant, place.measured.times.image_s) for place in here),
        *(lacking if p.predicted.image_s is None else figure(p.predicted.image_s) for p in here),
        gain,
        *(words(p.reported) if p.reported else empty("not reported") for p in here),
        figure(here[0].needed_gb),
        words("yes" if here[0].fits else "no"),
    )


def _measured(gpu: Gpu, variant: str, image_s: float | None) -> Cell:
    if image_s is not None:
        return figure(image_s)
    if variant == "int8_unfused":
        return empty("no path of the engine: no run measures it whole")
    if gpu.gpu == CARD:
        return empty("not measured", "python scripts/bench_model.py --resolutions 1024 768")
    return empty("needs that card", "python scripts/bench_model.py --resolutions 1024 768")
