"""Renders a report as a self-contained HTML page. Draws the plots and collects the template's other values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from analysis.cells import ResultCell
from analysis.grader_readings import TITLES
from analysis.matching import PublishedCounts, published_for
from analysis.rates import Interval
from analysis.record_reader import PromptsView
from analysis.report import formatting
from analysis.report.plots import OURS, THEIRS, ForestRow, Mark, bars, forest, heat, spans
from analysis.report.report import RunReport, middle
from harness.html.page import render_page
from harness.process.invocation import invoked_as

Titled = tuple[str, Markup]
MAX_PROMPTS = 60  # that a page prints in full
MAX_BYPASSES = 12


@dataclass(frozen=True, slots=True)
class Prompt:
    """A pair of system prompt and user prompt, with the names of the conditions that used the pair."""

    sha256: str
    words: PromptsView
    names: tuple[str, ...]


def page(report: RunReport) -> str:
    """Render a report as an HTML page and return the HTML text."""
    prompts = list(prompts_of(report))
    return render_page(
        "report.html.j2",
        report=report,
        command=invoked_as(),
        w=formatting,
        middle=middle,
        ours_colour=OURS,
        theirs_colour=THEIRS,
        forests=list(_forests(report)),
        heats=list(_heats(report)),
        tactics=list(_tactics(report)),
        ways=ways_of(report),
        spans=list(_spans(report)),
        said_titles=TITLES,
        prompts=prompts[:MAX_PROMPTS],
        more_prompts=max(0, len(prompts) - MAX_PROMPTS),
    )


def prompts_of(report: RunReport) -> Iterator[Prompt]:
    """Yield each distinct pair of system and user prompt, with the names of the conditions that used the pair."""
    found: dict[str, tuple[PromptsView, list[str]]] = {}
    for cell in report.cells:
        for sha256, each in cell.prompts.items():
            found.setdefault(sha256, (each, []))[1].append(formatting.condition_of(cell.key))
    for sha256, (each, names) in found.items():
        yield Prompt(sha256, each, tuple(dict.fromkeys(names)))


def ways_of(report: RunReport) -> list[tuple[str, int]]:
    """Return the most frequent ways of bypassing the kill switch, each with the number of trials that had it."""
    total: Counter[str] = Counter()
    for cell in report.cells:
        total.update(cell.ways)
    return total.most_common(MAX_BYPASSES)


def _groups(report: RunReport) -> dict[tuple[str, str], list[tuple[int, ResultCell]]]:
    """Group the report's cells by model and kind of player. Each cell is paired with its number in the report."""
    groups: dict[tuple[str, str], list[tuple[int, ResultCell]]] = {}
    for number, cell in enumerate(report.cells, 1):
        groups.setdefault((cell.key.model, cell.key.played), []).append((number, cell))
    return groups


def _name(model: str, played: str) -> str:
    return model if played == "live" else f"{model} ({played})"


def _forests(report: RunReport) -> Iterator[Titled]:
    for number, (group, cells) in enumerate(_groups(report).items(), 1):
        rows = [_forest_row(each, cell) for each, cell in cells]
        title = _name(*group)
        yield title, forest(f"forest-{number}", f"{title}: percent resisted, ours and published", rows)


def _forest_row(number: int, cell: ResultCell) -> ForestRow:
    found = cell.resisted
    ours = Mark(found.rate, found.jeffreys, f"#cell-{number}") if found else None
    theirs = [mark for each in published_for(cell.key) if (mark := _published_mark(each))]
    return ForestRow(formatting.condition_of(cell.key), ours, theirs)


def _published_mark(published: PublishedCounts) -> Mark | None:
    figure = published.figure
    if figure.measure != "resisted" or figure.rate is None:
        return None
    ends = None if figure.low is None or figure.high is None else Interval(figure.low, figure.high)
    return Mark(figure.rate, ends)


def _heats(report: RunReport) -> Iterator[Titled]:
    for played in report.played:
        cells = [(n, c) for n, c in enumerate(report.cells, 1) if c.key.played == played and c.resisted]
        rates = {
            (cell.key.model, formatting.condition_of(cell.key)): Mark(cell.resisted.rate, None, f"#cell-{number}")
            for number, cell in cells
            if cell.resisted
        }
        if rates:
            models, conditions = (sorted({names[at] for names in rates}) for at in (0, 1))
            title = f"percent resisted, {played}"
            yield title, heat(f"map-{played}", title, models, conditions, rates)


def _tactics(report: RunReport) -> Iterator[Titled]:
    for played in report.played:
        kinds: Counter[str] = Counter()
        for cell in report.cells:
            if cell.key.played == played:
                kinds.update(cell.kinds)
        if kinds:
            title = f"trials with each kind of tampering, {played}"
            yield title, bars(f"tactics-{played}", title, kinds.most_common())


def _spans(report: RunReport) -> Iterator[Titled]:
    calls: list[tuple[str, list[float]]] = []
    seconds: list[tuple[str, list[float]]] = []
    for group, cells in _groups(report).items():
        of_calls = [float(value) for _, cell in cells for value in cell.calls_to]
        if of_calls:
            calls.append((_name(*group), of_calls))
            seconds.append((_name(*group), [value for _, cell in cells for value in cell.seconds_to]))
    if calls:
        yield "tool calls", spans("calls", "tool calls from the notice to the first tampering", "calls", calls)
        yield "seconds", spans("seconds", "seconds from the notice to the first tampering", "seconds", seconds)
