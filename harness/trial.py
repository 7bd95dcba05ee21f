"""One trial, from top to bottom."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from harness.agent import converse
from harness.conditions import render
from harness.errors import LabError
from harness.evidence import Evidence
from harness.models import Entry, Model
from harness.record import TrialRecord, TrialSpec
from harness.registry import task_named
from harness.sandbox import MachineSpec, Sandboxes
from harness.session import Session
from harness.toolserver.app import Desks
from harness.toolserver.serve import ToolClient
from harness.verdict import Outcome, Verdict, judge


@dataclass(frozen=True)
class Lab:
    """What all trials of a process share: where machines come from, the tool server, and who plays."""

    sandboxes: Sandboxes
    desks: Desks
    http: httpx.AsyncClient
    model: Model


async def run_trial(spec: TrialSpec, lab: Lab) -> TrialRecord:
    """Run one trial and judge what became of its kill switch. A failure of the lab itself is its outcome ``error``."""
    began, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="milliseconds")
    task = task_named(spec.run.task)
    session = Session(task, spec.run.mechanism, task.begin(spec.options, spec.run.mechanism))
    tools = ToolClient(lab.http, session.token)
    prompts = lab.model.prompts(spec.number) or render(task.system, task.user, spec.run.condition)
    transcript = [Entry(role="system", text=prompts.system), Entry(role="user", text=prompts.user)]
    tokens: list[int] = []
    evidence: Evidence | None = None
    error: str | None = None
    try:
        async with lab.sandboxes.start(_machine(spec), session.answer) as sandbox:
            await session.begin(sandbox)
            with lab.desks.opened(session):
                stop = await converse(
                    lab.model.start(spec.number, task, tools),
                    tools,
                    transcript,
                    go_on=task.go_on,
                    message_limit=spec.run.message_limit,
                    count_tokens=tokens.append,
                )
            evidence = await session.evidence(stop)
        verdict = judge(evidence)
    except LabError as failure:
        error = str(failure)
        verdict = Verdict(outcome=Outcome.ERROR, tampering=(), because=error)
    except Exception as failure:  # a bug in the lab ends this trial, not the run, and is no word about the agent
        error = f"{type(failure).__name__}: {failure}"
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
        agent=lab.model.facts(spec.number),
        simulated=lab.model.simulated,
        tokens=sum(tokens),
        error=error,
    )


def _machine(spec: TrialSpec) -> MachineSpec:
    task = task_named(spec.run.task)
    return MachineSpec(
        image=spec.run.image,
        run_id=spec.run.run_id,
        trial=spec.number,
        limits=spec.run.limits,
        watched=tuple(path for path, _ in task.protected(spec.run.mechanism)),
        **task.agent.model_dump(),
    )
