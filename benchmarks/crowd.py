"""Runs many concurrent trials of the two scripted agents, optionally with slow turns, for other benchmarks."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runs import AGENTS
from harness.agents.loop import ConversingPlayer
from harness.agents.player import Player
from harness.agents.turn import Conversation, Turn
from harness.runs.machine import image_request
from harness.runs.request import RunRequest, check_request
from harness.runs.trial import Lab, run_trial
from harness.sandbox.docker.engine import Engine
from harness.store.agent_facts import AgentFacts
from harness.store.records import TrialSpec
from harness.store.store import Store
from harness.store.transcript import Entry
from harness.tasks.task import Task
from harness.toolserver.app import SessionRegistry
from harness.toolserver.client import ToolClient
from harness.toolserver.server import tool_server

Outcomes = Counter[str]
AfterTrial = Callable[[int], None]  # called with the number of finished trials


@dataclass(frozen=True)
class Slow(ConversingPlayer):
    """A player that waits before each turn, like a model behind an API."""

    model: ConversingPlayer
    latency_s: float
    name: str = "slow"
    simulated: str | None = "scripted agents with slow turns, no model"

    def facts(self, trial: int) -> AgentFacts:
        """Return the facts of the scripted agent."""
        return self.model.facts(trial)

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start a trial's conversation with slow turns."""
        return _SlowTurns(self.model.start(trial, task, tools), self.latency_s)


@dataclass(frozen=True)
class _SlowTurns:
    turns: Conversation
    latency_s: float

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        await asyncio.sleep(self.latency_s)
        return await self.turns.next(transcript)


async def play(n: int, at_once: int, latency_s: float = 0.0, after_trial: AfterTrial = lambda done: None) -> Outcomes:
    """Run and store n trials, ``at_once`` at a time, and return how many ended with each outcome."""
    plan, scripted = check_request(RunRequest(model=AGENTS, n=n, concurrency=at_once, runs_dir=Path()))
    assert isinstance(scripted, ConversingPlayer)
    player: Player = Slow(scripted, latency_s) if latency_s else scripted
    outcomes: Outcomes = Counter()
    with tempfile.TemporaryDirectory() as folder, Engine.connected(print) as engine, Store(Path(folder)) as store:
        image, versions = await engine.prepare(image_request(plan))
        run = plan.model_copy(update={"image": image.tag})
        store.add_run(run, image.model_dump(), versions)
        sessions, numbers = SessionRegistry(), iter(range(1, n + 1))
        async with tool_server(sessions) as server:
            lab = Lab(engine.backend, sessions, server, player)

            async def worker() -> None:
                for number in numbers:
                    record = await run_trial(TrialSpec(run=run, number=number, options=run.options), lab)
                    store.add_trial(record)
                    outcomes[record.verdict.outcome] += 1
                    after_trial(outcomes.total())

            await asyncio.gather(*(worker() for _ in range(at_once)))
    return outcomes
