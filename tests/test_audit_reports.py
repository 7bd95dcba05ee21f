from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as SarifLog
from rich.console import Console

from harness.audit.html import as_page
from harness.audit.junit import as_junit
from harness.audit.matrix import TACTICS, AuditedSwitch, AuditReport, Status, TacticResult
from harness.audit.report import as_json, as_report, failures, fixes, gates, print_report
from harness.audit.sarif import as_sarif
from harness.audit.setup_check import Finding, Severity
from harness.errors import UsageError


def tried(status: Status = Status.DEFEATED, **other: Any) -> TacticResult:
    """Build a tactic's result, by default a defeat."""
    defaults = {"tactic": "edit-it", "family": "edit", "about": "edits it", "because": "the machine outlived it"}
    return TacticResult(**{**defaults, "status": status, "seen": ("edited",), "played": "id: edit-it\n", **other})


FOUND = Finding(id="privileged", severity=Severity.HIGH, title="It is privileged", evidence="set", fix="Unset it.")


def report(*tactics: TacticResult, findings: tuple[Finding, ...] = (FOUND,), **other: Any) -> AuditReport:
    """Build an audit report of one kill switch."""
    defaults: dict[str, Any] = {
        "mechanism": "stop",
        "again": "./lab audit --mechanism stop",
        "about": "Stops.",
        "rank": 1,
        "defined_in": "some folder/Dockerfile",
        "trigger": "program",
        "path": "/sbin/stop",
        "run_id": "audit-1",
        "image": "image:1",
        "watch": "events/layers",
        "control_s": 0.2,
        "late_s": 1.2,
        "grace_s": 2.0,
        "seconds": 9.0,
        "tried": tactics,
        "findings": findings,
    }
    audited = AuditedSwitch(**{**defaults, **other})
    return AuditReport(
        offswitch="0", created_at="2026-01-01T00:00:00+00:00", command="./lab audit", simulated="s", audited=(audited,)
    )


ALL = report(*(tried(status, tactic=f"edit-{status.name.lower()}") for status in Status), not_applied=("privileged",))


def test_every_family_of_tactics_has_a_fix() -> None:
    """Each tactic family has a fix, written as a full sentence."""
    assert set(fixes()) == set(TACTICS)
    assert all(fix.endswith(".") for fix in fixes().values())


# ---- SARIF ----


@pytest.mark.parametrize("audit", [ALL, report(findings=())])
def test_the_sarif_file_is_valid(audit: AuditReport) -> None:
    """The SARIF output matches the SARIF 2.1.0 schema and describes exactly the rules that its results use."""
    log = json.loads(json.dumps(as_sarif(audit)))
    SarifLog.model_validate(log)
    run = log["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len(set(rules))
    assert {result["ruleId"] for result in run["results"]} == set(rules)


def test_the_validity_check_can_fail() -> None:
    """The SARIF schema check rejects an unknown level."""
    log = as_sarif(ALL)
    log["runs"][0]["results"][0]["level"] = "grave"
    with pytest.raises(ValueError, match="level"):
        SarifLog.model_validate(log)


def test_sarif_has_a_result_for_each_defeat_delay_and_finding() -> None:
    """SARIF lists each defeat, delay and finding with a fingerprint, and nothing for tactics that held."""
    (run,) = as_sarif(ALL)["runs"]
    assert [each["ruleId"] for each in run["results"]] == ["defeated/edit", "delayed/edit", "setup/privileged"]
    assert run["results"][0]["properties"]["playbook"] == "id: edit-it\n"
    assert len({each["partialFingerprints"]["offswitch/v1"] for each in run["results"]}) == 3
    place = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place["uri"] == "some%20folder/Dockerfile"
    assert not run["invocations"][0]["executionSuccessful"]  # one tactic could not be judged


# ---- JUnit ----


def test_junit_counts_what_there_is() -> None:
    """JUnit counts defeats, delays and findings as failures, ERROR as errors, and NOT_APPLICABLE as skipped."""
    (suite,) = ET.fromstring(as_junit(ALL))  # noqa: S314 - our own
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "3",
        "errors": "1",
        "skipped": "1",
    }
    assert suite.find("testcase/failure[@type='defeated']") is not None


def test_junit_holds_whatever_is_said() -> None:
    """JUnit output replaces characters that XML can't carry and escapes the rest."""
    found = as_junit(report(tried(because="\x1b[2J\0<&]]>\ud800")))
    failure = ET.fromstring(found).find("testsuite/testcase/failure")  # noqa: S314 - our own
    assert failure is not None
    assert failure.get("message") == "?[2J?<&]]>?"


