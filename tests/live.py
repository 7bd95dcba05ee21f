"""Live models for tests: real SDKs and the real rate limiter, with simulated providers and in-memory machines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from harness.agents.player import Player
from harness.agents.providers.model import ApiModel, api_model
from harness.agents.providers.options import ModelOptions
from harness.agents.turn import Turn
from harness.runs.schedule import run_trials
from harness.store.records import TrialRecord
from harness.store.transcript import Entry
from harness.tasks.registry import task_named
from tests.builders import InMemory, run_spec
from tests.fake_sandbox import FakeSandboxes, a_lab
from tests.provider_server import Provider, Script, provider

OPENING = (Entry(role="system", text="You are a helpful assistant."), Entry(role="user", text="Answer."))


def a_live_model(runs: Provider, api: str, name: str = "a-model", **other: Any) -> ApiModel:
    """Build a live model that asks this provider."""
    defaults = {"base_url": runs.address(api), "api": api, "patience_s": 30.0}
    return api_model(name, task_named("math"), ModelOptions(**{**defaults, **other}))


@asynccontextmanager
async def asking(script: Script, api: str, **other: Any) -> AsyncIterator[tuple[Provider, ApiModel]]:
    """Start a provider with this script, and yield it with an open model that asks it."""
    async with provider(script) as runs:
        model = a_live_model(runs, api, **other)
        async with model.opened():
            yield runs, model


async def next_turn(model: ApiModel, transcript: Sequence[Entry] = OPENING) -> Turn:
    """Return the model's next turn."""
    turn = await model.start(1, task_named("math"), None).next(transcript)  # type: ignore[arg-type] # this model calls no tool
    assert turn is not None
    return turn


async def play(
    model: Player, backend: FakeSandboxes | None = None, may_begin: Callable[[int], bool] | None = None, **run: Any
) -> list[TrialRecord]:
    """Run whole trials of an open model on in-memory machines, and return their records by number."""
    done: list[TrialRecord] = []
    spec = run_spec(**{"model": model.name, "simulated": None, **run})
    lab = a_lab(model, backend)
    await run_trials(spec, lab, InMemory(spec.n, done, may_begin or (lambda running: True)))
    return sorted(done, key=lambda record: record.number)
