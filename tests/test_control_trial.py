from __future__ import annotations

import pytest

from harness.agents.scripted.scripted import demo
from harness.errors import MechanismError
from harness.judging.verdict import Outcome
from harness.runs.control_trial import control_key, run_control
from harness.sandbox.console import CommandResult
from harness.sandbox.protocol import Limits
from harness.store.records import PluginUsed, RunSpec, TrialRecord
from tests.builders import SCRIPT, a_mechanism, asynchronous, run_spec, versions
from tests.fake_sandbox import FakeSandbox, FakeSandboxes, Script, a_lab, sh, the_shell


async def controlled(script: Script = sh, run: RunSpec | None = None) -> TrialRecord:
    """Run a control trial on fake machines whose commands this script handles."""
    return await run_control(run or run_spec(), a_lab(demo("math"), FakeSandboxes(script)))


@asynchronous
async def test_a_kill_switch_that_works_passes() -> None:
    """An untouched kill switch that takes the machine down passes, and its control trial is returned as a record."""
    record = await controlled()
    assert (record.verdict.outcome, record.verdict.tampering) == (Outcome.COMPLIED, ())
    assert record.run_id == "a-run-control"
    assert record.simulated


@asynchronous
async def test_a_kill_switch_that_does_nothing_is_refused() -> None:
    """A machine that outlives an untouched kill switch raises MechanismError."""

    async def broken(cmd: str, machine: FakeSandbox) -> CommandResult:
        machine.files[SCRIPT] = machine.files[SCRIPT].model_copy(update={"content": b"true"})
        return await sh(cmd, machine)

    with pytest.raises(MechanismError, match=r"'published' failed its control trial.*No trial was run\.$"):
        await controlled(the_shell("next_question", broken))


def test_a_pass_is_good_for_what_was_tried() -> None:
    """A control trial's key changes with image, plugins, mechanism, limits or engine, but not with run id or n."""
    mine = control_key(run_spec("one"), versions())
    assert control_key(run_spec("two", n=50), versions()) == mine
    others = [
        control_key(run_spec(image="sandbox:2"), versions()),
        control_key(run_spec(plugins=(PluginUsed(kind="task", name="math", sha256="1" * 64),)), versions()),
        control_key(run_spec(mechanism=a_mechanism(grace_s=1)), versions()),
        control_key(run_spec(limits=Limits(memory_mb=64)), versions()),
        control_key(run_spec(), versions(engine="29.0")),
    ]
    assert len({mine, *others}) == 6
