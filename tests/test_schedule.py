"""Tests of a run's trials: which failures are retried, how stalls end, and when a whole run stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from harness.agents.scripted.playbook import AdvanceStep, Playbook, RunStep, SubmitStep
from harness.agents.scripted.scripted import ScriptedModel
from harness.agents.turn import Turn
from harness.errors import EngineError, ImageError, SandboxError, StoreError
from harness.judging.verdict import Outcome
from harness.runs.schedule import MAX_TRIES, run_trials
from harness.sandbox.console import Answer, CommandResult
from harness.sandbox.protocol import AlwaysUp, MachineSpec
from harness.session.events import Event, EventStream, Phase, Waiting
from harness.store.records import TrialRecord
from harness.store.transcript import Entry
from tests.builders import InMemory, asynchronous, run_spec
from tests.fake_sandbox import FakeSandbox, FakeSandboxes, Script, a_lab, sh, the_shell

OBEDIENT = ScriptedModel("script:test", (Playbook("obedient", "", (AdvanceStep(until="done"),)),))


@dataclass
class Failing(FakeSandboxes):
    """A back end whose first machines fail to start, each with one of these errors."""

    failures: list[Exception] = field(default_factory=list)

    @asynccontextmanager
    async def start(self, spec: MachineSpec, answer: Answer) -> AsyncIterator[FakeSandbox]:
        """Raise the next error, or start a machine if none is left."""
        if self.failures:
            raise self.failures.pop(0)
        async with super().start(spec, answer) as machine:
            yield machine


@dataclass
class Mortal(AlwaysUp):
    """A fake monitor of an engine whose restart a test can simulate."""

    restarts: int = 0
    recoveries: int = 0
    beyond_hope: bool = False
    ends: bool = False  # the engine ends after it has stopped its machines

    def restart_count(self) -> int:
        """Return how often the engine has restarted."""
        return self.restarts

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Whether the engine restarted since that count, or is ending while its machines are stopped."""
        return self.restarts != restarts or (stopping and self.ends)

    async def recovered(self) -> None:
        """Return at once, or raise ImageError if the engine can't recover."""
        self.recoveries += 1
        if self.beyond_hope:
            raise ImageError("the image is gone for good")


async def played(
    work: InMemory, backend: FakeSandboxes, model: ScriptedModel = OBEDIENT, concurrency: int = 1, **lab: Any
) -> list[TrialRecord]:
    """Run trials on this back end; return their records in order."""
    the_lab = replace(a_lab(model, backend), **{"first_wait_s": 0.0, **lab})
    await run_trials(run_spec(n=work.n, concurrency=concurrency), the_lab, work)
    return sorted(work.done, key=lambda record: record.number)


def fails_at(pattern: str, failure: Exception, engine: Mortal | None = None) -> Script:
    """Return a shell script in which matching commands raise an error, and the engine restarts if one is given."""

    async def fail(cmd: str, machine: FakeSandbox) -> CommandResult:
        if engine:
            engine.restarts += 1
        raise failure

    return the_shell(pattern, fail)


# ---- failures that are retried ----


@pytest.mark.parametrize("failure", [EngineError("no answer"), SandboxError("no console")])
@asynchronous
async def test_what_failed_before_the_agents_first_move_is_begun_again(failure: Exception) -> None:
    """If a machine fails to start, the trial is retried, and each failed try is counted and stored."""
    work, engine = InMemory(2), Mortal()
    first, second = await played(work, Failing(failures=[failure, failure]), engine=engine)
    assert (first.verdict.outcome, first.tries, second.tries) == (Outcome.COMPLIED, 3, 1)
    kept = [(each.number, each.tries, each.error_kind, each.lab_failed) for each in work.tries_failed]
    assert kept == [(1, 1, type(failure).__name__, True), (1, 2, type(failure).__name__, True)]
    assert engine.recoveries == 2


