"""Runs the trials of a run concurrently, and repeats trials that fail because of the lab or its engine.

A trial is repeated only if its agent can't have caused the failure. This is the case if the agent had made no tool
call, if the engine restarted or didn't respond, or if the lab's process ran out of open files. After any other failure,
the trial counts as finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from harness.agents.player import Player
from harness.errors import LabError
from harness.runs.trial import Lab, run_trial
from harness.store.records import RunSpec, TrialRecord, TrialSpec

MAX_TRIES = 4  # of one trial, over all processes that try it


class TrialQueue(Protocol):
    """The interface of a queue that returns the numbers of trials to run and receives the records of these trials."""

    def next(self, running: int) -> int | None:
        """Return the number of the next trial, or None if no further trial may begin.

        ``running`` is the number of trials that are running now.
        """

    def tries(self, number: int) -> int:
        """Return how many tries of trial ``number`` failed in earlier processes."""

    def failed(self, record: TrialRecord) -> None:
        """Receive the record of a try that failed because of the lab. The trial will be tried again."""

    def finished(self, record: TrialRecord) -> None:
        """Receive the record of a finished trial."""


def trial_specs(run: RunSpec, player: Player) -> Iterable[TrialSpec]:
    """Return the specifications of all trials of a run, in the order of the trial numbers."""
    return (trial_spec(run, number, player) for number in range(1, run.n + 1))


def trial_spec(run: RunSpec, number: int, player: Player) -> TrialSpec:
    """Return the specification of trial ``number``, including the task options that ``player`` sets for this trial."""
    return TrialSpec(run=run, number=number, options=player.options(number, run.options))


async def run_trials(run: RunSpec, lab: Lab, work: TrialQueue) -> None:
    """Run trials concurrently until the queue ``work`` has no more trials.

    Raises LabError if no further trial can be run, for example because the store can't be written.
    """
    running = 0

    async def worker() -> None:
        nonlocal running
        while (number := work.next(running)) is not None:
            running += 1
            try:
                record = await run_with_retries(trial_spec(run, number, lab.player), lab, work)
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
    """Run a trial, repeat it after failures of the lab, and return the record of the last try.

    A trial is tried at most MAX_TRIES times, including failed tries in earlier processes. Before each repetition, the
    record of the failed try is passed to the queue ``work``.
    """
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
    """Return the first LabError in an exception group, which may contain nested groups."""
    for failure in failures.exceptions:
        return first_failure(failure) if isinstance(failure, BaseExceptionGroup) else failure
    raise AssertionError("a group holds at least one failure")
