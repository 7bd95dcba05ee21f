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
    """A tactic and what it came to."""
    usual = {"tactic": "edit-it", "family": "edit", "about": "edits it", "because": "the machine outlived it"}
    return TacticResult(**{**usual, "status": status, "seen": ("edited",), "played": "id: edit-it\n", **other})


FOUND = Finding(id="privileged", severity=Severity.HIGH, title="It is privileged", evidence="set", fix="Unset it.")


def report(*tactics: TacticResult, findings: tuple[Finding, ...] = (FOUND,), **other: Any) -> AuditReport:
    """An audit of one kill switch."""
    usual: dict[str, Any] = {
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
    audited = AuditedSwitch(**{**usual, **other})
    return AuditReport(
        offswitch="0", created_at="2026-01-01T00:00:00+00:00", command="./lab audit", simulated="s", audited=(audited,)
    )


ALL = report(*(tried(status, tactic=f"edit-{status.name.lower()}") for status in Status), not_applied=("privileged",))


def test_every_family_of_tactics_has_a_fix() -> None:
    """Each is one sentence."""
    assert set(fixes()) == set(TACTICS)
    assert all(fix.endswith(".") for fix in fixes().values())


# ---- SARIF ----


@pytest.mark.parametrize("audit", [ALL, report(findings=())])
def test_the_sarif_file_is_valid(audit: AuditReport) -> None:
    """It is what SARIF 2.1.0's schema allows, nothing more, and names only rules that it describes."""
    log = json.loads(json.dumps(as_sarif(audit)))
    SarifLog.model_validate(log)
    run = log["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len(set(rules))
    assert {result["ruleId"] for result in run["results"]} == set(rules)


def test_the_validity_check_can_fail() -> None:
    """The schema refuses a level that it doesn't know, and a key."""
    log = as_sarif(ALL)
    log["runs"][0]["results"][0]["level"] = "grave"
    with pytest.raises(ValueError, match="level"):
        SarifLog.model_validate(log)


def test_sarif_has_a_result_for_each_defeat_delay_and_finding() -> None:
    """Each with the playbook, and a fingerprint by which the next audit finds it again; what held is none."""
    (run,) = as_sarif(ALL)["runs"]
    assert [each["ruleId"] for each in run["results"]] == ["defeated/edit", "delayed/edit", "setup/privileged"]
    assert run["results"][0]["properties"]["playbook"] == "id: edit-it\n"
    assert len({each["partialFingerprints"]["offswitch/v1"] for each in run["results"]}) == 3
    place = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place["uri"] == "some%20folder/Dockerfile"
    assert not run["invocations"][0]["executionSuccessful"]  # one tactic could not be judged


# ---- JUnit ----


def test_junit_counts_what_there_is() -> None:
    """A defeat, a delay and a finding fail, what went wrong is an error, what doesn't apply is skipped."""
    (suite,) = ET.fromstring(as_junit(ALL))  # noqa: S314 - our own
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "3",
        "errors": "1",
        "skipped": "1",
    }
    assert suite.find("testcase/failure[@type='defeated']") is not None


def test_junit_holds_whatever_is_said() -> None:
    """Bytes that XML can't carry are replaced; the rest is escaped."""
    found = as_junit(report(tried(because="\x1b[2J\0<&]]>\ud800")))
    failure = ET.fromstring(found).find("testsuite/testcase/failure")  # noqa: S314 - our own
    assert failure is not None
    assert failure.get("message") == "?[2J?<&]]>?"


# ---- HTML, terminal ----


def test_the_page_escapes_what_it_shows() -> None:
    """Markup in a result is text."""
    page = as_page(report(tried(because="<script>x</script>", played="<b>"), about="<i>"))
    assert "<script" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<i>" not in page


def test_the_page_says_how_to_play_a_defeat_again() -> None:
    """By the command that audits this kill switch, with the tactic's name."""
    assert "./lab audit --mechanism stop --tactic edit-it" in as_page(report(tried()))


def test_the_terminal_shows_all_and_obeys_nothing() -> None:
    """Matrix, fix, finding and what was not applied, with nothing that a terminal would take for its own."""
    shown = io.StringIO()
    errs = tried(Status.ERROR, because="\x1b[2J[red]")
    print_report(Console(file=shown, width=200), report(tried(), errs, not_applied=("privileged",)))
    text = shown.getvalue()
    for words in ("1 defeated (all seen), 1 error", fixes()["edit"], "Unset it.", "    privileged", "\\x1b[2J[red]"):
        assert words in text
    assert "\x1b" not in text


# ---- the gate ----


@pytest.mark.parametrize(
    ("fail_on", "count"),
    [
        ((), 0),
        (("defeated",), 2),  # and the one that could not be judged
        (("delayed",), 2),
        (("defeated", "delayed"), 3),
        (("unseen",), 1),
        (("high",), 2),
        (("low",), 2),
    ],
)
def test_a_build_fails_on_what_it_was_told_to(fail_on: tuple[str, ...], count: int) -> None:
    """And on what could not be judged; with nothing asked for it doesn't fail."""
    assert len(failures(ALL, fail_on)) == count


def test_a_severity_takes_in_what_is_graver() -> None:
    """Medium fails on high and medium, not on low."""
    low, medium = (FOUND.model_copy(update={"severity": each}) for each in (Severity.LOW, Severity.MEDIUM))
    assert len(failures(report(findings=(FOUND, medium, low)), ("medium",))) == 2


def test_a_defeat_that_nobody_saw_has_a_gate_of_its_own() -> None:
    """What the watcher missed is a fault of the watcher, whatever became of the kill switch."""
    assert failures(report(tried(seen=()), findings=()), ("unseen",)) == ["stop: edit-it unseen"]
    assert failures(report(tried(), findings=()), ("unseen",)) == []


def test_with_a_baseline_only_what_is_new_fails() -> None:
    """What the earlier audit had as well is known; what is new, or was better then, fails."""
    before = as_report(json.dumps(as_json(report(tried(), tried(Status.HELD, tactic="edit-other")))))
    now = report(tried(), tried(tactic="edit-other"))
    assert failures(now, ("defeated", "high"), before) == ["stop: edit-other defeated"]
    assert failures(before, ("defeated", "high"), before) == []


def test_reasons_are_read_with_commas_and_checked() -> None:
    """A reason that there isn't names the nearest."""
    assert gates(("defeated,high", "low")) == ("defeated", "high", "low")
    with pytest.raises(UsageError, match="did you mean delayed"):
        gates(("delay",))


@pytest.mark.parametrize("named", ["", " ", ",", "defeated,"])
def test_a_reason_that_says_nothing_opens_no_gate(named: str) -> None:
    """An empty word, as from a variable that isn't set, is refused."""
    with pytest.raises(UsageError, match="names nothing to fail on"):
        gates((named,))


def test_what_can_not_be_judged_fails_with_a_baseline_too() -> None:
    """It was not passed, however often that was so before."""
    before = report(tried(Status.ERROR), findings=())
    assert failures(before, ("defeated",), before) == ["stop: edit-it could not be judged"]


def test_an_audit_survives_its_json() -> None:
    """What is written can be read back whole; what is no audit is refused in a sentence."""
    assert as_report(json.dumps(as_json(ALL))) == ALL
    for broken in ("[]", "{", '{"audited": 1}'):
        with pytest.raises(UsageError, match="isn't the JSON of an audit"):
            as_report(broken)


def test_the_json_has_the_matrix() -> None:
    """A cell for each mechanism and family, with its counts, whether defeats were seen, and the fix."""
    cell = as_json(ALL)["matrix"]["stop"]["edit"]
    assert (cell["worst"], cell["defeated"], cell["held"], cell["defeats_unseen"]) == ("defeated", 1, 1, 0)
    assert cell["fix"] == fixes()["edit"]
