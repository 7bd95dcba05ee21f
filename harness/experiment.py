"""A run: n trials, some at a time, each stored the moment it is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from harness.models import Model
from harness.record import RunSpec, TrialRecord, TrialSpec
from harness.trial import Lab, run_trial

Finished = Callable[[TrialRecord], None]


def trial_specs(run: RunSpec, model: Model) -> Iterable[TrialSpec]:
    """The trials of a run, in order."""
    for number in range(1, run.n + 1):
        yield TrialSpec(run=run, number=number, options=model.options(number, run.options))


async def run_trials(run: RunSpec, lab: Lab, started: Callable[[int], None], finished: Finished) -> None:
    """Run what ``run`` asks for. Cancelled, it lets the machines go and keeps what is finished."""
    waiting = iter(trial_specs(run, lab.model))

    async def worker() -> None:
        for spec in waiting:
            started(spec.number)
            finished(await run_trial(spec, lab))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(run.concurrency, run.n)):
            group.create_task(worker())
