"""Write the measured speeds down as tables for readers.

    python scripts/speed_tables.py

Reads <results>/bench/gemm.csv, writes <results>/tables/gemm.md. Prints one JSON document last. The
same rows give the same bytes.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"speed_tables: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.gemm_rows import GEMM, PATHS, PEERS, ROWS_M, SHAPES, STEP_M, Cell, ratios, step_mean
from dit8.eval.ledger import read_table
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

ABSENT = "–"
FEW_ROWS = tuple(m for m in ROWS_M if m < min(STEP_M))


def gemm_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Render the rows of results/bench/gemm.csv as markdown, GPU by GPU.

    Args:
        rows: of any number of runs; a run's cells are compared with its own anchors, and of several
            runs that have a cell the geometric mean is shown.

    Returns:
        text that ends with a newline.
    """
    gpus = sorted({row["gpu"] for row in rows})
    if not gpus:
        return "No matrix product was measured.\n"
    return "\n".join(_one_gpu(gpu, [row for row in rows if row["gpu"] == gpu]) for gpu in gpus)


def _one_gpu(gpu: str, rows: Sequence[Mapping[str, Any]]) -> str:
    against_bf16, against_fp8 = ratios(rows), ratios(rows, "fp8")
    rates: dict[Cell, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["run_id"]):
        cell = (row["path"], row["shape"], row["m"], row["mode"])
        rates.setdefault(cell, []).append(row["tops"])
    tops = {cell: geometric_mean(values) for cell, values in rates.items()}
    sizes = " / ".join(map(str, STEP_M))
    parts = [
        f"{gpu}: the matrix products of one block, and the text projection. Medians. A ratio says "
        "how many times as fast as the anchor of the same run a path is; the bf16 anchor is its "
        f"product also where others quantize first. Pairs are M = {sizes}. The mean is geometric "
        "over qkv, attn_out, ffn_up2 and ffn_down at both M, as often as a CFG step calls them. "
        f"Of a cell that several runs have, the geometric mean. {ABSENT}: not measured.\n",
        "GEMM alone against cuBLAS bf16, CUDA graphs:\n",
        _by_path("gemm_graph", against_bf16, ".2f", "mean"),
        "GEMM alone against cuBLASLt FP8 row-wise, CUDA graphs:\n",
        _by_path("gemm_graph", against_fp8, ".2f", "mean"),
        "GEMM alone, 10¹² operations per second:\n",
        _by_path("gemm_graph", tops, ".0f"),
        "GEMM alone, ours (dit8) against each peer in the runs that have both, CUDA graphs:\n",
        _against_peers(rows),
        "Quantize + GEMM against cuBLAS bf16, CUDA graphs:\n",
        _by_path("quant_gemm_graph", against_bf16, ".2f", "mean"),
        "Quantize + GEMM against cuBLAS bf16, eager:\n",
        _by_path("quant_gemm_eager", against_bf16, ".2f", "mean"),
        "Quantize + GEMM (dit8_quant) with few rows, CUDA graphs / eager:\n",
        _few_rows(against_bf16),
    ]
    measured = {row["path"] for row in rows}
    absent = ", ".join(path for path in PATHS if path not in measured)
    if absent:
        parts.append(f"Not measured on this GPU: {absent}.\n")
    runs = ", ".join(sorted({row["run_id"] for row in rows}))
    return "\n".join([*parts, f"Runs: {runs}\n"])


def _by_path(mode: str, values: Mapping[Cell, float], spec: str, mean: str = "") -> str:
    """Tabulate one mode: a row a path that has values, a column a shape, the mean over a step."""
    lines = [["path", *SHAPES, *([mean] if mean else [])]]
    for path in PATHS:
        cells = [_pair((values.get((path, s, m, mode)) for m in STEP_M), spec) for s in SHAPES]
        if set(cells) == {ABSENT}:
            continue
        if mean:
            cells.append(_number(step_mean(values, path, mode), spec))
        lines.append([path, *cells])
    return _markdown(lines)


def _against_peers(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate how many times as fast as each peer our GEMM alone is."""
    lines = [["peer", *SHAPES, "mean"]]
    for peer in PEERS:
        found = ratios(rows, peer)
        cells = [("dit8", shape, m, "gemm_graph") for shape in SHAPES for m in STEP_M]
        if any(cell in found for cell in cells):
            pairs = zip(cells[::2], cells[1::2], strict=True)
            texts = [_pair((found.get(cell) for cell in pair), ".2f") for pair in pairs]
            mean = _number(step_mean(found, "dit8", "gemm_graph"), ".2f")
            lines.append([peer, *texts, mean])
    return _markdown(lines)


def _few_rows(values: Mapping[Cell, float]) -> str:
    lines = [["M", *SHAPES]]
    for m in FEW_ROWS:
        modes = ("quant_gemm_graph", "quant_gemm_eager")
        cells = ((values.get(("dit8_quant", s, m, mode)) for mode in modes) for s in SHAPES)
        lines.append([str(m), *(_pair(cell, ".2f") for cell in cells)])
    return _markdown(lines)


def _number(value: float | None, spec: str) -> str:
    return ABSENT if value is None else f"{value:{spec}}"


def _pair(values: Iterable[float | None], spec: str) -> str:
    """Join two numbers; none at all is one dash."""
    texts = [_number(value, spec) for value in values]
    return ABSENT if set(texts) == {ABSENT} else " / ".join(texts)


def _markdown(lines: list[list[str]]) -> str:
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES: dict[str, tuple[str, Any, Callable[[Sequence[Mapping[str, Any]]], str]]] = {
    "gemm": ("bench/gemm.csv", GEMM, gemm_table),
}


def write_table(results: Path, name: str) -> Path:
    """Regenerate one table from its rows; returns its file.

    Raises:
        UserError: no row was measured yet, or the CSV is not as written.
    """
    source, layout, render = TABLES[name]
    frame = read_table(results / source, layout)
    if frame.empty:
        raise UserError(
            f"{shorten(results / source)} must hold rows, got none; run "
            f"scripts/bench_{name}.py on a GPU first"
        )
    text, page = render(frame.to_dict("records")), results / "tables" / f"{name}.md"
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    return page


def main() -> None:
    with one_sentence("speed_tables"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--results", default="results")
        results = from_root(parser.parse_args().results)
        pages = [shorten(write_table(results, name)) for name in TABLES]
        print(json.dumps({"tables": pages}))


if __name__ == "__main__":
    main()
