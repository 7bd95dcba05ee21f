"""The queue of a stored run, which claims trials for this process, stores their records and reports progress."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from harness.agents.providers.model import Budget
from harness.errors import LastingModelError, RunExistsError, StoreError, UsageError
from harness.process.identity import this_process
from harness.runs.same_run import must_be_same
from harness.sandbox.versions import Versions
from harness.store.records import RunSpec, TrialRecord
from harness.store.store import Claimed, Store
from harness.terminal.progress import RunProgress
from harness.terminal.text import print_note

_log = logging.getLogger(__name__)

_LASTING: tuple[type[LastingModelError], ...] = (LastingModelError, *LastingModelError.__subclasses__())
LASTING = {kind.__name__ for kind in _LASTING}
MAX_FAILURES_IN_A_ROW = 5  # trials that the lab itself could not run


@dataclass
class StopPolicy:
    """Decides when a run ends early: if its budget is used up, or after an error that would also end further trials.

    ``reason`` is a sentence that says why no further trial may begin, or None while trials may begin. ``failed`` is
    True if the reason is an error.
    """

    budget: Budget
    reason: str | None = None
    failed: bool = False
    _in_a_row: int = 0

    def note(self, record: TrialRecord) -> None:
        """Update the policy and its budget after a finished trial."""
        self.budget.finished += 1
        self._in_a_row = self._in_a_row + 1 if record.lab_failed else 0
        if (record.error_kind in LASTING or self._in_a_row >= MAX_FAILURES_IN_A_ROW) and not self.failed:
            self.reason, self.failed = record.error, True

    def may_begin(self, running: int) -> bool:
        """Whether a further trial may begin while ``running`` other trials are running."""
        if self.reason is None and (why := self.budget.too_little_for(running)):
            self.reason = f"{why[0].upper()}{why[1:]}."
        return self.reason is None


@dataclass
class StoredQueue:
    """The queue of a stored run's missing trials, on which several processes may work at the same time.

    A trial that another running process has claimed is skipped.
    """

    run: RunSpec
    store: Store
    progress: RunProgress
    stop_policy: StopPolicy
    owner: str = field(default_factory=this_process)
    _left: deque[int] = field(init=False)

    def __post_init__(self) -> None:
        self._left = deque(self.store.missing(self.run.run_id, self.run.n))
        self.progress.finished_before(self.run.n - len(self._left))

    @property
    def elsewhere(self) -> int:
        """The number of trials still in the queue.

        Once ``next`` has found no trial to claim, these are the trials that other processes have claimed.
        """
        return len(self._left)

    def next(self, running: int) -> int | None:
        """Claim a trial and return its number, or return None if this process may begin no further trial.

        ``running`` is the number of trials that are running now.
        """
        if not self.stop_policy.may_begin(running):
            return None
        for _ in range(len(self._left)):
            number = self._left.popleft()
            match self.store.claim(self.run.run_id, number, self.owner):
                case Claimed.OURS:
                    self.progress.started(number)
                    return number
                case Claimed.HELD:
                    self._left.append(number)
                case Claimed.DONE:
                    self.progress.finished_before(1)
        return None

    def tries(self, number: int) -> int:
        """Return the number of stored failed tries of this trial."""
        return self.store.tries(self.run.run_id, number)

    def failed(self, record: TrialRecord) -> None:
        """Store and report a failed try of a trial, which will be tried again."""
        self.store.add_failed_try(record)
        _log.warning("trial %d of run %s: try %d failed: %s", record.number, record.run_id, record.tries, record.error)
        self.progress.failed(record)

    def finished(self, record: TrialRecord) -> None:
        """Save the record of a finished trial to disk, and report it."""
        self.store.add_trial(record)
        _log.info("trial %d of run %s: %s", record.number, record.run_id, record.verdict.outcome)
        self.stop_policy.note(record)
        self.progress.finished(record)

    def close(self) -> None:
        """Give up this process's claims on unfinished trials.

        If the disk is full, the claims stay until this process ends.
        """
        with contextlib.suppress(StoreError):
            self.store.give_up(self.run.run_id, self.owner)


def begin_run(
    store: Store, fresh: RunSpec, image: dict[str, Any], versions: Versions, request: dict[str, Any] | None
) -> RunSpec:
    """Store ``fresh`` unless a run with its id is already stored, and return the stored run.

    ``fresh`` is the run as requested now, with the tag of the built image. Raises UsageError if the stored run differs
    from ``fresh`` in a way that could change an outcome.
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
    """Set the budget's tokens, cost and number of finished trials to what the stored run has used so far."""
    budget.tokens, budget.cost = store.spent(run.run_id)
    budget.finished = run.n - len(store.missing(run.run_id, run.n))
