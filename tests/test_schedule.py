"""A run's trials: what is begun again and what isn't, what no progress comes to, and when a run ends as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from harness.agents.player import Turn
from harness.agents.scripted.playbook import AdvanceStep, Playbook, RunStep, SubmitStep
from harness.agents.scripted.scripted import ScriptedModel
from harness.errors import EngineError, ImageError, SandboxError, StoreError
from harness.judging.verdict import Outcome
from harness.runs.schedule import MAX_TRIES, run_trials
from harness.sandbox.console import Answer, CommandResult
from harness.sandbox.protocol import AlwaysUp, MachineSpec
from harness.session.watchdog import Phase
from harness.store.records import TrialRecord
from harness.store.transcript import Entry
from tests.builders import InMemory, asynchronous, run_spec
from tests.fake_sandbox import FakeSandbox, FakeSandboxes, Script, a_lab, sh, the_shell

OBEDIENT = ScriptedModel("script:test", (Playbook("obedient", "", (AdvanceStep(until="done"),)),))


@dataclass
class Failing(FakeSandboxes):
    """Machines of which the first so many don't start."""

    failures: list[Exception] = field(default_factory=list)

    @asynccontextmanager
    async def start(self, spec: MachineSpec, answer: Answer) -> AsyncIterator[FakeSandbox]:
        """Fail, or start one."""
        if self.failures:
            raise self.failures.pop(0)
        async with super().start(spec, answer) as machine:
            yield machine


@dataclass
class Mortal(AlwaysUp):
    """The lifeline of an engine that can be restarted."""

    restarts: int = 0
    recoveries: int = 0
    beyond_hope: bool = False
    ends: bool = False  # once it has stopped its machines

    def restart_count(self) -> int:
        """Which it is in."""
        return self.restarts

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Whether it has another one by now."""
        return self.restarts != restarts or (stopping and self.ends)

    async def recovered(self) -> None:
        """At once, or never."""
        self.recoveries += 1
        if self.beyond_hope:
            raise ImageError("the image is gone for good")


async def played(
    work: InMemory, backend: FakeSandboxes, model: ScriptedModel = OBEDIENT, concurrency: int = 1, **lab: Any
) -> list[TrialRecord]:
    """The records of a run on these machines, in order."""
    room = replace(a_lab(model, backend), **{"first_wait_s": 0.0, **lab})
    await run_trials(run_spec(n=work.n, concurrency=concurrency), room, work)
    return sorted(work.done, key=lambda record: record.number)


def fails_at(pattern: str, failure: Exception, engine: Mortal | None = None) -> Script:
    """A shell in which a command of that pattern ends in the lab's failure, the engine's restart with it if given."""

    async def fail(cmd: str, machine: FakeSandbox) -> CommandResult:
        if engine:
            engine.restarts += 1
        raise failure

    return the_shell(pattern, fail)


# ---- what is begun again ----


@pytest.mark.parametrize("failure", [EngineError("no answer"), SandboxError("no console")])
@asynchronous
async def test_what_failed_before_the_agents_first_move_is_begun_again(failure: Exception) -> None:
    """A machine that doesn't start is the lab's fault: the trial is begun again, counted, and its tries kept."""
    work, engine = InMemory(2), Mortal()
    first, second = await played(work, Failing(failures=[failure, failure]), engine=engine)
    assert (first.verdict.outcome, first.tries, second.tries) == (Outcome.COMPLIED, 3, 1)
    kept = [(each.number, each.tries, each.error_kind, each.lab_failed) for each in work.tries_failed]
    assert kept == [(1, 1, type(failure).__name__, True), (1, 2, type(failure).__name__, True)]
    assert engine.recoveries == 2


@asynchronous
async def test_tries_are_bounded() -> None:
    """A trial that the lab can't run ends as an error once its tries are used up, and the next one has its own."""
    work = InMemory(2)
    first, second = await played(work, Failing(failures=[EngineError("no room")] * MAX_TRIES))
    assert (first.verdict.outcome, first.tries, first.error) == (Outcome.ERROR, MAX_TRIES, "no room")
    assert second.verdict.outcome is Outcome.COMPLIED
    assert len(work.tries_failed) == MAX_TRIES - 1


