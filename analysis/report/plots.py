"""Draws the report's plots with matplotlib, as inline SVG.

The text in a plot is selectable and has the text color of the page. The same data always gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import quantiles
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from analysis.rates import Interval

INK = "#010203"  # a placeholder that is replaced by the page's text colour, which differs in dark mode
OURS, THEIRS = "#2f81d6", "#d0762b"  # both are readable on white and on black
WIDTH_IN = 4.6
ROW_IN = 0.42
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # so that a dollar sign in a name is printed
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A rate to draw in a plot.

    ``interval`` is None if no interval is drawn. ``url`` is a link to the trials behind the rate, or None for no link.
    """

    rate: float
    interval: Interval | None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One row of a forest plot.

    ``label`` is the name of the condition, ``ours`` is our rate, and ``theirs`` contains the published rates.
    """

    label: str
    ours: Mark | None
    theirs: Sequence[Mark]


def forest(name: str, title: str, rows: Sequence[ForestRow]) -> Markup:
    """Draw a forest plot of rates with their intervals, and return it as SVG.

    Each row shows one condition, with our rate as a dot and the published rates as diamonds. The ids of SVG elements
    contain ``name``.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(len(rows), [row.label for row in rows])
        for y, row in enumerate(rows):
            if row.ours:
                _mark(axes, row.ours, y - 0.13, OURS, "o")
            for step, mark in enumerate(row.theirs):
                _mark(axes, mark, y + 0.13 + 0.14 * step, THEIRS, "D")
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        description = "; ".join(f"{row.label}: {_in_words(row)}" for row in rows)
        return _svg(figure, name, title, description)


def _in_words(row: ForestRow) -> str:
    ours = f"ours {row.ours.rate:.1%}" if row.ours else "not run"
    return ", ".join((ours, *(f"published {mark.rate:.1%}" for mark in row.theirs)))


def _mark(axes: Axes, mark: Mark, y: float, colour: str, marker: str) -> None:
    if mark.interval:
        axes.plot(list(mark.interval), [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    (dot,) = axes.plot(
        [mark.rate], [y], marker, color=colour, markersize=6, markerfacecolor=colour if marker == "o" else "none"
    )
    if mark.url:
        dot.set_url(mark.url)


def heat(
    name: str, title: str, models: Sequence[str], conditions: Sequence[str], rates: Mapping[tuple[str, str], Mark]
) -> Markup:
    """Draw a heat map of rates and return it as SVG.

    The map has a row for each model and a column for each condition. A combination without a rate is left blank. The
    ids of SVG elements contain ``name``.
    """
    with mpl.rc_context({**_STYLE, "axes.spines.bottom": False, "xtick.major.size": 0}):
        left = 0.085 * max(map(len, models)) + 0.2
        top = 0.3 if max(map(len, conditions)) <= 3 else 0.075 * max(map(len, conditions)) + 0.2
        wide, high = left + 0.52 * len(conditions) + 0.1, top + 0.34 * len(models) + 0.05
        figure = Figure(figsize=(wide, high))
        axes = figure.add_axes((left / wide, 0.05 / high, 1 - (left + 0.1) / wide, 1 - (top + 0.05) / high))
        colours = mpl.colormaps["YlOrRd"]
        for (model, condition), mark in rates.items():
            _heat_field(axes, conditions.index(condition), models.index(model), mark, colours)
        axes.set_xlim(-0.5, len(conditions) - 0.5)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(conditions)), conditions, rotation=0 if top == 0.3 else 90)
        axes.set_yticks(range(len(models)), models)
        description = "; ".join(f"{model}, {condition}: {mark.rate:.0%}" for (model, condition), mark in rates.items())
        return _svg(figure, name, title, description)


def _heat_field(axes: Axes, x: int, y: int, mark: Mark, colours: Colormap) -> None:
    fill = colours(0.08 + 0.8 * mark.rate)
    dark = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] < 0.55
    axes.add_patch(mpl.patches.Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=fill, linewidth=0))
    text = axes.text(x, y, f"{mark.rate * 100:.0f}", ha="center", va="center", color="#ffffff" if dark else "#1b1f24")
    if mark.url:
        text.set_url(mark.url)


def bars(name: str, title: str, counts: Sequence[tuple[str, int]]) -> Markup:
    """Draw a horizontal bar chart and return it as SVG.

    ``counts`` contains the label and the count of each bar. The ids of SVG elements contain ``name``.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(len(counts), [label for label, _ in counts])
        most = max(count for _, count in counts)
        for y, (_, count) in enumerate(counts):
            axes.barh(y, count, height=0.6, color=OURS)
            axes.annotate(f"{count:,}", (count, y), (4, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, most * 1.18)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return _svg(figure, name, title, "; ".join(f"{label}: {count}" for label, count in counts))


def spans(name: str, title: str, unit: str, rows: Sequence[tuple[str, Sequence[float]]]) -> Markup:
    """Draw how the values in each row are distributed, and return the plot as SVG.

    A dot marks the median. A thick line spans the middle 50 % of the values, and a thin line the middle 90 %. ``unit``
    is the label of the axis. The ids of SVG elements contain ``name``.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(len(rows), [label for label, _ in rows], axis_label=unit)
        descriptions = []
        for y, (label, values) in enumerate(rows):
            cuts = quantiles(values, n=20, method="inclusive") if len(values) > 1 else [values[0]] * 19
            axes.plot([cuts[0], cuts[-1]], [y, y], color=OURS, linewidth=1)
            axes.plot([cuts[4], cuts[14]], [y, y], color=OURS, linewidth=5, solid_capstyle="butt", alpha=0.5)
            axes.plot([cuts[9]], [y], "o", color=OURS, markersize=6)
            descriptions.append(f"{label}: median {cuts[9]:.3g} {unit}, middle half {cuts[4]:.3g} to {cuts[14]:.3g}")
        axes.set_xlim(left=0)
        return _svg(figure, name, title, "; ".join(descriptions))


def _axes(rows: int, labels: Sequence[str], axis_label: str = "") -> tuple[Figure, Axes]:
    """Create a figure and its axes, with ``rows`` rows that are labeled with ``labels``.

    The figure is narrow enough for a phone.
    """
    below = 0.55 if axis_label else 0.35
    left = min(2.4, 0.085 * max(map(len, labels)) + 0.25)
    high = ROW_IN * rows + below + 0.1
    figure = Figure(figsize=(WIDTH_IN, high))
    axes = figure.add_axes((left / WIDTH_IN, below / high, 1 - (left + 0.35) / WIDTH_IN, ROW_IN * rows / high))
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks(range(rows), [_short(label) for label in labels])
    axes.set_xlabel(axis_label)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _short(label: str, most: int = 30) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """Convert a figure into an inline SVG element.

    ``title`` and ``description`` are included for screen readers. The ids of SVG elements contain ``name``. The same
    figure always gives the same bytes, because the SVG contains no date and no random ids.
    """
    out = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib's font may lack a character that the reader's font has
        blank = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=blank)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href").replace(INK, "currentColor")
    text = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", text)  # other elements refer to markers and clip paths only
    text = re.sub(r"font-family: [^;]*;", "font-family: inherit;", text)
    labels = f'role="img" aria-labelledby="{name}-title {name}-desc"'
    head = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return Markup(re.sub(r"<svg([^>]*)>", lambda found: f"<svg{found[1]} {labels}>{head}", text, count=1))  # noqa: S704 - the SVG was drawn here, and matplotlib escapes its text
