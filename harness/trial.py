"""One trial, from top to bottom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from harness.agent import converse
from harness.conditions import Prompts, render
from harness.errors import LabError, ModelError, TrialTimeError
from harness.evidence import Evidence, StopReason
from harness.models import Entry, Turn, Usage
from harness.own_agent import Endpoint, Minutes, OwnAgent, Player
from harness.record import TrialRecord, TrialSpec
from harness.registry import task_for
from harness.sandbox import MachineSpec, Sandboxes
from harness.session import Session
from harness.toolserver.app import Desks
from harness.toolserver.client import ToolClient
from harness.toolserver.serve import ToolServer
from harness.verdict import Outcome, Verdict, judge


@dataclass(frozen=True)
class Lab:
    """What all trials of a process share: where machines come from, the tool server, and who plays."""

    sandboxes: Sandboxes
    desks: Desks
    server: ToolServer
    model: Player
    say: Callable[[str], None] = lambda line: None


@dataclass
class Account:
    """What a trial's turns came to, as far as it is known, and how its model failed.

    ``aside`` is what else is worth keeping of an agent of the user's own.
    """

    turns: int = 0
    retries: int = 0
    usage: list[Usage] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    failure: ModelError | None = None
    aside: dict[str, Any] = field(default_factory=dict)

    def hear(self, turn: Turn) -> None:
        """Count one turn."""
        self.turns += 1
        self.retries += turn.retries
        self.usage += [turn.usage] if turn.usage else []
        self.costs += [turn.cost] if turn.cost is not None else []
        self.models += [turn.model] if turn.model and turn.model not in self.models else []

    def fail(self, failure: ModelError) -> StopReason:
        """Keep the model's failure; what was seen until then is still judged."""
        self.failure = failure
        self.retries += failure.retries
        return StopReason.MODEL_FAILED

    @property
    def all_usage(self) -> Usage | None:
        """The sum, or None where a turn's tokens are unknown or there was none."""
        return sum(self.usage, Usage()) if self.turns and len(self.usage) == self.turns else None

    @property
    def cost(self) -> float | None:
        """The sum, or None where a turn's cost is unknown or there was none."""
        return sum(self.costs) if self.turns and len(self.costs) == self.turns else None


async def run_trial(spec: TrialSpec, lab: Lab) -> TrialRecord:
    """Run one trial and judge what became of its kill switch. A failure of the lab itself is its outcome ``error``."""
    began, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="milliseconds")
    task = task_for(spec.run.task, spec.run.agent)
    session = Session(task, spec.run.mechanism, task.begin(spec.options, spec.run.mechanism))
    prompts = lab.model.prompts(spec.number) or render(task.system, task.user, spec.run.condition)
    transcript = [Entry(role="system", text=prompts.system), Entry(role="user", text=prompts.user)]
    account = Account()
    evidence: Evidence | None = None
    error: str | None = None
    error_kind: str | None = None
    try:
        async with lab.sandboxes.start(_machine(spec), session.answer) as sandbox:
            await session.begin(sandbox)
            with lab.desks.opened(session):
                stop = await _play(spec, lab, session, prompts=prompts, transcript=transcript, account=account)
            evidence = await session.evidence(stop)
        verdict = judge(evidence)
        if account.failure:
            error, error_kind = str(account.failure), type(account.failure).__name__
    except LabError as failure:
        error, error_kind = str(failure), type(failure).__name__
        verdict = Verdict(outcome=Outcome.ERROR, tampering=(), because=error)
    except Exception as failure:  # a bug in the lab ends this trial, not the run, and is no word about the agent
        error, error_kind = f"{type(failure).__name__}: {failure}", type(failure).__name__
        verdict = Verdict(outcome=Outcome.ERROR, tampering=(), because=error)
    return TrialRecord(
        run_id=spec.run.run_id,
        number=spec.number,
        started_at=started_at,
        seconds=round(time.monotonic() - began, 3),
        verdict=verdict,
        evidence=evidence,
        transcript=tuple(transcript),
        prompts=prompts,
        prompts_sha256=prompts.sha256,
        options=spec.options,
        agent={**lab.model.facts(spec.number), **account.aside},
        simulated=lab.model.simulated,
        tokens=account.all_usage.total if account.all_usage else 0,
        usage=account.all_usage,
        cost=account.cost,
        retries=account.retries,
        models=tuple(account.models),
        error=error,
        error_kind=error_kind,
    )


async def _play(
    spec: TrialSpec, lab: Lab, session: Session, *, prompts: Prompts, transcript: list[Entry], account: Account
) -> StopReason:
    """Let model and tools take turns until one stops, the model fails or the time is up."""
    task, limit_s = session.task, spec.run.time_limit_s
    try:
        async with asyncio.timeout(limit_s) as clock:
            if isinstance(lab.model, OwnAgent):
                endpoint = Endpoint.of(spec.number, session, str(lab.server.url), prompts)
                minutes = Minutes(session, transcript, spec.run.message_limit)
                return await lab.model.play(endpoint, minutes, account.aside, lab.say)
            tools = ToolClient(lab.server.app, session.token)
            return await converse(
                lab.model.start(spec.number, task, tools),
                tools,
                transcript,
                go_on=task.go_on,
                message_limit=spec.run.message_limit,
                hear=account.hear,
            )
    except ModelError as failure:
        return account.fail(failure)
    except TimeoutError:
        if not clock.expired():
            raise
        if isinstance(lab.model, OwnAgent) and session.status().calls:
            return StopReason.TIME_LIMIT  # a program that hangs can't be told from one that won't go on
        return account.fail(TrialTimeError(f"The trial took longer than the {limit_s:g} s of --time-limit."))


def _machine(spec: TrialSpec) -> MachineSpec:
    task = task_for(spec.run.task, spec.run.agent)
    return MachineSpec(
        image=spec.run.image,
        run_id=spec.run.run_id,
        trial=spec.number,
        limits=spec.run.limits,
        watched=tuple(path for path, _ in task.protected(spec.run.mechanism)),
        **task.agent.model_dump(),
    )
