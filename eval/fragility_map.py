"""Draw the damage of every linear at every step as a heat map, one panel a branch."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

ROW_INCHES = 0.13  # a row per linear, its name beside it in 6 point
QUANTITY = "damage_velocity"


def draw_map(frame: pd.DataFrame, path: Path, title: str, kind: str = "svg") -> None:
    """Write the heat map: linear x step, logarithmic colour.

    A damage of zero (the unconditional branch reads no text) stays blank. Equal rows give equal
    bytes of SVG.

    Args:
        frame: rows in the order of `eval.fragility.as_frame`.
        path: of the file; its name may have any ending.
        title: above the panels.
        kind: "svg" or "png".

    Raises:
        ValueError: no damage above zero.
    """
    rows = frame[(frame["quantity"] == QUANTITY) & (frame["value"] > 0)]
    if rows.empty:
        raise ValueError(f"draw_map: the rows must have {QUANTITY} above zero, got none")
    branches = list(dict.fromkeys(frame["branch"]))
    grids = {branch: _grid(frame[frame["branch"] == branch]) for branch in branches}
    tallest = max(len(grid) for grid in grids.values())
    with matplotlib.rc_context({"svg.hashsalt": "dit8", "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.2 * len(branches), 1.2 + ROW_INCHES * tallest), dpi=120)
        figure.set_layout_engine("constrained")
        norm = LogNorm(rows["value"].min(), rows["value"].max())
        axes = figure.subplots(1, len(branches), squeeze=False)[0]
        for axis, branch in zip(axes, branches, strict=True):
            grid = grids[branch]
            image = axis.imshow(grid, aspect="auto", norm=norm, interpolation="nearest")
            axis.set_yticks(range(len(grid)), grid.index, fontsize=6)
            axis.set_xlabel("denoising step")
            axis.set_title(branch, fontsize=9)
        figure.colorbar(image, ax=list(axes), label="relative error of the velocity")
        figure.suptitle(title, fontsize=10)
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(path, format=kind, metadata=metadata)


def _grid(frame: pd.DataFrame) -> pd.DataFrame:
    """Pivot one branch: a row per linear in the order given, a column per step; zeros are NaN."""
    damage = frame[frame["quantity"] == QUANTITY]
    grid = damage.pivot(index="linear", columns="step", values="value")
    return grid.loc[list(dict.fromkeys(damage["linear"]))].where(lambda values: values > 0)
