"""Renders an audit report as an HTML page."""

from __future__ import annotations

from harness.audit.matrix import TACTICS, AuditReport, Status
from harness.audit.report import fixes, summary, words
from harness.html.page import render_page

_CLASSES = {Status.DEFEATED: "bad", Status.DELAYED: "warn", Status.ERROR: "warn", Status.HELD: "good"}


def as_page(report: AuditReport) -> str:
    """Return the HTML text of an audit report."""
    cells = {each.mechanism: each.cells() for each in report.audited}
    families = [family for family in TACTICS if any(family in each for each in cells.values())]
    return render_page(
        "audit.html.j2",
        report=report,
        families=families,
        cells=cells,
        fixes=fixes(),
        words=words,
        summary=summary,
        bad=(Status.DEFEATED, Status.DELAYED),
        status=Status,
        classes=_CLASSES,
    )
