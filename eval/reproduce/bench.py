"""Read the speeds of the full-size model from results/bench/model.csv and choose their runs.

Times of two runs are never mixed in a row of a table: a row is one run's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dit8.eval.model_runs import best_first
from dit8.eval.reproduce.table import STUDENT, Cell, estimate, figure
from dit8.eval.run import Interval
from dit8.quant.errors import UserError

SOURCE = "results/bench/model.csv"
H200, RTX3090 = "NVIDIA H200", "NVIDIA GeForce RTX 3090"
WHERE = "H200, random weights"
BESIDE_BF16 = "step, times bf16 of its run"  # a column of table 1
COLUMNS = ("run_id", "gpu", "variant", "engine", "resolution", "text_tokens", "quantity")
COLUMNS += ("value", "low", "high", "versions")
TEXT_TOKENS = 300
# What is compared at once, and a limit of its time. On an H200 both sizes of ENGINE took 698 s (run
# 20261121-165916), of FORMATS without int8 945 s (20261121-173534, 20261121-173539); int8 adds five
# pictures of 24 and five of 16 s.
ENGINE = "stock compiled bf16 fused_int8 rotated"
FORMATS = "stock bf16 fp8 nf4 q8_0 q4_k int8"
DECODED = tuple(FORMATS.split()[2:])  # before every product, which then is one in bf16
SECONDS = {ENGINE: 900.0, FORMATS: 1800.0}
# variant and engine, in the order of the tables
PATHS = (
    *(("bf16", "stock"), ("bf16", "compiled"), ("bf16", "dit8")),
    *((name, "dit8") for name in ("fp8", "int8", "fused_int8", "rotated", "q8_0", "nf4", "q4_k")),
)


def command(paths: str) -> str:
    """Return the command that times paths at both sizes, in the seconds that they took if known."""
    words = f"python scripts/bench_model.py --variants {paths} --resolutions 1024 768"
    return words if paths not in SECONDS else f"{words} --seconds {SECONDS[paths]:g}"


def command_for(path: tuple[str, str]) -> str:
    """Return the command that times a path of PATHS."""
    return command(ENGINE if is_engine(path) else FORMATS)


def is_engine(path: tuple[str, str]) -> bool:
    """Tell whether a path of PATHS is one of ENGINE."""
    return path[0] == "bf16" or path[0] in ENGINE.split()


@dataclass(frozen=True)
class Timed:
    """Hold one run's figures of one path; quantity -> mean with Student's interval."""

    run_id: str
    figures: Mapping[str, Interval]

    def cell(self, quantity: str, scale: float = 1.0) -> Cell | None:
        """Return a figure times `scale`, without an interval where nothing was repeated."""
        found = self.figures.get(quantity)
        if found is None:
            return None
        if found.low == found.high:
            return figure(scale * found.estimate)
        ends = (scale * end for end in (found.estimate, found.low, found.high))
        return estimate(Interval(*ends, found.n, found.method))


def read_bench(results: Path) -> pd.DataFrame:
    """Read the rows; a file that does not exist yet is an empty table.

    Raises:
        UserError: a file that cannot be read, or that lacks a column.
    """
    path = results / "bench" / "model.csv"
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} must be a readable CSV, got {type(error).__name__}; restore it "
            "from version control, or run scripts/bench_model.py"
        ) from error
    missing = [name for name in COLUMNS if name not in rows.columns]
    if missing:
        raise UserError(
            f"{path} must have the columns {', '.join(COLUMNS)}, got none called "
            f"{', '.join(missing)}; restore it from version control"
        )
    return rows


def choose(
    rows: pd.DataFrame, gpu: str, path: tuple[str, str], resolution: int, *wanted: str
) -> Timed | None:
    """Choose a run of a path that has the first wanted quantity, else the second, ...

    Of a path of ENGINE the newest of the runs that timed fused_int8 too, else the newest; see
    `eval.model_runs`. Of any other path the newest.
    """
    variant, engine = path
    same_gpu = rows[(rows["gpu"] == gpu) & (rows["text_tokens"] == TEXT_TOKENS)]
    mine = same_gpu[
        (same_gpu["variant"] == variant)
        & (same_gpu["engine"] == engine)
        & (same_gpu["resolution"] == resolution)
    ]
    for quantity in wanted:
        runs = mine[mine["quantity"] == quantity]["run_id"]
        if len(runs):
            run = best_first(runs, same_gpu, resolution)[0] if is_engine(path) else runs.max()
            own = mine[mine["run_id"] == run]
            return Timed(run, {row.quantity: _interval(row) for row in own.itertuples()})
    return None


def beside(
    rows: pd.DataFrame, timed: Timed, path: tuple[str, str], resolution: int
) -> Timed | None:
    """Return what the run of another path has of a path, None where it has no CFG step of it."""
    own = rows[rows["run_id"] == timed.run_id]
    return choose(own, H200, path, resolution, "cfg_step_ms")


def under_cap(rows: pd.DataFrame, cap_gb: float) -> pd.DataFrame:
    """Return the rows of pictures drawn under a cap of decimal GB."""
    return rows[rows["versions"].astype(str).str.endswith(f"; cap {cap_gb:g} GB")]


def read_run(results: Path, run_id: str) -> dict[str, Any]:
    """Read results/bench/runs/<run_id>.json; UserError where it is missing or no JSON."""
    path = results / "bench" / "runs" / f"{run_id}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} must describe a measured run, got {type(error).__name__}; restore "
            "it from version control"
        ) from error


def _interval(row: Any) -> Interval:
    return Interval(float(row.value), float(row.low), float(row.high), 0, STUDENT)
