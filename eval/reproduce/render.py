"""Write a table down three times: Markdown for readers, LaTeX for papers, a CSV for programs.

Pure: the same table gives the same bytes. The LaTeX needs the packages booktabs and graphicx and
nothing else; it is plain ASCII, and a character that it has no command for is an error here rather
than in somebody's paper.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from dit8.eval.reproduce.table import BCA, KEY, Cell, Column, Table, remarks
from dit8.eval.run import Interval
from dit8.eval.table import align, format_interval

ABSENT = "–"
HEADER = (
    *("table", "row", "column", "kind", "where", "value", "low", "high", "unit", "method"),
    *("text", "reason", "command", "note"),
)
# beyond these a table has letters, digits and ASCII punctuation only
LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "–": "--",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "²": "$^2$",
    "¹": "$^1$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≥": r"$\geq$",
    "−": "$-$",
    "α": r"$\alpha$",
}


def render_markdown(table: Table) -> str:
    """Render as a page: title, table, a line a remark, notes, sources. Ends with a newline."""
    letters, table = remarks(table), fold(table)
    heads = [_head(column) for column in table.columns]
    parts = [f"# Table {table.number}: {title(table)}\n", *render_cells(table, heads, letters)]
    parts += [f"{note}\n" for note in table.notes]
    command = f"python scripts/reproduce.py --table {table.number}"
    command += "" if table.results == "results" else f" results={table.results}"
    parts.append(f"Made by `{command}` from {_sources(table)}.\n")
    return "\n".join(parts)


def render_cells(table: Table, heads: Sequence[str], letters: Mapping[str, str]) -> list[str]:
    """Render the cells under these heads, then a line for every remark."""
    lines = [list(heads)]
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        lines.append([_marked(_text(cell, column), cell, letters) for column, cell in cells])
    parts = [align([[text.replace("|", r"\|") for text in line] for line in lines])]
    if letters:
        parts.append("".join(f"- ({letter}) {remark}\n" for remark, letter in letters.items()))
    return parts


def render_latex(table: Table) -> str:
    """Render as a floating table with booktabs rules, what the columns are of above their labels.

    Raises:
        ValueError: a character that has no command in LATEX.
    """
    letters, table = remarks(table), fold(table)
    spans = [(key, len(list(run))) for key, run in groupby(table.columns, key=_group)]
    rules, first = [], 1
    for name, count in spans:
        if name:
            rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
        first += count
    groups = " & ".join(rf"\multicolumn{{{count}}}{{c}}{{{escape(name)}}}" for name, count in spans)
    labels = " & ".join(escape(_label(column)) for column in table.columns)
    sides = "".join("l" if column.kind == KEY else "r" for column in table.columns)
    body = []
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        texts = [_marked(_text(cell, column), cell, letters) for column, cell in cells]
        body.append(" & ".join(map(escape, texts)) + r" \\")
    below = [f"({letter}) {remark}." for remark, letter in letters.items()]
    return "\n".join(
        [
            "% needs the packages booktabs and graphicx",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(title(table))}}}",
            rf"\label{{tab:{table.slug}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            rf"{groups} \\",
            *([" ".join(rules)] if rules else []),
            rf"{labels} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\smallskip\raggedright\footnotesize",
            " ".join(_prose(text) for text in (*below, *table.notes)),
            r"\end{table}",
            "",
        ]
    )


def render_csv(table: Table) -> str:
    """Render one line a cell that is no key.

    Numbers have six digits: further ones depend on the order in which a processor adds.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    for row in table.rows:
        for column, cell in zip(table.columns, row, strict=True):
            if column.kind == KEY:
                continue
            numbers = ("" if n is None else f"{n:.6g}" for n in (cell.value, cell.low, cell.high))
            has_interval = cell.value is not None and cell.low is not None
            writer.writerow(
                [
                    *(table.number, table.key(row), column.label, column.kind, column.where),
                    *(*numbers, column.unit, cell.method if has_interval else ""),
                    *(cell.text, cell.reason, cell.command, cell.note),
                ]
            )
    return file.getvalue()


def fold(table: Table) -> Table:
    """Show neighbouring columns of one place as one where all their cells are empty alike.

    What nobody has measured yet should not be the widest part of a page. The CSV has every column.
    """

    def look(index: int) -> tuple:
        column = table.columns[index]
        cells = [row[index] for row in table.rows]
        is_empty = column.kind != KEY and all(cell.is_empty for cell in cells)
        return _group(column), cells if is_empty else index

    kept, columns = [], []
    for _, run in groupby(range(len(table.columns)), key=look):
        same = list(run)
        labels = ", ".join(dict.fromkeys(_label(table.columns[index]) for index in same))
        unit = table.columns[same[0]].unit if len(same) == 1 else ""
        label = table.columns[same[0]].label if len(same) == 1 else labels
        kept.append(same[0])
        columns.append(replace(table.columns[same[0]], label=label, unit=unit))
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return replace(table, columns=tuple(columns), rows=rows)


def escape(text: str) -> str:
    """Return the text as LaTeX.

    Raises:
        ValueError: a character beyond ASCII that has no command in LATEX.
    """
    found = "".join(LATEX.get(character, character) for character in text)
    if not found.isascii():
        unknown = sorted({character for character in found if not character.isascii()})
        raise ValueError(f"escape: no LaTeX is known for {''.join(unknown)!r}, add it to LATEX")
    return found


def _prose(text: str) -> str:
    """Escape a sentence; what stands between backticks is code."""
    parts = text.split("`")
    return "".join(
        rf"\texttt{{{escape(part)}}}" if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def title(table: Table) -> str:
    """Return the title as a heading begins."""
    return table.title[0].upper() + table.title[1:]


def _text(cell: Cell, column: Column) -> str:
    if cell.is_empty:
        return ABSENT
    if cell.text:
        return cell.text
    spec = cell.spec or column.spec
    if cell.value is None:
        return f"{cell.low:{spec}}{ABSENT}{cell.high:{spec}}"
    if cell.low is None or cell.high is None:
        return f"{cell.value:{spec}}"
    # what the whole column is made by needs no remark at each figure
    made = BCA if cell.method == column.method else cell.method
    return format_interval(Interval(cell.value, cell.low, cell.high, 0, made), spec)


def _marked(text: str, cell: Cell, letters: Mapping[str, str]) -> str:
    return f"{text} ({letters[cell.remark]})" if cell.remark else text


def _label(column: Column) -> str:
    return f"{column.label}, {column.unit}" if column.unit else column.label


def _group(column: Column) -> str:
    return "" if column.kind == KEY else f"{column.kind}: {column.where}"


def _head(column: Column) -> str:
    group = _group(column)
    return f"{_label(column)} [{group}]" if group else column.label


def _sources(table: Table) -> str:
    return re.sub(r", ([^,]*)$", r" and \1", ", ".join(f"`{name}`" for name in table.sources))
