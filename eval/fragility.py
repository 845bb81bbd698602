"""Which linears are fragile: ranking, its stability, and what the numbers say of the hypothesis.

The papers' finding is that outliers concentrate in `feed_forward.w2`. Here it is a hypothesis: the
verdict is computed from the rows, whichever way it falls. Pure: the same rows give the same text.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

COLUMNS = ("model", "branch", "linear", "role", "step", "quantity", "value")
NO_STEP = -1  # the step of a quantity that has none
DAMAGES = ("damage_velocity", "damage_latents")
SHAPES = ("absmax", "crest", "kurtosis")
SUSPECT = "w2"  # the role that the hypothesis names
REST = ("adaln", "outside")  # roles that recipes leave alone unless told otherwise
LISTED = 12


@dataclass(frozen=True)
class Agreement:
    """How alike two rankings of the same linears are."""

    n: int
    spearman: float  # NaN where one of them is constant or n < 3
    overlap: float  # share of the upper floor(n / 2) that both have; NaN where n < 2


def make_rows(
    model: str,
    branch: str,
    linear: str,
    role: str,
    quantities: Mapping[str, Sequence[float] | float],
) -> list[dict]:
    """Lay out one linear's quantities, a row per step; undefined values (NaN) have no row."""
    rows = []
    for quantity, values in quantities.items():
        stepped = not isinstance(values, int | float)
        for step, value in enumerate(values) if stepped else [(NO_STEP, values)]:
            if not math.isnan(value):
                cells = (model, branch, linear, role, step, quantity, float(value))
                rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def as_frame(rows: Sequence[Mapping]) -> pd.DataFrame:
    """Sort rows by branch, linear (layer 2 before layer 10), quantity and step."""

    def key(row: Mapping) -> tuple:
        return row["model"], row["branch"], _natural(row["linear"]), row["quantity"], row["step"]

    return pd.DataFrame(sorted(rows, key=key), columns=list(COLUMNS))


