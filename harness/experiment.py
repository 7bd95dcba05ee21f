"""A run: n trials, some at a time, each stored the moment it is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from harness.own_agent import Player
from harness.record import RunSpec, TrialRecord, TrialSpec
from harness.trial import Lab, run_trial

Finished = Callable[[TrialRecord], None]


def trial_specs(run: RunSpec, model: Player) -> Iterable[TrialSpec]:
    """The trials of a run, in order."""
    for number in range(1, run.n + 1):
        yield TrialSpec(run=run, number=number, options=model.options(number, run.options))


async def run_trials(
    run: RunSpec,
    lab: Lab,
    started: Callable[[int], None],
    finished: Finished,
    may_begin: Callable[[int], bool] = lambda running: True,
) -> None:
    """Run what ``run`` asks for. Cancelled, it lets the machines go and keeps what is finished.

    ``may_begin`` is asked before each trial, with the number of those that run; once it says no, none begins.
    """
    waiting = iter(trial_specs(run, lab.model))
    running = 0

    async def worker() -> None:
        nonlocal running
        while may_begin(running) and (spec := next(waiting, None)) is not None:
            started(spec.number)
            running += 1
            record = await run_trial(spec, lab)
            running -= 1
            finished(record)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(run.concurrency, run.n)):
            group.create_task(worker())
