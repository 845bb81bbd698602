"""Write the coverage map down: a CSV with every cell, a page of markdown, what it shows in words.

Pure: the same cells give the same bytes. A rate counts as off only beyond two of the standard
errors that a nominal rate would have, so that what is said does not hang on the seed.
"""

import csv
import io
from collections.abc import Iterable, Sequence

from dit8.eval.coverage import Cell
from dit8.eval.coverage_cases import CHANGES, CLUSTERS, EXACT, INTERVAL, PROMPTS, SCORES, TOST
from dit8.eval.equivalence import ALPHA
from dit8.eval.exact_match import FEW, FEW_SHARES
from dit8.eval.stats import LEVEL

COLUMNS = (
    *("question", "data", "n", "changed", "upward", "margin", "method", "used", "experiments"),
    *("rate", "error", "off", "too_low", "too_high", "width"),
)
PLAIN = tuple(SCORES)[:2]  # normal and mildly skewed: what the interval is made for


def off(cell: Cell) -> float:
    """Return by how much a rate misses its promise: coverage too small, or errors too many.

    Negative where it keeps more than it promised.
    """
    return LEVEL - cell.rate if cell.case.question == INTERVAL else cell.rate - ALPHA


def is_off(cell: Cell) -> bool:
    """Tell whether a rate misses its promise by more than two standard errors."""
    return off(cell) > 2 * cell.error


def plain_rates(cells: Iterable[Cell]) -> dict[str, float]:
    """Return the coverage at most prompts of the scores that the interval is made for."""
    return {
        cell.case.data: cell.rate
        for cell in cells
        if cell.used and cell.case.question == INTERVAL
        if cell.case.data in PLAIN and cell.case.n == max(PROMPTS)
    }


