"""Runs one trial, from starting the container to judging the evidence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from harness.agents.interview import Interview, interview
from harness.agents.player import Player, Stage
from harness.agents.turn import Turn
from harness.errors import (
    EngineError,
    EngineLostError,
    JudgeError,
    LabError,
    ModelError,
    SandboxError,
    StalledError,
    TooFewFilesError,
    TrialTimeError,
)
from harness.judging.evidence import Evidence, StopReason
from harness.judging.verdict import Outcome, Verdict
from harness.runs.machine import machine_spec
from harness.sandbox.protocol import AlwaysUp, Backend, EngineHealth
from harness.session.events import CallFailed, Ended, Event, EventStream, Phase, Transcript, TrialEvents, Waiting
from harness.session.session import Session
from harness.session.watchdog import PHASE_LIMITS_S, Watchdog
from harness.store.records import TrialRecord, TrialSpec
from harness.store.transcript import Entry, Usage
from harness.tasks.conditions import render
from harness.tasks.registry import task_for
from harness.tasks.task import Task

if TYPE_CHECKING:  # these load FastAPI, which checking a request doesn't need
    from harness.toolserver.app import SessionRegistry
    from harness.toolserver.server import ToolServer

_log = logging.getLogger(__name__)

# Failures after which a trial may be repeated, if the agent can't have caused them. A bug would only come again.
FAULTS = (EngineError, SandboxError, StalledError)


@dataclass(frozen=True)
class Lab:
    """The resources that all trials of a run share, such as the container back end, the tool server and the player.

    ``say`` prints a line for the user. ``engine`` reports restarts and outages of the container engine. ``events``
    passes what happens in the trials to the listeners of the run. ``phase_limits`` maps each phase of a trial to the
    number of seconds that it may last without progress, or to None for no limit. ``first_wait_s`` is the number of
    seconds before a failed trial is repeated for the first time. Each further wait is twice as long as the previous
    one.
    """

    backend: Backend
    sessions: SessionRegistry
    server: ToolServer
    player: Player
    say: Callable[[str], None] = lambda line: None
    engine: EngineHealth = field(default_factory=AlwaysUp)
    events: EventStream = field(default_factory=EventStream)
    phase_limits: Mapping[Phase, float | None] = field(default_factory=lambda: PHASE_LIMITS_S)
    first_wait_s: float = 1.0


@dataclass
class TurnTotals:
    """The total tokens, cost and retries of a trial's model turns.

    ``usage`` contains an entry for each turn with known tokens. ``costs`` contains an entry for each turn with a known
    cost. ``failure`` is the error of the model, or None if the model didn't fail. ``aside`` contains facts about the
    process of an external agent.
    """

    turns: int = 0
    retries: int = 0
    usage: list[Usage] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    failure: ModelError | None = None
    aside: dict[str, Any] = field(default_factory=dict)

    def hear(self, turn: Turn) -> None:
        """Add the tokens, cost and retries of one model turn to the totals."""
        self.turns += 1
        self.retries += turn.retries
        self.usage += [turn.usage] if turn.usage else []
        self.costs += [turn.cost] if turn.cost is not None else []
        self.models += [turn.model] if turn.model and turn.model not in self.models else []

    def fail(self, failure: ModelError) -> StopReason:
        """Record the model's failure and return the stop reason MODEL_FAILED."""
        self.failure = failure
        self.retries += failure.retries
        return StopReason.MODEL_FAILED

    @property
    def all_usage(self) -> Usage | None:
        """The total token usage of all turns.

        The value is None if there was no turn, or if the tokens of any turn are unknown.
        """
        return sum(self.usage, Usage()) if self.turns and len(self.usage) == self.turns else None

    @property
    def cost(self) -> float | None:
        """The total cost of all turns, in US dollars.

        The value is None if there was no turn, or if the cost of any turn is unknown.
        """
        return sum(self.costs) if self.turns and len(self.costs) == self.turns else None


NO_INTERVIEW = Interview()


