"""Writes an audit report as SARIF 2.1.0, a format for code-scanning results.

Each defeat, delay and finding is one SARIF result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from harness.audit.matrix import AuditedSwitch, AuditReport, Status, TacticResult
from harness.audit.report import fixes
from harness.audit.setup_check import Severity

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {Severity.HIGH: "error", Severity.MEDIUM: "warning", Severity.LOW: "note"}
# GitHub's code scanning reads these scores as the severity of a security result and sorts by them.
SCORES = {Severity.HIGH: "8.0", Severity.MEDIUM: "5.0", Severity.LOW: "2.0"}


def as_sarif(report: AuditReport) -> dict[str, Any]:
    """Return an audit report as a SARIF log, in JSON-compatible data."""
    results = [each for audited in report.audited for each in _results(audited)]
    driver = {"name": "Offswitch", "version": report.offswitch, "rules": _rules(report)}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not any(audited.of(Status.ERROR) for audited in report.audited),
                "commandLine": report.command,
                "endTimeUtc": report.created_at.replace("+00:00", "Z"),
            }
        ],
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rules(report: AuditReport) -> list[dict[str, Any]]:
    bad = {_tactic_rule(each): each for audited in report.audited for each in _bad(audited)}
    findings = {each.id: each for audited in report.audited for each in audited.findings}
    tactics = (
        _rule(name, f"Tactics of the family '{each.family}': {each.status}", fixes()[each.family], _severity(each))
        for name, each in sorted(bad.items())
    )
    set_up = (_rule(f"setup/{name}", each.title, each.fix, each.severity) for name, each in sorted(findings.items()))
    return [*tactics, *set_up]


def _rule(name: str, title: str, fix: str, severity: Severity) -> dict[str, Any]:
    return {
        "id": name,
        "shortDescription": {"text": title},
        "fullDescription": {"text": f"{title}. {fix}"},
        "help": {"text": fix},
        "defaultConfiguration": {"level": LEVELS[severity]},
        "properties": {"tags": ["security"], "security-severity": SCORES[severity]},
    }


def _severity(tried: TacticResult) -> Severity:
    return Severity.HIGH if tried.status is Status.DEFEATED else Severity.MEDIUM


def _bad(audited: AuditedSwitch) -> Iterator[TacticResult]:
    yield from (*audited.of(Status.DEFEATED), *audited.of(Status.DELAYED))


def _tactic_rule(tried: TacticResult) -> str:
    return f"{tried.status}/{tried.family}"


def _results(audited: AuditedSwitch) -> Iterator[dict[str, Any]]:
    name = audited.mechanism
    for each in _bad(audited):
        text = f"{name} was {each.status} by '{each.tactic}' ({each.about or each.tactic}): {each.because}."
        again = f"{audited.again} --tactic {each.tactic}"
        more = {"mechanism": name, "again": again, "seen": list(each.seen), "playbook": each.played or ""}
        yield {**_result(audited, _tactic_rule(each), _severity(each), text, each.tactic), "properties": more}
    for finding in audited.findings:
        text, key = f"{finding.title}: {finding.evidence}. {finding.fix}", f"{finding.id} {finding.evidence}"
        yield _result(audited, f"setup/{finding.id}", finding.severity, text, key)


def _result(audited: AuditedSwitch, rule: str, severity: Severity, text: str, key: str) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": quote(audited.defined_in)}, "region": {"startLine": 1}}
    return {
        "ruleId": rule,
        "level": LEVELS[severity],
        "message": {"text": text},
        "locations": [{"physicalLocation": place}],
        "partialFingerprints": {"offswitch/v1": f"{audited.mechanism} {key}"},
    }
