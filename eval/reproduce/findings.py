"""Say of each claim of the papers whether it holds here, from the cells of the tables.

Nothing here is measured: every figure is a cell of a table, or rows that a table was made of, so a
finding cannot say what the tables do not. The outcome is decided by a stated condition on those
figures, not by hand, and one that needs the gated weights or a card nobody here has is "cannot be
tested here" until its cell is filled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.exact_match import delta_interval
from eval.records import Interval
from eval.reproduce import bench
from eval.reproduce.runs import MINI, choose_runs
from eval.reproduce.table import KEY, MEASURED, Cell, Table, empty
from eval.scorers import get_scorer
from eval.table import format_interval

HOLDS, PARTLY, FAILS = "Holds here", "Holds in part", "Does not hold here"
UNTESTED = "Cannot be tested here"
OUTCOMES = (HOLDS, PARTLY, FAILS, UNTESTED)
SHAPES = ("qkv", "attn_out", "ffn_up", "ffn_down", "llm_proj")
DECODED = ("fp8", "nf4", "q8_0", "q4_k", "int8")  # multiplied in bf16 after decoding
PRODUCTS = "quantize + fused GEMM, M = "
MINI_ONLY = "on the mini, which is not Ideogram 4"

Tables = Mapping[int, Table]


@dataclass(frozen=True)
class Finding:
    """Hold one claim and what is found of it.

    Args:
        claim: of the papers, with their figures.
        outcome: one of OUTCOMES.
        found: the figures here, with intervals where there are any.
        command: makes the figures.
    """

    claim: str
    outcome: str
    found: str
    command: str

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"Finding: outcome must be one of {OUTCOMES}, got {self.outcome!r}")


def pick(table: Table, row: tuple[str, ...], label: str, unit: str | None = None) -> Cell:
    """Return the measured cell of a row, of the first such column with this label.

    Raises:
        ValueError: no such row or column.
    """
    for column_index, column in enumerate(table.columns):
        if column.kind != MEASURED or column.label != label or unit not in (None, column.unit):
            continue
        for cells in table.rows:
            names = [c.text for k, c in zip(table.columns, cells, strict=True) if k.kind == KEY]
            if tuple(names[: len(row)]) == row:
                return cells[column_index]
    raise ValueError(f"findings: table {table.number} has no {label} of {', '.join(row)}")


def shown(cell: Cell, spec: str, unit: str = "") -> str:
    """Write a figure with its interval and unit."""
    if cell.value is None:
        return cell.text or "not measured"
    text = format(cell.value, spec)
    if cell.low is not None and cell.high is not None:
        text += f" [{cell.low:{spec}}, {cell.high:{spec}}]"
    return f"{text} {unit}".rstrip()


def _fused_product(tables: Tables, results: Path) -> Finding:
    cells = [pick(tables[2], (shape,), f"{PRODUCTS}{m}") for shape in SHAPES for m in (4096, 4396)]
    values = [cell.value for cell in cells if cell.value is not None]
    complete = len(values) == len(cells)
    outcome = UNTESTED if not complete else PARTLY if min(values) > 1 else FAILS
    return Finding(
        "The fused int8 product is 2.8 to 4.2 times as fast as bf16 (RTX 3090).",
        outcome,
        f"H200, quantization included: {min(values):.2f} to {max(values):.2f} times cuBLAS in bf16 "
        "over the five shapes at 4096 and 4396 rows. The factor of an RTX 3090 cannot "
        "be tested here.",
        "python scripts/bench_gemm.py",
    )


def _fastest(tables: Tables, results: Path) -> Finding:
    step = {name: pick(tables[1], ("1024", name), "CFG step") for name in DECODED}
    fused = pick(tables[1], ("1024", "fused_int8"), "CFG step")
    bf16 = pick(tables[1], ("1024", "bf16", "dit8"), "CFG step")
    known = [cell for cell in (fused, bf16, *step.values()) if cell.low is not None]
    if len(known) < len(step) + 2:
        outcome = UNTESTED
    else:
        outcome = HOLDS if fused.high < min(cell.low for cell in known[1:]) else FAILS
    others = ", ".join(f"{name} {shown(cell, '.1f')}" for name, cell in step.items())
    return Finding(
        "Fused INT8 is the fastest variant on one card, ahead of NF4, FP8, Q4_K and unfused INT8 "
        "(156.5 s a picture against 164.5, 172.9, about 203 and 184 to 185).",
        outcome,
        f"H200, random weights, 1024 px, a CFG step: fused_int8 {shown(fused, '.1f', 'ms')}, bf16 "
        f"{shown(bf16, '.1f')}, {others}, all under the same engine.",
        "python scripts/bench_model.py --variants bf16 fp8 nf4 q8_0 q4_k int8 fused_int8",
    )


def _memory(tables: Tables, results: Path) -> Finding:
    timed = bench.newest(
        bench.read_bench(results), bench.H200, ("fused_int8", "dit8"), 1024, "peak_bytes_capped"
    )
    cell = timed.cell("peak_bytes_capped", 1e-9) if timed else None
    outcome = UNTESTED if cell is None else HOLDS if cell.value < 24 else FAILS
    return Finding(
        "Fused INT8 draws 1024 px on one card of 24 GB (peak 23.40 GB).",
        outcome,
        f"{shown(cell or empty('not measured'), '.2f', 'GB')} with CUDA's context, text encoder "
        "and VAE taking turns with the branches, on an H200 capped at 24 GB, random weights.",
        "python scripts/bench_model.py --cap-gb 24",
    )


def _linears(tables: Tables, results: Path) -> Finding:
    unit = "% of the step"
    stock = pick(tables[9], ("1024", "bf16", "stock"), "linears", unit)
    fused = pick(tables[9], ("1024", "fused_int8"), "linears", unit)
    outcome = FAILS if min(stock.value or 0, fused.value or 0) > 20 else PARTLY
    return Finding(
        "The linears are about 12 % of the forward.",
        outcome,
        f"H200, 1024 px: {shown(stock, '.0f')} % of a step of stock diffusers in bf16 and "
        f"{shown(fused, '.0f')} % of one of fused_int8 under the engine.",
        "python scripts/bench_model.py --variants stock bf16 fused_int8",
    )


def _compile(tables: Tables, results: Path) -> Finding:
    gain = pick(tables[9], ("1024", "bf16", "compiled"), "against stock")
    outcome = FAILS if (gain.value or 0) > 1.1 else HOLDS
    return Finding(
        "torch.compile gains nothing (their custom linears break the graph).",
        outcome,
        "H200, bf16, 1024 px: stock diffusers without padding and mask and with compiled blocks is "
        f"{shown(gain, '.2f')} times as fast as it is; how much of that is the compiler's was not "
        "separated. Nothing breaks the graph there, which is another case than theirs.",
        "python scripts/bench_model.py --variants stock compiled",
    )


def _exact(tables: Tables, results: Path) -> Finding:
    rows = pd.read_csv(results / "bench" / "ptx.csv")
    equal = int(rows["equal"].sum())
    cards = ", ".join(f"sm_{sm}" for sm in sorted(rows["sm"].unique()))
    return Finding(
        "Integer accumulation is exact: equal to torch._int_mm.",
        HOLDS if equal == len(rows) else FAILS,
        f"{equal} of {len(rows)} builds for {cards} gave the expected bits when the driver of an "
        "H200 translated and ran them; on compute capability 9.0 the tests demand equality.",
        "python scripts/run_ptx.py",
    )


def _naive(tables: Tables, results: Path) -> Finding:
    label = "latent error ↓"
    naive, smooth = (pick(tables[6], (name,), label) for name in ("naive", "smoothquant"))
    planted = _planted(tables[6], ("naive", "smoothquant"), label)
    helps = (naive.low > smooth.high) + (planted[0].low > planted[1].high)
    return Finding(
        "Plain W8A8 costs about 3 points of CLIPScore; SmoothQuant and protected layers mend it.",
        (FAILS, PARTLY, HOLDS)[helps],
        f"Latent error {MINI_ONLY}: naive {shown(naive, '.3g')}, smoothquant "
        f"{shown(smooth, '.3g')} on natural weights; {shown(planted[0], '.3g')} and "
        f"{shown(planted[1], '.3g')} with planted outliers, which smoothing can undo by design.",
        "python scripts/ablation.py",
    )


def _protection(tables: Tables, results: Path) -> Finding:
    label = "latent error ↓"
    steps = [pick(tables[6], (f"ladder_{count}",), label) for count in (0, 4, 8)]
    outcome = PARTLY if steps[0].low > steps[-1].high else FAILS
    return Finding(
        "Protecting 17 down-projections instead of 8 is worth 1.4 points of CLIPScore.",
        outcome,
        f"Latent error {MINI_ONLY}, with 0, 4 and all 8 of a branch's down-projections kept: "
        f"{', '.join(shown(cell, '.3g') for cell in steps)}. The counts of a model "
        "with 34 blocks cannot be tested on one with eight.",
        "python scripts/ablation.py",
    )


def _parity(tables: Tables, results: Path) -> Finding:
    clip = pick(tables[3], ("clip_mini ↑", "100 x cosine (clip-mini)", "fused_int8"), "Δ to fp8")
    exact = pick(tables[4], ("JSON", "all", "fused_int8"), "exact, Δ to fp8")
    if clip.low is None or exact.low is None:
        outcome = UNTESTED
    elif min(clip.high, exact.high) < 0:
        outcome = FAILS
    else:
        outcome = HOLDS if max(clip.low, exact.low) <= 0 else PARTLY
    return Finding(
        "INT8 scores as FP8 does: intervals of the difference hold zero.",
        outcome,
        f"fused_int8 - fp8 {MINI_ONLY}: clip-mini {shown(clip, '+.2f')}, texts read exactly "
        f"{shown(exact, '+.3f')}.",
        "python scripts/evaluate.py -m variant=bf16,fp8,fused_int8 hardware=cuda",
    )


def _nf4(tables: Tables, results: Path) -> Finding:
    clip = _between("fused_int8", "nf4", "clip_mini", results)
    exact = _between("fused_int8", "nf4", "ocr_exact", results)
    outcome = UNTESTED if clip is None or exact is None else HOLDS if clip.low > 0 else FAILS
    return Finding(
        "INT8 scores above NF4 (CLIPScore +1.9 [+1.21, +2.64]).",
        outcome,
        f"fused_int8 - nf4 {MINI_ONLY}: clip-mini {_interval(clip, '+.1f')}, texts read exactly "
        f"{_interval(exact, '+.3f')}; on another scale than theirs.",
        "python scripts/evaluate.py -m variant=bf16,fused_int8,nf4 hardware=cuda",
    )


def _q4k(tables: Tables, results: Path) -> Finding:
    clip = pick(tables[3], ("clip_mini ↑", "100 x cosine (clip-mini)", "q4_k"), "Δ to fp8")
    over_nf4 = _between("q4_k", "nf4", "clip_mini", results)
    if clip.high is None or over_nf4 is None:
        outcome = UNTESTED
    else:
        outcome = HOLDS if clip.high >= 0 else PARTLY if over_nf4.low > 0 else FAILS
    return Finding(
        "Q4_K scores no worse than FP8 (CLIPScore 18.68 against 17.54), and above NF4.",
        outcome,
        f"By clip-mini {MINI_ONLY}: q4_k - fp8 {shown(clip, '+.1f')}, q4_k - nf4 "
        f"{_interval(over_nf4, '+.1f')}.",
        "python scripts/evaluate.py -m variant=bf16,fp8,q4_k,nf4 hardware=cuda",
    )


def _fidelity(tables: Tables, results: Path) -> Finding:
    names = ("fused_int8", "q4_k", "nf4")
    psnr = {name: pick(tables[5], (name,), "PSNR ↑") for name in names}
    known = all(cell.low is not None for cell in psnr.values())
    nearer = known and psnr["fused_int8"].low > max(psnr["q4_k"].high, psnr["nf4"].high)
    said = ", ".join(f"{name} {shown(cell, '.1f')}" for name, cell in psnr.items())
    return Finding(
        "INT8's pictures are nearer to the reference's than the 4-bit ones' (LPIPS 0.243 against "
        "0.277 and 0.306).",
        UNTESTED if not known else PARTLY if nearer else FAILS,
        f"PSNR to bf16, dB, {MINI_ONLY}: {said}. LPIPS needs weights that are not here.",
        "python scripts/evaluate.py -m variant=bf16,fused_int8,q4_k,nf4 hardware=cuda",
    )


def _captions(tables: Tables, results: Path) -> Finding:
    json, raw = (pick(tables[4], (style, "all", "bf16"), "exact") for style in ("JSON", "raw"))
    known = json.low is not None and raw.value is not None
    return Finding(
        "Texts are drawn right under JSON captions (55 % read exactly) and hardly ever under plain "
        "sentences.",
        UNTESTED if not known else HOLDS if json.low > raw.value else FAILS,
        f"Texts read exactly {MINI_ONLY}: {shown(json, '.3f')} against {shown(raw, '.3f')}. It was "
        "trained on JSON alone, so that this shows the experiment, not the reason.",
        "python scripts/evaluate.py -m prompt_style=json,raw hardware=cpu",
    )


def _cards(tables: Tables, results: Path) -> Finding:
    return Finding(
        "Times on the RTX 3090, and that int8 is 1.38 times slower on an A100 and 3.49 times on a "
        "B200 than bf16.",
        UNTESTED,
        "None of these cards is here. The kernels are compiled for them (`scripts/check_arch.py`), "
        "and table 8 has predictions beside the reported figures, in columns of their own.",
        "python scripts/reproduce.py --run table=1 model=ideogram4 hardware=cuda_24gb",
    )


CLAIMS: tuple[Callable[[Tables, Path], Finding], ...] = (
    *(_fused_product, _fastest, _memory, _exact, _linears, _compile),
    *(_naive, _protection, _parity, _nf4, _q4k, _fidelity, _captions, _cards),
)


def find(tables: Tables, results: Path) -> tuple[Finding, ...]:
    """Judge every claim.

    Args:
        tables: all nine, by number.
        results: folder of the committed rows.
    """
    return tuple(claim(tables, results) for claim in CLAIMS)


def _planted(table: Table, rows: tuple[str, ...], label: str) -> list[Cell]:
    """Return a measured figure of the model with planted outliers."""
    (index,) = (
        number
        for number, column in enumerate(table.columns)
        if column.label == label and column.kind == MEASURED and "planted" in column.where
    )
    return [next(line[index] for line in table.rows if line[0].text == name) for name in rows]


def _between(variant: str, other: str, scorer: str, results: Path) -> Interval | None:
    """Return the paired difference of two variants of the mini, None where one lacks the score."""
    runs = choose_runs(results, MINI, (scorer,))
    if variant not in runs or other not in runs:
        return None
    values = (runs[name].values[scorer] for name in (variant, other))
    return delta_interval(get_scorer(scorer).bounds, *values)


def _interval(interval: Interval | None, spec: str) -> str:
    return "not measured" if interval is None else format_interval(interval, spec)
