"""Formats an audit report as JSON or terminal output, and decides whether an audit fails a build."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.audit.matrix import TACTICS, AuditedSwitch, AuditReport, FamilyResult, Status, TacticResult
from harness.audit.setup_check import Severity
from harness.errors import UsageError
from harness.resources.data import pick, read_yaml
from harness.terminal.text import safe, safe_line

COLOURS = {
    Status.DEFEATED: "red",
    Status.DELAYED: "yellow",
    Status.ERROR: "magenta",
    Status.HELD: "green",
    Status.NOT_APPLICABLE: "dim",
}
SEVERITIES = {Severity.HIGH: "red", Severity.MEDIUM: "yellow", Severity.LOW: "dim"}
UNSEEN = "unseen"
GATES = (Status.DEFEATED.value, Status.DELAYED.value, UNSEEN, *Severity)


@cache
def fixes() -> dict[str, str]:
    """Return advice on protecting a kill switch, with one sentence for each family of tactics."""
    return {str(family): str(fix) for family, fix in read_yaml(Path(__file__).with_name("fixes.yaml")).items()}


def as_json(report: AuditReport) -> dict[str, Any]:
    """Return an audit report as JSON-compatible data.

    The key ``matrix`` contains the results by kill switch and family of tactics.
    """
    matrix = {
        each.mechanism: {
            family: {
                "worst": cell.worst.value,
                **{status.value: cell.counts.get(status, 0) for status in Status},
                "seen": cell.seen,
                "defeats_unseen": cell.unseen,
                "fix": fixes()[family],
            }
            for family, cell in each.cells().items()
        }
        for each in report.audited
    }
    return {**report.model_dump(mode="json"), "matrix": matrix}


def as_report(text: str, name: str = "The baseline") -> AuditReport:
    """Parse an audit report from JSON text. Raises UsageError if the text isn't an audit report.

    ``name`` is the text's name in the error message.
    """
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("it isn't an object")
        document.pop("matrix", None)
        return AuditReport.model_validate_json(json.dumps(document))
    except (ValueError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"{name} isn't the JSON of an audit ({first}): write one with --json-file.") from error


# ---- whether to fail a build ----


def gates(named: tuple[str, ...]) -> tuple[str, ...]:
    """Parse the values of the ``--fail-on`` option into reasons to fail a build.

    Each value contains one or more reasons, separated by commas. Raises UsageError if a reason is unknown or empty.
    """
    words = [word.strip() for name in named for word in name.split(",")]
    if not all(words):  # an unset variable in a build script must not switch the check off
        raise UsageError(f"--fail-on '{','.join(named)}' names nothing to fail on: give one of {', '.join(GATES)}.")
    return tuple(pick("reason to fail", word, GATES) for word in words)


def failures(report: AuditReport, fail_on: tuple[str, ...], baseline: AuditReport | None = None) -> list[str]:
    """Return the reasons why a build must fail, with one line for each reason.

    Returns an empty list if ``fail_on`` is empty. Otherwise, each tactic that could not be judged is a reason. Results
    and findings that match ``fail_on`` are also reasons, except for those that ``baseline``, the report of an earlier
    audit, already contains.
    """
    if not fail_on:
        return []
    known = set(_reasons(baseline, fail_on)) if baseline else set()
    return [*_unjudged(report), *(line for line in _reasons(report, fail_on) if line not in known)]


def _unjudged(report: AuditReport) -> Iterator[str]:
    for audited in report.audited:
        for each in audited.tried:
            if each.status is Status.ERROR:
                yield f"{audited.mechanism}: {each.tactic} could not be judged"


def _reasons(report: AuditReport, fail_on: tuple[str, ...]) -> Iterator[str]:
    for audited in report.audited:
        for each in audited.tried:
            if each.status in fail_on:
                yield f"{audited.mechanism}: {each.tactic} {each.status}"
            if UNSEEN in fail_on and each.status is Status.DEFEATED and not each.seen:
                yield f"{audited.mechanism}: {each.tactic} unseen"
        for finding in audited.findings:
            if any(_at_least(finding.severity, gate) for gate in fail_on):
                yield f"{audited.mechanism}: {finding.id} ({finding.severity})"


def _at_least(severity: Severity, gate: str) -> bool:
    order = [each.value for each in Severity]
    return gate in order and order.index(severity.value) <= order.index(gate)


# ---- the terminal ----


def print_report(console: Console, report: AuditReport) -> None:
    """Print an audit report in the terminal.

    The output is a matrix of all results, followed by the details of each kill switch, such as fixes and findings.
    """
    console.print(safe(report.simulated), style="yellow", soft_wrap=True)
    _print_matrix(console, report)
    for audited in report.audited:
        _print_audited(console, audited)


def _print_matrix(console: Console, report: AuditReport) -> None:
    several = len(report.audited) > 1
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    table.add_column("family")
    for audited in report.audited:
        table.add_column(safe(audited.mechanism.replace("-", "-\n")), overflow="fold")
    cells = [audited.cells() for audited in report.audited]
    for family in TACTICS:
        if any(family in each for each in cells):
            table.add_row(family, *(_cell(each.get(family), short=several) for each in cells))
    console.print(table)
    if several:
        console.print(
            "How many tactics defeated it, of those that were judged; + delayed, ? could not be judged.", soft_wrap=True
        )


def in_short(cell: FamilyResult) -> str:
    """Format a family's results as a short string, such as "2/5 +1 ?1".

    In this example, 5 tactics were judged: 2 of them defeated the kill switch and 1 delayed it. A sixth tactic ended in
    an error.
    """
    judged = sum(count for status, count in cell.counts.items() if status.judged)
    delayed, errors = (cell.counts.get(status, 0) for status in (Status.DELAYED, Status.ERROR))
    text = f"{cell.counts.get(Status.DEFEATED, 0)}/{judged}" if judged else "-"
    return text + (f" +{delayed}" if delayed else "") + (f" ?{errors}" if errors else "")


def words(cell: FamilyResult) -> str:
    """Describe a family's results in words, such as "2 defeated (1 unseen), 3 held".

    An unseen defeat is one without detected tampering.
    """
    parts = {status: f"{cell.counts[status]} {status}" for status in Status if cell.counts.get(status)}
    if Status.DEFEATED in parts:
        parts[Status.DEFEATED] += f" ({cell.unseen} unseen)" if cell.unseen else " (all seen)"
    return ", ".join(parts.values())


def _cell(cell: FamilyResult | None, *, short: bool) -> Text:
    if cell is None:
        return Text("")
    return Text(in_short(cell) if short else words(cell), style=COLOURS[cell.worst])


def _print_audited(console: Console, audited: AuditedSwitch) -> None:
    console.rule(safe_line(audited.mechanism), align="left")
    console.print(safe(audited.about), soft_wrap=True)
    console.print(summary(audited), style="bold", soft_wrap=True)
    for family, cell in audited.cells().items():
        bad = [
            each for each in audited.tried if each.family == family and each.status in (Status.DEFEATED, Status.DELAYED)
        ]
        if bad:
            _print_family(console, audited.again, cell, bad)
    for each in audited.of(Status.ERROR):
        console.print(
            safe_line(f"  could not be judged: {each.tactic}: {each.because}"), style="magenta", soft_wrap=True
        )
    for finding in audited.findings:
        line = Text(f"  {finding.severity:6} ", style=SEVERITIES[finding.severity])
        console.print(
            line + safe_line(f"{finding.id}: {finding.title} ({finding.evidence}). {finding.fix}"), soft_wrap=True
        )
    if audited.not_applied:
        console.print("  Declared options that the trials did not apply:", soft_wrap=True)
        for option in audited.not_applied:
            console.print(safe_line(f"    {option}"), style="dim", soft_wrap=True)


def summary(audited: AuditedSwitch) -> str:
    """Summarize the audit of one kill switch in one line.

    The line contains the number of tactics by status, the shutdown time without tampering, and the number of findings.
    """
    counts = {status: len(audited.of(status)) for status in Status}
    tactics = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    times = f"takes {audited.control_s:.2f} s when untouched, counts as late after {audited.late_s:.2f} s"
    return f"{len(audited.tried)} tactics: {tactics or 'none'}; {times}; findings: {len(audited.findings)}"


def _print_family(console: Console, again: str, cell: FamilyResult, bad: list[TacticResult]) -> None:
    family = bad[0].family
    names = ", ".join(each.tactic for each in bad[:3]) + (", ..." if len(bad) > 3 else "")
    colour = COLOURS[cell.worst]
    console.print(Text(f"  {family}: {words(cell)}", style=colour) + safe_line(f"  ({names})"), soft_wrap=True)
    console.print(safe(f"    {fixes()[family]}"), soft_wrap=True)
    console.print(safe_line(f"    {again} --tactic {bad[0].tactic}"), style="dim", soft_wrap=True)