@dataclass(frozen=True)
class _Result:
    """The verdict and the evidence of a trial, and the failure that ended the trial, if any.

    ``evidence`` is None if a failure prevented the collection of evidence. ``lab_failed`` is True if the trial may be
    repeated because its agent can't have caused the failure.
    """

    verdict: Verdict
    evidence: Evidence | None = None
    failure: Exception | None = None
    lab_failed: bool = False
    interview: Interview = NO_INTERVIEW

    @property
    def error(self) -> str | None:
        """The failure described in one sentence, or None if there was no failure.

        For a bug in the lab, the sentence begins with the name of the exception's class.
        """
        if self.failure is None:
            return None
        return str(self.failure) if isinstance(self.failure, LabError) else _with_class(self.failure)

    @property
    def traceback(self) -> str | None:
        """The traceback if a bug in the lab ended the trial, else None."""
        if self.failure is None or isinstance(self.failure, LabError):
            return None
        return "".join(format_exception(self.failure))


async def run_trial(spec: TrialSpec, lab: Lab) -> TrialRecord:
    """Run one trial, judge it, and return its record.

    If the lab itself fails, the outcome is ``error``.
    """
    began, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="milliseconds")
    task = task_for(spec.run.task, spec.run.agent)
    events = TrialEvents(spec.number, lab.events)
    session = Session(
        task=task,
        mechanism=spec.run.mechanism,
        progress=task.begin(spec.options, spec.run.mechanism),
        events=events,
        follow_up=spec.run.condition.follow_up,
    )
    prompts = lab.player.prompts(spec.number) or render(task.system, task.user, spec.run.condition)
    transcript = Transcript(events)
    transcript.append(Entry(role="system", text=prompts.system))
    transcript.append(Entry(role="user", text=prompts.user))
    totals, restarts = TurnTotals(), lab.engine.restart_count()
    watchdog, failures = Watchdog(lab.player.phase_limits(lab.phase_limits)), _CallFailures()
    events.listeners.attach(watchdog.hear, kinds=Watchdog.HEARD)
    events.listeners.attach(failures.hear, kinds=(CallFailed,))
    try:
        async with watchdog.running(), lab.backend.start(machine_spec(spec), session.answer) as sandbox:
            events.publish(Waiting(Phase.ENGINE))
            await session.begin(sandbox)
            with lab.sessions.opened(session):
                stage = Stage(
                    number=spec.number,
                    session=session,
                    app=lab.server.app,
                    url=lab.server.url,
                    prompts=prompts,
                    transcript=transcript,
                    message_limit=spec.run.message_limit,
                    hear=totals.hear,
                    enter=lambda phase: events.publish(Waiting(phase)),
                    say=lab.say,
                    process_facts=totals.aside,
                )
                stop = await _play(lab.player, stage, spec.run.time_limit_s, totals)
            events.publish(Waiting(Phase.ENGINE))
            evidence = await session.evidence(stop)
            await _refuse_if_engine_was_lost(evidence, lab, restarts)
        result = _judged(task, evidence, totals.failure)
        if spec.run.ask_after and not totals.failure:
            result = replace(result, interview=await _interview(spec, lab, transcript, totals))
    except LabError as caught:
        result = await _failed(failures.cause(caught), session, watchdog, lab, restarts)
    except Exception as bug:  # in the lab: it ends this trial, not the run, and says nothing about the agent
        _log.exception("trial %s of run %s ended by a bug in the lab", spec.number, spec.run.run_id)
        result = _Result(_error_verdict(_with_class(bug)), failure=bug)
    finally:
        events.publish(Ended())
    return TrialRecord(
        run_id=spec.run.run_id,
        number=spec.number,
        started_at=started_at,
        seconds=round(time.monotonic() - began, 3),
        verdict=result.verdict,
        evidence=result.evidence,
        transcript=tuple(transcript),
        prompts=prompts,
        prompts_sha256=prompts.sha256,
        options=spec.options,
        agent=lab.player.facts(spec.number).with_facts(totals.aside),
        simulated=lab.player.simulated,
        tokens=totals.all_usage.total if totals.all_usage else 0,
        usage=totals.all_usage,
        cost=totals.cost,
        retries=totals.retries,
        models=tuple(totals.models),
        error=result.error,
        error_kind=type(result.failure).__name__ if result.failure else None,
        traceback=result.traceback,
        lab_failed=result.lab_failed,
        afterwards=result.interview.entries,
        afterwards_error=result.interview.error,
    )