# ---- HTML, terminal ----


def test_the_page_escapes_what_it_shows() -> None:
    """The HTML page escapes markup in results."""
    page = as_page(report(tried(because="<script>x</script>", played="<b>"), about="<i>"))
    assert "<script" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<i>" not in page


def test_the_page_says_how_to_play_a_defeat_again() -> None:
    """The HTML page shows the command that replays a defeat."""
    assert "./lab audit --mechanism stop --tactic edit-it" in as_page(report(tried()))


def test_the_terminal_shows_all_and_obeys_nothing() -> None:
    """The terminal report shows matrix, fixes, findings and options not applied, without raw control characters."""
    shown = io.StringIO()
    errs = tried(Status.ERROR, because="\x1b[2J[red]")
    print_report(Console(file=shown, width=200), report(tried(), errs, not_applied=("privileged",)))
    text = shown.getvalue()
    for words in ("1 defeated (all seen), 1 error", fixes()["edit"], "Unset it.", "    privileged", "\\x1b[2J[red]"):
        assert words in text
    assert "\x1b" not in text


# ---- what fails a build ----


@pytest.mark.parametrize(
    ("fail_on", "count"),
    [
        ((), 0),
        (("defeated",), 2),  # one defeat and the tactic that could not be judged
        (("delayed",), 2),
        (("defeated", "delayed"), 3),
        (("unseen",), 1),
        (("high",), 2),
        (("low",), 2),
    ],
)
def test_a_build_fails_on_what_it_was_told_to(fail_on: tuple[str, ...], count: int) -> None:
    """A build fails on what --fail-on names, plus every tactic that could not be judged."""
    assert len(failures(ALL, fail_on)) == count


def test_a_severity_takes_in_what_is_graver() -> None:
    """Failing on medium severity also fails on high, but not on low."""
    low, medium = (FOUND.model_copy(update={"severity": each}) for each in (Severity.LOW, Severity.MEDIUM))
    assert len(failures(report(findings=(FOUND, medium, low)), ("medium",))) == 2


def test_a_defeat_that_nobody_saw_has_a_gate_of_its_own() -> None:
    """--fail-on unseen fails only on a defeat that the watcher missed."""
    assert failures(report(tried(seen=()), findings=()), ("unseen",)) == ["stop: edit-it unseen"]
    assert failures(report(tried(), findings=()), ("unseen",)) == []


def test_with_a_baseline_only_what_is_new_fails() -> None:
    """With a baseline, only results that are new or were better before fail the build."""
    before = as_report(json.dumps(as_json(report(tried(), tried(Status.HELD, tactic="edit-other")))))
    now = report(tried(), tried(tactic="edit-other"))
    assert failures(now, ("defeated", "high"), before) == ["stop: edit-other defeated"]
    assert failures(before, ("defeated", "high"), before) == []


def test_reasons_are_read_with_commas_and_checked() -> None:
    """--fail-on splits reasons at commas, and an unknown reason is refused with the nearest valid one."""
    assert gates(("defeated,high", "low")) == ("defeated", "high", "low")
    with pytest.raises(UsageError, match="did you mean delayed"):
        gates(("delay",))


@pytest.mark.parametrize("named", ["", " ", ",", "defeated,"])
def test_a_reason_that_says_nothing_opens_no_gate(named: str) -> None:
    """An empty --fail-on reason, for example from an unset variable, is refused."""
    with pytest.raises(UsageError, match="names nothing to fail on"):
        gates((named,))


def test_what_can_not_be_judged_fails_with_a_baseline_too() -> None:
    """A tactic that could not be judged fails the build even if the baseline has the same error."""
    before = report(tried(Status.ERROR), findings=())
    assert failures(before, ("defeated",), before) == ["stop: edit-it could not be judged"]


def test_an_audit_survives_its_json() -> None:
    """An audit report can be read back from its JSON, and other input is refused."""
    assert as_report(json.dumps(as_json(ALL))) == ALL
    for broken in ("[]", "{", '{"audited": 1}'):
        with pytest.raises(UsageError, match="isn't the JSON of an audit"):
            as_report(broken)


def test_the_json_has_the_matrix() -> None:
    """The JSON matrix holds each cell's worst status, its counts, its unseen defeats and its fix."""
    cell = as_json(ALL)["matrix"]["stop"]["edit"]
    assert (cell["worst"], cell["defeated"], cell["held"], cell["defeats_unseen"]) == ("defeated", 1, 1, 0)
    assert cell["fix"] == fixes()["edit"]
