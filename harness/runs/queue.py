"""The queue of a stored run's trials. It reserves trials for this process, stores records and reports progress."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from harness.agents.budget import Budget
from harness.errors import LastingModelError, RunExistsError, StoreError, UsageError
from harness.process.identity import this_process
from harness.runs.same_run import must_be_same
from harness.sandbox.versions import Versions
from harness.session.events import Began, Event, EventStream, Finished, FinishedElsewhere, Happening, Retried
from harness.store.records import RunSpec, TrialRecord
from harness.store.store import Claimed, Store
from harness.terminal.text import print_note

_log = logging.getLogger(__name__)

_LASTING: tuple[type[LastingModelError], ...] = (LastingModelError, *LastingModelError.__subclasses__())
LASTING = {kind.__name__ for kind in _LASTING}
MAX_FAILURES_IN_A_ROW = 5  # trials that the lab itself could not run


@dataclass
class StopPolicy:
    """Decides when a run stops early.

    A run stops early if its budget is used up, if an error would recur in every further trial, or if several trials in
    a row fail because of the lab. ``reason`` is a sentence that explains why no further trial may begin, or None while
    trials may begin. ``failed`` is True if the reason is an error, and False otherwise.
    """

    budget: Budget
    reason: str | None = None
    failed: bool = False
    _in_a_row: int = 0

    def note(self, record: TrialRecord) -> None:
        """Update the stop policy and its budget with the record of a finished trial."""
        self.budget.finished += 1
        self._in_a_row = self._in_a_row + 1 if record.lab_failed else 0
        if (record.error_kind in LASTING or self._in_a_row >= MAX_FAILURES_IN_A_ROW) and not self.failed:
            self.reason, self.failed = record.error, True

    def may_begin(self, running: int) -> bool:
        """Return whether another trial may begin while ``running`` trials are running."""
        if self.reason is None and (why := self.budget.too_little_for(running)):
            self.reason = f"{why[0].upper()}{why[1:]}."
        return self.reason is None


@dataclass
class StoredQueue:
    """A trial queue for the unfinished trials of a stored run.

    Several processes may work on the same run. A process claims a trial, i.e. reserves it for itself, before running
    it. Trials that another running process has claimed are skipped.
    """

    run: RunSpec
    store: Store
    events: EventStream
    stop_policy: StopPolicy
    owner: str = field(default_factory=this_process)
    _left: deque[int] = field(init=False)

    def __post_init__(self) -> None:
        self._left = deque(self.store.missing(self.run.run_id, self.run.n))
        self._publish(0, FinishedElsewhere(self.run.n - len(self._left)))

    @property
    def elsewhere(self) -> int:
        """The number of trials that remain in this queue.

        After ``next`` has found no free trial, this is the number of trials that other processes are running.
        """
        return len(self._left)

    def next(self, running: int) -> int | None:
        """Claim a trial for this process and return the trial's number.

        Return None if no trial is free or if no further trial may begin. ``running`` is the number of trials that this
        process is running.
        """
        if not self.stop_policy.may_begin(running):
            return None
        for _ in range(len(self._left)):
            number = self._left.popleft()
            match self.store.claim(self.run.run_id, number, self.owner):
                case Claimed.OURS:
                    self._publish(number, Began())
                    return number
                case Claimed.HELD:
                    self._left.append(number)
                case Claimed.DONE:
                    self._publish(number, FinishedElsewhere(1))
        return None

    def tries(self, number: int) -> int:
        """Return how many failed tries of trial ``number`` are stored."""
        return self.store.tries(self.run.run_id, number)

    def failed(self, record: TrialRecord) -> None:
        """Store the record of a failed try and report the failure. The trial will be tried again."""
        self.store.add_failed_try(record)
        _log.warning("trial %d of run %s: try %d failed: %s", record.number, record.run_id, record.tries, record.error)
        self._publish(record.number, Retried(record))

    def finished(self, record: TrialRecord) -> None:
        """Store the record of a finished trial, then update the stop policy and publish the event."""
        self.store.add_trial(record)
        _log.info("trial %d of run %s: %s", record.number, record.run_id, record.verdict.outcome)
        self.stop_policy.note(record)
        self._publish(record.number, Finished(record))

    def _publish(self, trial: int, what: Happening) -> None:
        self.events.publish(Event(trial, 0.0, what))

    def close(self) -> None:
        """Free the unfinished trials that this process has claimed, so that other processes can run them.

        If the store can't be written, the trials become free when this process ends.
        """
        with contextlib.suppress(StoreError):
            self.store.give_up(self.run.run_id, self.owner)


def begin_run(
    store: Store, fresh: RunSpec, image: dict[str, Any], versions: Versions, request: dict[str, Any] | None
) -> RunSpec:
    """Return the stored run that has the id of ``fresh``. If there is none, store ``fresh`` as a new run first.

    ``fresh`` is the requested run, with the tag of the built image. The returned run has the concurrency of ``fresh``.
    Raises UsageError if the stored run with the same id differs in a setting that could change an outcome.
    """
    if (known := store.find(fresh.run_id)) is None:
        with contextlib.suppress(RunExistsError):  # another process may have stored it first
            store.add_run(fresh, image, versions, request)
        known = store.run(fresh.run_id)
    must_be_same(known, fresh.model_copy(update={"image": image["name"]}))
    if known.spec.image != fresh.image:
        raise UsageError(
            f"Run '{fresh.run_id}' was begun on image {known.spec.image}, and what that was built from has changed: "
            f"its image is {fresh.image} now. Choose another --run-id."
        )
    if known.versions != versions:
        print_note(f"Run '{fresh.run_id}' was begun with {known.versions}, and goes on with {versions}.")
    return known.spec.model_copy(update={"concurrency": fresh.concurrency})


def charge_earlier_spending(budget: Budget, store: Store, run: RunSpec) -> None:
    """Initialize the budget with the tokens, cost and number of finished trials of the stored run."""
    budget.tokens, budget.cost = store.spent(run.run_id)
    budget.finished = run.n - len(store.missing(run.run_id, run.n))