@asynchronous
async def test_tries_are_bounded() -> None:
    """A trial is retried at most MAX_TRIES times and then ends as an error; each trial has its own count."""
    work = InMemory(2)
    first, second = await played(work, Failing(failures=[EngineError("no room")] * MAX_TRIES))
    assert (first.verdict.outcome, first.tries, first.error) == (Outcome.ERROR, MAX_TRIES, "no room")
    assert second.verdict.outcome is Outcome.COMPLIED
    assert len(work.tries_failed) == MAX_TRIES - 1


@asynchronous
async def test_tries_of_earlier_processes_count() -> None:
    """A resumed trial has only the tries that earlier processes left."""

    class Resumed(InMemory):
        def tries(self, number: int) -> int:
            return MAX_TRIES - 1

    (record,) = await played(Resumed(1), Failing(failures=[EngineError("no room")]))
    assert (record.verdict.outcome, record.tries) == (Outcome.ERROR, MAX_TRIES)


@pytest.mark.parametrize("failure", [EngineError("it refused"), SandboxError("malformed"), RuntimeError("a bug")])
@asynchronous
async def test_an_agent_can_force_no_second_try(failure: Exception) -> None:
    """A failure during an agent's call is not retried while the engine lives, because the agent may have caused it."""
    work = InMemory(1)
    (record,) = await played(work, FakeSandboxes(fails_at("next_question", failure)))
    assert (record.verdict.outcome, record.tries, record.lab_failed) == (Outcome.ERROR, 1, False)
    assert work.tries_failed == []


@asynchronous
async def test_a_bug_is_not_begun_again() -> None:
    """An unexpected exception is not retried, even before the agent's first call."""
    work = InMemory(1)
    (record,) = await played(work, Failing(failures=[RuntimeError("a bug")]))
    assert (record.verdict.outcome, record.error_kind, record.tries) == (Outcome.ERROR, "RuntimeError", 1)


# ---- an engine that is restarted ----


@asynchronous
async def test_an_engine_that_dies_in_a_call_costs_a_try() -> None:
    """If the engine restarted during an agent's call, the trial is retried."""
    engine, work = Mortal(), InMemory(1)
    machines = FakeSandboxes(fails_at("next_question", EngineError("no answer"), engine))

    async def recover() -> None:
        machines.script = sh

    engine.recovered = recover  # type: ignore[method-assign] # the restarted engine works again
    (record,) = await played(work, machines, engine=engine)
    assert (record.verdict.outcome, record.tries) == (Outcome.COMPLIED, 2)
    assert [each.error_kind for each in work.tries_failed] == ["EngineError"]


@asynchronous
async def test_a_machine_that_the_engine_took_down_is_no_compliance() -> None:
    """A machine that went down with an engine restart counts as a failed try, not as compliance."""
    engine, work = Mortal(), InMemory(1)

    async def dies_with_its_engine(cmd: str, machine: FakeSandbox) -> CommandResult:
        engine.restarts += 1
        return machine.go_down(143)

    always = FakeSandboxes(the_shell("next_question", dies_with_its_engine))
    (record,) = await played(work, always, engine=engine)
    assert (record.verdict.outcome, record.error_kind, record.tries) == (Outcome.ERROR, "EngineLostError", MAX_TRIES)
    assert {each.error for each in work.tries_failed} == {"The engine was restarted while the trial ran."}


@pytest.mark.parametrize("ends", [True, False])
@asynchronous
async def test_an_engine_that_ends_in_order_stops_its_machines_first(ends: bool) -> None:
    """A trial whose machine was stopped from outside is retried only if the engine was shutting down."""
    work = InMemory(1)

    async def stopped(cmd: str, machine: FakeSandbox) -> CommandResult:
        machine.stopped_outside = True
        return machine.go_down(143)

    always = FakeSandboxes(the_shell("next_question", stopped))
    (record,) = await played(work, always, engine=Mortal(ends=ends))
    assert record.verdict.outcome is Outcome.ERROR
    assert (record.error_kind, record.tries) == (("EngineLostError", MAX_TRIES) if ends else (None, 1))


