"""Fill the template: one HTML file with its style, script, plots and pictures inside.

The page asks for nothing over the network and shows everything without JavaScript; the script
filters, sorts and enlarges.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit8.eval.report.data import Exhibit, Page, ScoreTable
from dit8.eval.report.figures import draw_forest, draw_speeds, draw_trade, inline
from dit8.eval.report.numbers import (
    format_estimate,
    format_floor,
    format_number,
    format_probability,
    format_range,
    format_ratio,
)
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

TEMPLATES = Path(__file__).parent
HTML = "report.html"


def write_page(page: Page, out: Path) -> Path:
    """Write <out>/report.html and every plot as <out>/<name>.svg, each atomically.

    Returns:
        path of the HTML file.

    Raises:
        UserError: the folder cannot be written, or jinja2 is missing.
    """
    plots = draw_plots(page)
    text = render(page, plots)
    for name, svg in plots.items():
        _write(out / f"{name}.svg", svg)
    _write(out / HTML, text)
    return out / HTML


def draw_plots(page: Page) -> dict[str, str]:
    """Draw all plots of a page: file name without ending -> SVG."""
    plots = {f"forest_{t.measure.name}": draw_forest(t) for t in page.tables if has_forest(t)}
    if len(page.sizes) > 1:
        for table in page.tables:
            if sum(o.label in page.sizes for o in table.outcomes) > 1:
                plots[f"memory_{table.measure.name}"] = draw_trade(table, page.sizes)
    for stage in dict.fromkeys(speed.stage for speed in page.speeds):
        plots[f"latency_{stage}"] = draw_speeds(page.speeds, stage)
    return plots


def has_forest(table: ScoreTable) -> bool:
    """Tell whether a score has anything to draw: a difference, or a relative mean."""
    return any(table.measure.is_relative or o.delta is not None for o in table.outcomes)


def render(page: Page, plots: Mapping[str, str]) -> str:
    """Return the page as HTML; equal pages give equal text."""
    try:
        import jinja2
    except ImportError as error:
        raise UserError(
            "report: jinja2 is not installed, expected the report extra; "
            "run `pip install 'dit8[report]'`"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "slug": lambda kind: kind.replace(" ", "-"),
        "plain": format_number,
        "estimate": format_estimate,
        "range": format_range,
        "floor": format_floor,
        "over_floor": format_ratio,
        "probability": format_probability,
        "bounds": lambda bounds: " to ".join(format_number(b) for b in bounds),
        "zip": zip,
        "code": mark_code,
        "marks": lambda found: " ".join("✓" if one else "✗" for one in found),
    }
    chosen = {
        kind: [
            (name.removeprefix(f"{kind}_"), inline(svg, name))
            for name, svg in plots.items()
            if name.startswith(kind)
        ]
        for kind in ("forest", "memory", "latency")
    }
    return environment.get_template("report.html.j2").render(
        page=page,
        css=_asset("report.css"),
        js=_asset("report.js"),
        forests=chosen["forest"],
        trades=chosen["memory"],
        clocks=chosen["latency"],
        categories=sorted({e.category for e in page.exhibits if e.category}),
        ranked=[t.measure.name for t in page.tables if has_forest(t)],
        labels=[picture.label for picture in page.exhibits[0].pictures],
        variants=[picture.label for picture in page.exhibits[0].pictures[1:]],
        floors=any(table.measure.floor for table in page.tables),
        changes={_card_id(exhibit): _changes(exhibit) for exhibit in page.exhibits},
    )


def mark_code(text: str) -> str:
    """Escape a text and set what stands between backticks in monospace."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _card_id(exhibit: Exhibit) -> str:
    return f"p-{exhibit.key[0]}_{exhibit.key[1]}"


def _changes(exhibit: Exhibit) -> dict[str, dict[str, Any]]:
    """Return variant -> size of the change per scorer, and whether other text was read."""
    reference, *variants = exhibit.pictures
    return {
        picture.label: {
            "sizes": {name: float(f"{size:.4g}") for name, size in picture.changes.items()},
            "text": picture.lines != reference.lines,
        }
        for picture in variants
    }


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