@asynchronous
async def test_tries_of_earlier_processes_count() -> None:
    """A resumed trial goes on with the tries it has left."""

    class Resumed(InMemory):
        def tries(self, number: int) -> int:
            return MAX_TRIES - 1

    (record,) = await played(Resumed(1), Failing(failures=[EngineError("no room")]))
    assert (record.verdict.outcome, record.tries) == (Outcome.ERROR, MAX_TRIES)


@pytest.mark.parametrize("failure", [EngineError("it refused"), SandboxError("malformed"), RuntimeError("a bug")])
@asynchronous
async def test_an_agent_can_force_no_second_try(failure: Exception) -> None:
    """What fails during an agent's calls, while the engine lives, may be the agent's doing: never begun again."""
    work = InMemory(1)
    (record,) = await played(work, FakeSandboxes(fails_at("next_question", failure)))
    assert (record.verdict.outcome, record.tries, record.lab_failed) == (Outcome.ERROR, 1, False)
    assert work.tries_failed == []


@asynchronous
async def test_a_bug_is_not_begun_again() -> None:
    """What nobody foresaw would come again, and must be seen: one try, also before the agent's first move."""
    work = InMemory(1)
    (record,) = await played(work, Failing(failures=[RuntimeError("a bug")]))
    assert (record.verdict.outcome, record.error_kind, record.tries) == (Outcome.ERROR, "RuntimeError", 1)


# ---- an engine that is restarted ----


@asynchronous
async def test_an_engine_that_dies_in_a_call_costs_a_try() -> None:
    """An engine that fails under a trial and was restarted is the engine's fault, whatever the agent had done."""
    engine, work = Mortal(), InMemory(1)
    machines = FakeSandboxes(fails_at("next_question", EngineError("no answer"), engine))

    async def heal() -> None:
        machines.script = sh

    engine.recovered = heal  # type: ignore[method-assign] # the restarted engine is in order
    (record,) = await played(work, machines, engine=engine)
    assert (record.verdict.outcome, record.tries) == (Outcome.COMPLIED, 2)
    assert [each.error_kind for each in work.tries_failed] == ["EngineError"]


@asynchronous
async def test_a_machine_that_the_engine_took_down_is_no_compliance() -> None:
    """A trial that an engine's restart fell into is never judged, however much its end looks like the kill switch."""
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
    """Then the trial is begun again; one whose machine alone was stopped from outside is an error, and stays it."""
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
    """Where no further trial can run, the run ends with the reason, and the trial is missing rather than an error."""
    work = InMemory(3)
    with pytest.raises(ImageError, match="gone for good"):
        await played(work, Failing(failures=[EngineError("x")]), engine=Mortal(beyond_hope=True), concurrency=2)
    assert 1 not in [record.number for record in work.done]


@asynchronous
async def test_a_store_that_fails_ends_the_run_in_its_own_words() -> None:
    """A trial that can't be stored ends the run with one error, not with a group of them."""

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
        """Begin to think."""
        return _Thinking()


class _Thinking:
    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        await asyncio.Event().wait()
        return None


@asynchronous
async def test_a_silent_model_ends_its_trial_as_an_error() -> None:
    """A model that says nothing for too long is an error of its own kind, which is not begun again."""
    backend, work = FakeSandboxes(), InMemory(1)
    (record,) = await played(work, backend, Silent(OBEDIENT.name, OBEDIENT.playbooks), phase_limits=SHORT)
    assert (record.verdict.outcome, record.error_kind, record.tries) == (Outcome.ERROR, "StalledError", 1)
    assert record.error == "The trial made no progress for 0.2 s while it waited for the model."
    assert backend.removed == 1


@asynchronous
async def test_a_stuck_container_ends_its_trial_as_an_error() -> None:
    """A command that never comes back, whatever bounds it should have, ends its trial; the machine is removed."""

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
    """A trial that takes many times as long as anything in it may is left alone while something comes forward."""

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
    """Who shows progress hears of each change: the machine's start, the model's turns, the engine's work."""
    told: list[tuple[int, Phase]] = []
    model = ScriptedModel("script:test", (Playbook("p", "", (RunStep("true"),)),))
    await played(InMemory(1), FakeSandboxes(), model, on_phase=lambda number, phase: told.append((number, phase)))
    assert {number for number, _ in told} == {1}
    phases = [phase for _, phase in told]
    assert phases[:4] == [Phase.STARTING, Phase.ENGINE, Phase.MODEL, Phase.ENGINE]
    assert phases[-2:] == [Phase.ENGINE, Phase.ENGINE]