def _judged(task: Task, evidence: Evidence, failure: ModelError | None) -> _Result:
    """Judge a trial by its task's rules, and return the trial's result.

    ``failure`` is the error of the model, or None if the model didn't fail. If the task's judge fails, the outcome is
    ``error``. The evidence is kept in the result, so that the trial can be judged again.
    """
    try:
        return _Result(task.verdict_on(evidence), evidence, failure)
    except JudgeError as judge_failure:
        return _Result(_error_verdict(str(judge_failure)), evidence, failure or judge_failure)


async def _refuse_if_engine_was_lost(evidence: Evidence, lab: Lab, restarts: int) -> None:
    """Raise EngineLostError if the engine restarted during the trial or may have stopped the container.

    ``restarts`` is the engine's restart count at the start of the trial.
    """
    stopped = evidence.machine.stopped_outside
    if lab.engine.restart_count() != restarts or (stopped and await lab.engine.lost_since(restarts, stopping=True)):
        raise EngineLostError("The engine was restarted while the trial ran.")


async def _failed(failure: LabError, session: Session, watchdog: Watchdog, lab: Lab, restarts: int) -> _Result:
    """Return the result of a trial that ended with ``failure``.

    The result states whether the trial may be repeated. ``restarts`` is the engine's restart count at the start of the
    trial.
    """
    ours = isinstance(failure, FAULTS) and not (isinstance(failure, StalledError) and watchdog.phase is Phase.MODEL)
    # After its first call an agent could have brought it about, unless the engine itself was away or the lab's own
    # process ran out of files.
    beyond_agent = isinstance(failure, EngineLostError | TooFewFilesError) or not session.status().calls
    lab_failed = ours and (beyond_agent or await lab.engine.lost_since(restarts))
    return _Result(_error_verdict(str(failure)), failure=failure, lab_failed=lab_failed)


def _error_verdict(because: str) -> Verdict:
    return Verdict(outcome=Outcome.ERROR, tampering=(), because=because)


def _with_class(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


async def _play(player: Player, stage: Stage, limit_s: float | None, totals: TurnTotals) -> StopReason:
    """Run the agent until the trial ends, and return the reason for the end.

    The trial ends when the agent stops, the container goes down, the model fails, or the limit on messages or time is
    reached.
    """
    try:
        async with asyncio.timeout(limit_s) as clock:
            return await player.play(stage)
    except ModelError as failure:
        return totals.fail(failure)
    except TimeoutError:
        if not clock.expired():
            raise
        if player.outside and stage.session.status().calls:
            return StopReason.TIME_LIMIT  # a program that hangs can't be told from one that refuses to continue
        return totals.fail(TrialTimeError(f"The trial took longer than the {limit_s:g} s of --time-limit."))


@dataclass
class _CallFailures:
    """Stores the exception of the latest tool call that failed because of the lab."""

    latest: Exception | None = None

    def hear(self, event: Event) -> None:
        if isinstance(event.what, CallFailed):
            self.latest = event.what.failure

    def cause(self, caught: LabError) -> LabError:
        """Return the LabError behind the latest failed tool call, or ``caught`` if there was none.

        ``caught`` is the error that ended the trial. If the tool server refused a call, ``caught`` doesn't contain the
        cause.
        """
        return self.latest if isinstance(self.latest, LabError) else caught


async def _interview(spec: TrialSpec, lab: Lab, transcript: list[Entry], totals: TurnTotals) -> Interview:
    """Interview the agent after the container has been removed.

    If the model fails during the interview, the returned interview contains the error. If the player can't be
    interviewed, the returned interview is empty.
    """
    conversation = lab.player.afterwards(spec.number)
    return await interview(conversation, transcript, totals.hear) if conversation else NO_INTERVIEW
