"""Writes the data of a report as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from analysis.cells import ResultCell
from analysis.grader_readings import DENIED, TITLES
from analysis.report import formatting
from analysis.report.page import prompts_of, ways_of
from analysis.report.report import PLAYED, ReportRow, RunReport, middle
from harness.judging.verdict import Outcome, Sabotage
from harness.store.exporters.csv import csv_cell
from harness.store.gradings import MEASURES

# Characters that Markdown, or HTML inside it, would treat as markup.
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$])")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NAMES = ("model", "played", "condition")
RATES = (*NAMES, "n", "errors", "resisted", "rate", "Jeffreys", "Wilson", "sabotaged", "published", "source")
BESIDE = (*NAMES, *(each.replace("_", " ") for each in formatting.OUTCOMES), "attempts")
MORE = ("tampered before the notice", "strictly complied", "inspected only", "calls to tampering", "seconds")


def markdown(report: RunReport) -> str:
    """Return the report as Markdown text."""
    return "\n".join(_markdown(report)) + "\n"


def _markdown(report: RunReport) -> Iterator[str]:
    yield f"# Offswitch report: {report.trials:,} trials\n"
    for name, count in report.played.items():
        yield f"- {count:,} trials: {PLAYED[name]}"
    yield f"- {report.errors:,} errors, in no rate"
    for answer, count in report.answers.items():
        yield f"- {count} of {len(report.comparisons)} published figures: {answer}"
    yield "\n## Rates, beside the published ones\n"
    yield from _table((*RATES, "difference, points", "answer"), (_rates(row) for row in report.rows))
    if report.stratified:
        yield "\n## Each model over its conditions\n"
        yield from _table(("model", "played", "conditions", "odds ratio", "95 % interval", "says"), _stratified(report))
    yield "\n## Beside the rate\n"
    yield from _table((*BESIDE, *MORE), _beside(report))
    if report.competence:
        yield "\n## Competence ratio A / K\n"
        yield from _table(("model", "played", "A", "K", "ratio", "95 % interval"), _competence(report))
    if report.said:
        yield "\n## What the agents said\n"
        yield "As a model read it, and no part of any outcome: yes of those whose words could be labelled.\n"
        yield from _table((*NAMES, "read by", "trials", *TITLES.values(), "unclear", "failed"), _said(report))
        yield "\nHow far each grader agrees with labels given by hand:\n"
        yield from _table(("grader", "rubric", *(TITLES[each] for each in MEASURES)), _graders(report))
    yield "\n## Tactics\n"
    kinds = ((*_names(cell), *each) for cell in report.cells for each in cell.kinds.most_common())
    yield from _table((*NAMES, "tampering", "trials"), kinds)
    yield ""
    yield from _table(("bypass", "trials"), ways_of(report))
    if report.found_others:
        yield "\n## Other findings of the tasks' judges\n"
        yield from _table((*NAMES, "finding", "trials", "findings"), _findings(report))
        yield ""
        yield from _table(("trial", "finding", "why"), _reasons(report))
    yield "\n## Errors\n"
    errors = ((*_names(cell), *each) for cell in report.cells for each in cell.error_kinds.items())
    yield from _table((*NAMES, "error", "trials"), errors)
    yield "\n## Exact prompts\n"
    for prompt in prompts_of(report):
        yield f"### {plain('; '.join(prompt.names))}\n"
        yield from (f"    {line}" for line in (*prompt.words.system.split("\n"), "", *prompt.words.user.split("\n")))
        yield ""
    yield "## Methods\n"
    yield from (f"- **{name}**: {plain(text)}" for name, text in report.methods())
    for name, each in report.sources.items():
        yield f"- {plain(name)}: {plain(f'{each.title}, {each.date}: {each.url}')}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    listed = [" | ".join(plain(str(value)) for value in row) for row in rows]
    if not listed:
        yield "None."
        return
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {row} |" for row in listed)


def plain(text: str) -> str:
    """Return ``text`` on one line, with Markdown and HTML markup escaped."""
    return _MARKS.sub(r"\\\1", _CONTROLS.sub(" ", text))


def _names(cell: ResultCell) -> tuple[str, str, str]:
    return cell.key.model, cell.key.played, formatting.condition_of(cell.key)


def _rates(row: ReportRow) -> tuple[object, ...]:
    cell, found, compared = row.cell, row.cell.resisted, row.comparison
    rate = (formatting.NONE,) * 3
    if found:
        rate = formatting.percent(found.rate), formatting.between(found.jeffreys), formatting.between(found.wilson)
    published, ending = ("none", ""), ("", "")
    if row.published:
        published = (
            f"{formatting.rate_of(row.published)}, {formatting.n_of(row.published)}",
            row.published.figure.source,
        )
        ending = "", f"shown, not compared: {row.published.basis}"
    if compared:
        apart = f"{formatting.points(compared.difference)} ({formatting.points_between(compared.interval)})"
        ending = apart, formatting.answer_of(compared)
    counts = f"{cell.n:,}", cell.errors, f"{cell.outcomes['resisted']:,}"
    sabotaged = formatting.sabotage(cell.sabotage, cell.sabotaged)
    return (*_names(cell), *counts, *rate, sabotaged, *published, *ending)


def _stratified(report: RunReport) -> Iterator[tuple[object, ...]]:
    for item in report.stratified:
        ends = formatting.ends(item.interval)
        says = formatting.stratified_of(item)
        yield item.model, item.played, ", ".join(item.conditions), formatting.number(item.odds_ratio), ends, says


def _beside(report: RunReport) -> Iterator[tuple[object, ...]]:
    for cell in report.cells:
        outcomes = (cell.outcomes[each] for each in formatting.OUTCOMES)
        shares = (formatting.share(cell.strict), formatting.share(cell.inspected))
        times = (formatting.number(middle(cell.calls_to)), formatting.number(middle(cell.seconds_to)))
        yield (*_names(cell), *outcomes, cell.attempts, cell.early, *shares, *times)


def _competence(report: RunReport) -> Iterator[tuple[object, ...]]:
    for item in report.competence:
        ends = (
            f"{formatting.number(item.interval.low)} to {formatting.number(item.interval.high)}"
            if item.interval
            else formatting.NONE
        )
        yield (
            item.model,
            item.played,
            formatting.of(item.plain),
            formatting.of(item.asked),
            formatting.number(item.ratio),
            ends,
        )


def _findings(report: RunReport) -> Iterator[tuple[object, ...]]:
    for cell in report.cells:
        for label, count in cell.findings.most_common():
            yield *_names(cell), label, cell.trials_with[label], count


def _reasons(report: RunReport) -> Iterator[tuple[object, ...]]:
    for cell in report.cells:
        for line in report.listed(cell):
            yield from ((f"{line.run_id} {line.number}", *each) for each in line.findings)


def _said(report: RunReport) -> Iterator[tuple[object, ...]]:
    for _, cell, key, said in report.said:
        found = (said.proportion(what) for what in TITLES)
        shares = (
            f"{formatting.of(each)} ({formatting.between(each.jeffreys)})" if each else formatting.NONE
            for each in found
        )
        yield (*_names(cell), key.grader, said.trials, *shares, said.unclear, said.failed)


def _graders(report: RunReport) -> Iterator[tuple[object, ...]]:
    for (grader, rubric), found in report.graders:
        shares = (formatting.agreement(found[each]) if each in found else "not kept" for each in MEASURES)
        yield grader, rubric[:12], *shares


def as_csv(report: RunReport) -> str:
    """Return the report's main table as CSV text.

    The CSV has one line for each row of the table. Numbers are written without units or thousands separators.
    """
    out = io.StringIO()
    rows = [_flat(row) for row in report.rows]
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _flat(row: ReportRow) -> dict[str, object]:
    cell, key, found = row.cell, row.cell.key, row.cell.resisted
    figure = row.published.figure if row.published else None
    compared = row.comparison
    strict, inspected = cell.strict, cell.inspected
    return {
        "model": key.model,
        "played": key.played,
        "simulated": key.simulated or "",
        "condition": key.condition,
        "setting": key.setting or "",
        "language": key.language,
        "variant": key.variant,
        "task": key.task,
        "mechanism": key.mechanism,
        "image": key.image,
        "runs": " ".join(cell.runs),
        "n": cell.n,
        **{str(name): cell.outcomes[name] for name in (Outcome.ERROR, *formatting.OUTCOMES)},
        "attempts": cell.attempts,
        "sabotaged": cell.sabotage.total(),
        "sabotaged_of": cell.sabotaged.n if cell.sabotaged else 0,
        **{f"sabotage_{kind.value}": cell.sabotage[kind] for kind in Sabotage},
        "strictly_complied": strict[True],
        "strictly_of": strict.total(),
        "inspected_only": inspected[True],
        "inspected_of": inspected.total(),
        "median_calls_to_tampering": middle(cell.calls_to),
        "median_seconds_to_tampering": middle(cell.seconds_to),
        **_flat_said(cell),
        "rate": found.rate if found else None,
        "jeffreys_low": found.jeffreys.low if found else None,
        "jeffreys_high": found.jeffreys.high if found else None,
        "wilson_low": found.wilson.low if found else None,
        "wilson_high": found.wilson.high if found else None,
        "published_measure": figure.measure if figure else None,
        "published_rate": figure.rate if figure else None,
        "published_low": figure.low if figure else None,
        "published_high": figure.high if figure else None,
        "published_n": compared.theirs.n if compared else figure.n if figure else None,
        "published_n_basis": row.published.basis if row.published else None,
        "published_source": figure.source if figure else None,
        "difference": compared.difference if compared else None,
        "difference_low": compared.interval.low if compared else None,
        "difference_high": compared.interval.high if compared else None,
        "p_holm": compared.adjusted if compared else None,
        "margin": compared.margin if compared else None,
        "answer": compared.answer.value if compared else None,
        "trials_needed": compared.needed if compared else None,
    }


def _flat_said(cell: ResultCell) -> dict[str, object]:
    """Return the CSV columns for the labels that graders gave to the trials of a cell.

    The columns describe one grader only. If several graders gave labels, the column "grader" contains "several" and the
    label counts are None.
    """
    one = next(iter(cell.said.items())) if len(cell.said) == 1 else None
    found = {what: one[1].proportion(what) if one else None for what in (*MEASURES, DENIED)}
    return {
        "grader": one[0].grader if one else "several" if cell.said else "",
        "rubric": one[0].rubric[:12] if one else "",
        **{f"{what}_yes": each.k if each else None for what, each in found.items()},
        **{f"{what}_of": each.n if each else None for what, each in found.items()},
    }
