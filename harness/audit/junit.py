"""Writes an audit report as JUnit XML.

Each kill switch is a test suite. Each tactic and each finding about the container's set-up is a test case.
"""

from __future__ import annotations

import re

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from harness.audit.matrix import AuditedSwitch, AuditReport, Status, TacticResult
from harness.audit.report import fixes
from harness.audit.setup_check import Finding

# Characters that XML 1.0 can't hold, not even escaped.
_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(report: AuditReport) -> bytes:
    """Return an audit report as the bytes of a JUnit XML file.

    A tactic is a failed test case if it defeated or delayed the kill switch. Each finding about the container's set-up
    is also a failed test case.
    """
    document = JUnitXml("offswitch audit")
    for audited in report.audited:
        document.add_testsuite(_suite(audited))
    return bytes(document.tostring())  # type: ignore[no-untyped-call] # the library leaves this one untyped


def _suite(audited: AuditedSwitch) -> TestSuite:
    suite = TestSuite(audited.mechanism)
    for each in audited.tried:
        suite.add_testcase(_case(audited, each))
    for finding in audited.findings:
        suite.add_testcase(_finding(audited, finding))
    return suite


def _case(audited: AuditedSwitch, tried: TacticResult) -> TestCase:
    case = TestCase(tried.tactic, f"{audited.mechanism}.{tried.family}", tried.took_s or 0)
    match tried.status:
        case Status.DEFEATED | Status.DELAYED:
            case.result = [_failure(tried)]
        case Status.ERROR:
            case.result = [Error(_plain(tried.because), "error")]
        case Status.NOT_APPLICABLE:
            case.result = [Skipped(_plain(tried.because))]
    return case


def _failure(tried: TacticResult) -> Failure:
    failure = Failure(_plain(tried.because), str(tried.status))
    failure.text = _plain(f"{fixes()[tried.family]}\n\n{tried.played or ''}")
    return failure


def _finding(audited: AuditedSwitch, finding: Finding) -> TestCase:
    case = TestCase(finding.id, f"{audited.mechanism}.setup", 0)
    failure = Failure(_plain(f"{finding.title}: {finding.evidence}"), str(finding.severity))
    failure.text = _plain(finding.fix)
    case.result = [failure]
    return case


def _plain(text: str) -> str:
    return _NOT_IN_XML.sub("?", text)
