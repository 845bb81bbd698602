"""Choose among the runs of scripts/bench_model.py that timed one path of the engine."""

from collections.abc import Iterable

import pandas as pd

STEP = "cfg_step_ms"


def best_first(runs: Iterable[str], rows: pd.DataFrame, resolution: int) -> list[str]:
    """Order run ids: first those that timed fused_int8 too, and of these the newest first.

    What is compared with fused_int8 should be of its run: two cards of one kind, or one card on two
    days, differ by per cents (results/FINDINGS.md).

    Args:
        runs: ids, which sort by time.
        rows: of results/bench/model.csv, of one GPU.
        resolution: of a side, px.
    """
    fused = rows[(rows["variant"] == "fused_int8") & (rows["engine"] == "dit8")]
    fused = fused[(fused["resolution"] == resolution) & (fused["quantity"] == STEP)]
    beside = set(fused["run_id"])
    return sorted(set(runs), key=lambda run: (run in beside, run), reverse=True)