def csv_text(frame: pd.DataFrame) -> str:
    """Render the rows as CSV, six significant digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def scores(frame: pd.DataFrame, quantity: str) -> pd.Series:
    """Sum each linear up in one number: index (branch, linear), in the order of the rows.

    A damage is the root of its mean square over steps; absmax, crest and kurtosis are the largest,
    because one bad step spoils the picture.
    """
    values = frame[frame["quantity"] == quantity].groupby(["branch", "linear"], sort=False)["value"]
    if quantity in DAMAGES:
        return values.agg(lambda v: float(np.sqrt(np.mean(np.square(v)))))
    return values.max()


def agree(one: pd.Series, other: pd.Series) -> Agreement:
    """Compare two rankings over the linears that both have.

    Equal scores rank by name when the upper half is cut, so that the result is determined.
    """
    common = one.index.intersection(other.index, sort=True)
    a, b = one[common], other[common]
    n = len(common)
    varied = n >= 3 and a.nunique() > 1 and b.nunique() > 1
    spearman = float(scipy.stats.spearmanr(a, b).statistic) if varied else math.nan
    half = n // 2
    top = [set(s.sort_values(ascending=False, kind="stable").index[:half]) for s in (a, b)]
    return Agreement(n, spearman, len(top[0] & top[1]) / half if half else math.nan)


def rank_roles(frame: pd.DataFrame) -> pd.DataFrame:
    """Sum up every role: index role, most of the squared velocity damage first.

    Columns: linears, then median and largest score of each quantity as `<quantity>_median` and
    `<quantity>_max`, and `share`, the role's part of the summed squared velocity damage.
    """
    roles = frame.drop_duplicates(["branch", "linear"]).set_index(["branch", "linear"])["role"]
    table = pd.DataFrame({"linears": roles.groupby(roles).size()})
    for quantity in (*SHAPES, *DAMAGES):
        by_role = scores(frame, quantity).groupby(roles)
        table[f"{quantity}_median"], table[f"{quantity}_max"] = by_role.median(), by_role.max()
    squares = scores(frame, "damage_velocity").pow(2).groupby(roles).sum()
    table["share"] = squares / squares.sum()
    return table.sort_values("share", ascending=False, kind="stable")


def verdict(frame: pd.DataFrame) -> str:
    """Say whether the largest crest and damages are in feed_forward.w2, from the rows.

    One sentence over all linears, one over those that the recipes quantize by default, and one
    over the medians of the roles in a block, which a single linear does not decide.
    """
    core = _core(frame)
    roles = rank_roles(core[core["role"] != "text"])
    medians = [
        f"the largest {_word(quantity)} is that of {median.idxmax()} ({median.max():.3g})"
        for quantity in ("crest", *DAMAGES)
        if not (median := roles[f"{quantity}_median"]).isna().all()
    ]
    return (
        f"Of all linears, {_largest(frame)}. Of those of the blocks and the text projection, "
        f"{_largest(core)}. By the median of a block's role, {', '.join(medians)}."
    )


def _word(quantity: str) -> str:
    return quantity.replace("damage_", "") + (" damage" if quantity in DAMAGES else "")


def _core(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[~frame["role"].isin(REST)]


def _largest(frame: pd.DataFrame) -> str:
    roles = frame.drop_duplicates(["branch", "linear"]).set_index(["branch", "linear"])["role"]
    parts = []
    for quantity in ("crest", *DAMAGES):
        values = scores(frame, quantity)
        if values.empty:
            continue
        branch, linear = values.idxmax()
        inside = "is" if roles[branch, linear] == SUSPECT else "is not"
        parts.append(
            f"the largest {_word(quantity)} ({values.max():.3g}, {branch} {linear}) {inside} in "
            "feed_forward.w2"
        )
    return ", ".join(parts)


def render(title: str, frame: pd.DataFrame, halves: Sequence[pd.DataFrame]) -> str:
    """Render the report: verdict, roles, the most fragile linears, stability.

    Args:
        title: the first line.
        frame: rows over all prompts.
        halves: the same rows over two disjoint halves of the prompts, or nothing.
    """
    damages = [quantity for quantity in DAMAGES if not scores(frame, quantity).empty]
    lines = [f"# {title}", "", verdict(frame), "", "## Roles", "", *_role_table(frame, damages)]
    lines += ["", f"## The {LISTED} largest velocity damages", "", *_top_table(frame, damages)]
    lines += ["", "## Does crest tell the damage?", "", *_crest_lines(frame, damages)]
    lines += ["", "## Stability between two disjoint halves of the prompts", ""]
    lines += _stability_table(halves, damages) if halves else ["One prompt has no halves."]
    return "\n".join(lines) + "\n"


def _role_table(frame: pd.DataFrame, damages: Sequence[str]) -> list[str]:
    quantities = ("crest", "kurtosis", *damages)
    header = ["role", "linears", *(f"{q} median / max" for q in quantities)]
    header.append("share of squared velocity damage")
    rows = [
        [
            role,
            str(int(row["linears"])),
            *(f"{row[f'{q}_median']:.3g} / {row[f'{q}_max']:.3g}" for q in quantities),
            f"{100 * row['share']:.1f} %",
        ]
        for role, row in rank_roles(frame).iterrows()
    ]
    return _table(header, rows)


def _top_table(frame: pd.DataFrame, damages: Sequence[str]) -> list[str]:
    quantities = (*damages, "crest", "kurtosis", "absmax")
    values = {quantity: scores(frame, quantity) for quantity in quantities}
    order = values["damage_velocity"].sort_values(ascending=False, kind="stable").index[:LISTED]
    rows = [
        [*key, *(f"{values[q][key]:.3g}" if key in values[q] else "" for q in quantities)]
        for key in order
    ]
    return _table(["branch", "linear", *quantities], rows)


def _crest_lines(frame: pd.DataFrame, damages: Sequence[str]) -> list[str]:
    crest = scores(frame, "crest")
    rows = []
    for quantity in damages:
        for name, damage in _subsets(scores(frame, quantity), frame).items():
            rows.append([quantity, name, *_cells(agree(crest, damage))])
    return _table(["crest against", "linears", "n", "Spearman", "upper halves share"], rows)


def _stability_table(halves: Sequence[pd.DataFrame], damages: Sequence[str]) -> list[str]:
    rows = []
    for quantity in ("crest", "kurtosis", *damages):
        first, second = (scores(half, quantity) for half in halves)
        for name, values in _subsets(first, halves[0]).items():
            rows.append([quantity, name, *_cells(agree(values, second))])
    return _table(["ranked by", "linears", "n", "Spearman", "upper halves share"], rows)


def _subsets(values: pd.Series, frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Cut scores into all linears, REST left out, and each branch's down-projections."""
    core = _core(frame).drop_duplicates(["branch", "linear"]).set_index(["branch", "linear"]).index
    suspects = frame[frame["role"] == SUSPECT].drop_duplicates(["branch", "linear"])
    keys = list(zip(suspects["branch"], suspects["linear"], strict=True))
    subsets = {"all": values, "blocks and text": values[values.index.isin(core)]}
    for branch in dict.fromkeys(branch for branch, _ in keys):
        subsets[f"w2, {branch}"] = values[[k for k in keys if k[0] == branch and k in values]]
    return subsets


def _cells(agreement: Agreement) -> list[str]:
    def show(value: float, spec: str) -> str:
        return "–" if math.isnan(value) else f"{value:{spec}}"

    return [str(agreement.n), show(agreement.spearman, ".2f"), show(agreement.overlap, ".0%")]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _natural(name: str) -> tuple:
    """Split into text and numbers, so that 10 follows 2."""
    return tuple(int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name))