@asynchronous
async def test_an_engine_that_stays_away_ends_the_run() -> None:
    """If the engine can't recover, the run stops with the reason, and its unfinished trial is not stored."""
    work = InMemory(3)
    with pytest.raises(ImageError, match="gone for good"):
        await played(work, Failing(failures=[EngineError("x")]), engine=Mortal(beyond_hope=True), concurrency=2)
    assert 1 not in [record.number for record in work.done]


@asynchronous
async def test_a_store_that_fails_ends_the_run_in_its_own_words() -> None:
    """If a trial can't be stored, the run ends with that StoreError, not with an exception group."""

    class Full(InMemory):
        def finished(self, record: TrialRecord) -> None:
            raise StoreError("The store can't be written: disk full.")

    with pytest.raises(StoreError, match="disk full"):
        await played(Full(5), FakeSandboxes(), concurrency=3)


# ---- no progress ----

SHORT: Mapping[Phase, float | None] = {Phase.STARTING: 5.0, Phase.MODEL: 0.2, Phase.ENGINE: 0.2}


@dataclass(frozen=True)
class Silent(ScriptedModel):
    """A model that never answers."""

    def start(self, *_: Any) -> Any:
        """Start a conversation that never answers."""
        return _Thinking()


class _Thinking:
    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        await asyncio.Event().wait()
        return None


@asynchronous
async def test_a_silent_model_ends_its_trial_as_an_error() -> None:
    """If the model doesn't answer in time, the trial ends with StalledError and is not retried."""
    backend, work = FakeSandboxes(), InMemory(1)
    (record,) = await played(work, backend, Silent(OBEDIENT.name, OBEDIENT.playbooks), phase_limits=SHORT)
    assert (record.verdict.outcome, record.error_kind, record.tries) == (Outcome.ERROR, "StalledError", 1)
    assert record.error == "The trial made no progress for 0.2 s while it waited for the model."
    assert backend.removed == 1


@asynchronous
async def test_a_stuck_container_ends_its_trial_as_an_error() -> None:
    """If a command never returns, the trial ends with StalledError, and its machine is removed."""

    async def hangs(cmd: str, machine: FakeSandbox) -> CommandResult:
        await asyncio.Event().wait()
        raise AssertionError

    backend, work = FakeSandboxes(the_shell("next_question", hangs)), InMemory(1)
    (record,) = await played(work, backend, phase_limits=SHORT)
    assert (record.verdict.outcome, record.error_kind, record.tries) == (Outcome.ERROR, "StalledError", 1)
    assert record.error is not None
    assert record.error.endswith("waited for the engine.")
    assert backend.removed == 1


@asynchronous
async def test_slow_is_not_stuck() -> None:
    """A slow trial is not ended as long as it makes progress within each phase limit."""

    async def slow(cmd: str, machine: FakeSandbox) -> CommandResult:
        await asyncio.sleep(0.1)
        return await sh("true", machine)

    naps: list[RunStep | SubmitStep] = [RunStep("nap") for _ in range(6)]
    model = ScriptedModel("script:test", (Playbook("slow", "", (*naps, SubmitStep("x"))),))
    limits = {**SHORT, Phase.ENGINE: 0.4, Phase.MODEL: 0.4}
    (record,) = await played(InMemory(1), FakeSandboxes(the_shell("nap", slow)), model, phase_limits=limits)
    assert (record.verdict.outcome, record.error) == (Outcome.NOT_REACHED, None)


@asynchronous
async def test_what_a_trial_waits_for_is_told() -> None:
    """An event tells whenever a trial starts to wait for something else."""
    heard: list[Event] = []
    model = ScriptedModel("script:test", (Playbook("p", "", (RunStep("true"),)),))
    events = EventStream()
    events.attach(heard.append)
    await played(InMemory(1), FakeSandboxes(), model, events=events)
    assert {event.trial for event in heard} == {1}
    phases = [event.what.phase for event in heard if isinstance(event.what, Waiting)]
    assert phases[:3] == [Phase.ENGINE, Phase.MODEL, Phase.ENGINE]
    assert phases[-2:] == [Phase.ENGINE, Phase.ENGINE]
