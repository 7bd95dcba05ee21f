"""Runs the trials of a run, several at a time, and repeats those that the lab or its engine spoilt.

What the lab or its engine did wrong is begun again, a few times, and kept; what an agent did never is. An error is the
lab's only where the agent can't have brought it about: it came before its first call, or the engine itself was away
or was restarted. All else stays the trial's outcome, however much it looks like the engine's fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from harness.agents.external import Player
from harness.errors import LabError
from harness.runs.trial import Lab, run_trial
from harness.store.records import RunSpec, TrialRecord, TrialSpec

MAX_TRIES = 4  # of one trial, over all processes that try it


class TrialQueue(Protocol):
    """Hands out the trials of a run and receives their records."""

    def next(self, running: int) -> int | None:
        """Return the number of the next trial, or None where no other may begin while ``running`` are under way."""

    def tries(self, number: int) -> int:
        """The number of tries of this trial that failed in earlier processes."""

    def failed(self, record: TrialRecord) -> None:
        """Receive a try that failed through the lab's fault and will be repeated."""

    def finished(self, record: TrialRecord) -> None:
        """Receive the record of a trial that is over."""


def trial_specs(run: RunSpec, model: Player) -> Iterable[TrialSpec]:
    """Yield the specs of a run's trials in order."""
    return (trial_spec(run, number, model) for number in range(1, run.n + 1))


def trial_spec(run: RunSpec, number: int, model: Player) -> TrialSpec:
    """Return the spec of one trial, with the options that the player sets for it."""
    return TrialSpec(run=run, number=number, options=model.options(number, run.options))


async def run_trials(run: RunSpec, lab: Lab, work: TrialQueue) -> None:
    """Run trials from the queue until it hands out no more. When cancelled, finished trials stay stored.

    Raises LabError where no further trial can be run: the store can't be written, the engine doesn't come back.
    """
    running = 0

    async def worker() -> None:
        nonlocal running
        while (number := work.next(running)) is not None:
            running += 1
            try:
                record = await run_with_retries(trial_spec(run, number, lab.model), lab, work)
            finally:
                running -= 1
            work.finished(record)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(run.concurrency, run.n)):
                group.create_task(worker())
    except* LabError as failures:
        raise first_failure(failures) from failures


async def run_with_retries(spec: TrialSpec, lab: Lab, work: TrialQueue) -> TrialRecord:
    """Run a trial and repeat it after failures of the lab, at most MAX_TRIES times in all."""
    tries = work.tries(spec.number)
    while True:
        tries += 1
        record = (await run_trial(spec, lab)).model_copy(update={"tries": tries})
        if not record.lab_failed or tries >= MAX_TRIES:
            return record
        work.failed(record)
        await asyncio.sleep(lab.first_wait_s * 2.0 ** (tries - 1))  # twice as long each time
        await lab.engine.recovered()


def first_failure(failures: BaseExceptionGroup[LabError]) -> LabError:
    """Return the first failure of a group: several are most often the same one."""
    for failure in failures.exceptions:
        return first_failure(failure) if isinstance(failure, BaseExceptionGroup) else failure
    raise AssertionError("a group holds at least one failure")