def render_csv(cells: Iterable[Cell]) -> str:
    """Render one line per case and method; what does not apply is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        case, is_interval = cell.case, cell.case.question == INTERVAL
        drawn = [_plain(case.changed), _plain(case.upward), _plain(case.margin)]
        ends = (cell.too_low, cell.too_high, cell.width)
        writer.writerow(
            [case.question, case.data, case.n, *drawn, cell.method, "yes" if cell.used else "no"]
            + [cell.experiments, f"{cell.rate:.4f}", f"{cell.error:.4f}", f"{off(cell):.4f}"]
            + [f"{end:.4g}" if is_interval else "" for end in ends]
        )
    return file.getvalue()


def render_markdown(cells: Sequence[Cell], title: str) -> str:
    """Render the tables and what follows from them; ends with a newline."""
    intervals = [cell for cell in cells if cell.case.question == INTERVAL]
    tests = [cell for cell in cells if cell.case.question == TOST]
    parts = [
        f"# {title}\n",
        f"Share of simulated experiments in which the nominal {_percent(LEVEL)} interval contains "
        "the true mean difference, in %; below, share in which variants that differ by exactly the "
        f"margin are called equivalent, at most {_percent(ALPHA)} allowed. In parentheses by how "
        "many points a rate misses what it promises, where that is more than two standard errors. "
        "The method in use is marked *.\n",
        "## What it shows\n",
        "".join(f"- {line}\n" for line in findings(cells)),
        "## Intervals: every prompt differs\n",
        _by_size([cell for cell in intervals if cell.case.data in SCORES]),
        f"## Intervals: {CLUSTERS}, half of the variance the prompt's\n",
        _by_size([cell for cell in intervals if cell.case.data == CLUSTERS]),
    ]
    for data in CHANGES:
        parts.append(f"## Intervals: {data}, few prompts change\n")
        parts.append(_by_change([cell for cell in intervals if cell.case.data == data]))
    parts.append("## Equivalence: every prompt differs, margin 3.5 standard errors\n")
    parts.append(_by_size([cell for cell in tests if cell.case.data in SCORES]))
    for data in CHANGES:
        parts.append(f"## Equivalence: {data}, few prompts change\n")
        parts.append(_by_change([cell for cell in tests if cell.case.data == data]))
    return "\n".join(parts)


def findings(cells: Sequence[Cell]) -> list[str]:
    """Say what the map shows: where the methods in use keep their promise, where not, how far."""
    intervals = [cell for cell in cells if cell.case.question == INTERVAL]
    used = [cell for cell in intervals if cell.used]
    plain = list(plain_rates(cells).values())
    lines = [
        f"Normal and mildly skewed scores, n = {max(PROMPTS)}: BCa covers {_rates(plain)} %.",
        f"Other scores, BCa: {_worst(c for c in used if c.case.data in SCORES)}.",
    ]
    for data in CHANGES:
        mine = [cell for cell in intervals if cell.case.data == data]
        rule = [cell for cell in mine if cell.used]
        for method, group in (
            ("BCa alone", [cell for cell in mine if cell.method == "bca"]),
            (rule[0].method, rule),
        ):
            lines.append(f"{data.capitalize()}, {method}: {_worst(group)}.")
        few = FEW if data == EXACT else FEW_SHARES
        enough = [c.rate for c in mine if c.method == "bca" and c.case.changed >= few]
        lines.append(
            f"{data.capitalize()}, {few} or more changes expected: BCa alone covers "
            f"{_rates(enough)} %."
        )
    exact = [cell for cell in intervals if cell.method == "conditional"]
    lines.append(f"Exact interval of the discordant pairs, not in use: {_worst(exact)}.")
    wrong = [cell for cell in intervals if cell.method == "bca over pictures"]
    lines.append(f"Pictures of one prompt taken as independent, not in use: {_worst(wrong)}.")
    for data in ("every prompt differs", *CHANGES):
        mine = [
            cell
            for cell in cells
            if cell.case.question == TOST
            and (cell.case.data == data or (data not in CHANGES and cell.case.data in SCORES))
        ]
        for method in dict.fromkeys(cell.method for cell in mine):
            group = [cell for cell in mine if cell.method == method]
            lines.append(f"Equivalence, {data}, {method}: {_worst(group)}.")
    return lines


def _worst(cells: Iterable[Cell]) -> str:
    """Name the cell that misses its promise most, and how many do."""
    cells = list(cells)
    worst = max(cells, key=off)
    count = sum(map(is_off, cells))
    promise = "cover" if worst.case.question == INTERVAL else "err"
    if not count:
        return f"all {len(cells)} cases {promise} as promised, the worst {100 * worst.rate:.1f} %"
    return (
        f"{count} of {len(cells)} cases miss the promise, most at {_describe(worst)}: "
        f"{100 * worst.rate:.1f} %, off by {100 * off(worst):.1f} points"
    )


def _describe(cell: Cell) -> str:
    case = cell.case
    words = [f"n = {case.n}"]
    if case.data in SCORES:
        words.insert(0, case.data)
    if case.changed:
        words.append(f"changes expected: {case.changed:.3g}, {_upward(case.upward)}")
    if case.margin and case.changed:
        words.append(f"margin {case.margin}")
    return ", ".join(words)


def _by_size(cells: Sequence[Cell]) -> str:
    """Lay out data and methods against the number of prompts."""
    lines = [["data", "method", *(f"n = {n}" for n in PROMPTS)]]
    for data, method in dict.fromkeys((cell.case.data, cell.method) for cell in cells):
        mine = {c.case.n: c for c in cells if (c.case.data, c.method) == (data, method)}
        mark = "*" if mine[PROMPTS[0]].used else ""
        lines.append([data, method + mark, *(_rate(mine[n]) for n in PROMPTS)])
    return _table(lines)


def _by_change(cells: Sequence[Cell]) -> str:
    """Lay out sizes, changes and directions against the methods."""
    methods = {cell.method: f"{cell.method}*" if cell.used else cell.method for cell in cells}
    is_test = cells[0].case.question == TOST
    first = ["n", *(["margin"] if is_test else []), "changes expected", "direction"]
    lines = [[*first, *methods.values()]]
    for case in dict.fromkeys(cell.case for cell in cells):
        mine = {cell.method: cell for cell in cells if cell.case == case}
        start = [str(case.n), *([str(case.margin)] if is_test else [])]
        start += [f"{case.changed:.3g}", _upward(case.upward)]
        lines.append([*start, *(_rate(mine[method]) for method in methods)])
    return _table(lines)


def _rate(cell: Cell) -> str:
    text = f"{100 * cell.rate:.1f}"
    if not is_off(cell):
        return text
    sign = "-" if cell.case.question == INTERVAL else "+"
    return f"{text} ({sign}{100 * off(cell):.1f})"


def _rates(rates: Sequence[float]) -> str:
    return f"{100 * min(rates):.1f} to {100 * max(rates):.1f}"


def _upward(share: float) -> str:
    return {0.5: "both ways alike", 1.0: "all one way"}.get(share, f"{100 * share:.0f} % one way")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _plain(number: float) -> str:
    return f"{number:.6g}" if number else ""


def _table(lines: Sequence[list[str]]) -> str:
    """Lay out a header and rows as a markdown table with aligned columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    cells = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "".join(f"| {line} |\n" for line in cells)
