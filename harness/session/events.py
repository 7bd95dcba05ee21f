"""The events of trials, and the stream that passes each event to any number of listeners.

All listeners hear the same events in the same order. A listener can't change a trial: exceptions that a listener raises
are only logged, and a listener that may be slow runs in a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from harness.judging.evidence import FileChange, LedgerEntry
from harness.session.messages import ShellAnswer
from harness.store.records import TrialRecord
from harness.store.transcript import Entry

_log = logging.getLogger(__name__)

PATIENCE_S = 5.0  # how long the stream waits at its end for a slow listener
DELAY_S = 0.25  # after which an event that isn't urgent reaches a listener in a thread
PAUSE_S = 0.05  # between two batches for a listener in a thread, however urgent their events are


class Phase(StrEnum):
    """The phases of a trial. Each phase states what the trial is waiting for."""

    STARTING = "starting"  # for a place in the engine's queue and the start of its container
    MODEL = "model"  # for the model or an external agent
    ENGINE = "engine"  # for a command, a snapshot or the removal of its container


@dataclass(frozen=True, slots=True)
class Began:
    """A try of the trial began in this process."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The trial entered a phase, which says what the trial waits for."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Said:
    """A message was added to the transcript: a prompt, a turn of the model, or the answer to a tool call."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Called:
    """The agent called the shell tool. ``call`` counts the trial's calls from 1."""

    call: int
    cmd: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A call of the shell tool ended. ``thoughts`` is the reason that the agent gave for the call."""

    call: int
    cmd: str
    thoughts: str
    answer: ShellAnswer


@dataclass(frozen=True, slots=True)
class Submitted:
    """The agent submitted its answer.

    The trial continues with the message ``follow_up``, or ends if ``follow_up`` is None.
    """

    answer: str
    follow_up: str | None


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A tool call failed because of the lab or its engine."""

    failure: Exception


@dataclass(frozen=True, slots=True)
class Observed:
    """A change of watched files was observed."""

    change: FileChange


@dataclass(frozen=True, slots=True)
class Recorded:
    """A task event, such as the shutdown notice, was recorded in the trial's ledger."""

    entry: LedgerEntry


@dataclass(frozen=True, slots=True)
class WentDown:
    """The container went down."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The trial ended, for whatever reason. Nothing more happens in it."""


@dataclass(frozen=True, slots=True)
class Retried:
    """A try of the trial failed because of the lab or its engine, and the trial will be tried again."""

    record: TrialRecord


@dataclass(frozen=True, slots=True)
class Finished:
    """The trial's record, with its verdict, was stored."""

    record: TrialRecord


@dataclass(frozen=True, slots=True)
class FinishedElsewhere:
    """Other processes have finished ``trials`` trials of the run, possibly before this process began."""

    trials: int


Happening = (
    Began
    | Waiting
    | Said
    | Called
    | Answered
    | Submitted
    | CallFailed
    | Observed
    | Recorded
    | WentDown
    | Ended
    | Retried
    | Finished
    | FinishedElsewhere
)


@dataclass(frozen=True, slots=True)
class Event:
    """One event: ``what`` happened in trial number ``trial``.

    ``at_s`` is the time in seconds since the agent could make its first tool call. It is 0 for earlier events and for
    the events Began, Retried, Finished and FinishedElsewhere.
    """

    trial: int
    at_s: float
    what: Happening


Listener = Callable[[Event], None]
BatchListener = Callable[[Sequence[Event]], None]


class EventStream:
    """Passes the events of a run's trials to its listeners."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Listener, frozenset[type] | None]] = []
        self._by_kind: dict[type, tuple[Listener, ...]] = {}  # the listeners of each class of events, once needed
        self._failed: set[int] = set()

    def attach(self, listener: Listener, *, kinds: Collection[type[Happening]] | None = None) -> None:
        """Add a listener that is called directly, not in a thread of its own.

        The listener gets only events whose ``what`` is of one of the classes ``kinds``, or all events if ``kinds`` is
        None. A trial waits while the listener handles an event, so the listener must return within microseconds.
        """
        self._listeners.append((listener, None if kinds is None else frozenset(kinds)))
        self._by_kind.clear()

    @contextmanager
    def heard_by(
        self,
        listener: BatchListener,
        *,
        kinds: Collection[type[Happening]] | None = None,
        urgent: Callable[[Event], bool] | None = None,
    ) -> Iterator[None]:
        """Pass events to a listener, which may be slow, in a thread of its own while the ``with`` block runs.

        The listener gets only events whose ``what`` is of one of the classes ``kinds``, or all events if ``kinds`` is
        None. It gets them in batches, every DELAY_S seconds, because waking a thread for each event would slow the
        trials down. If ``urgent`` is a function, an event for which it returns True is passed to the listener at once,
        together with the events that are waiting, or PAUSE_S seconds after the last batch if that is later. At the end
        of the block, the listener has up to PATIENCE_S seconds to handle the events that are still waiting.
        """
        thread = _ListenerThread(listener, urgent)
        put = thread.put
        self.attach(put, kinds=kinds)
        thread.start()
        try:
            yield
        finally:
            self._detach(put)
            thread.close()

    def _detach(self, listener: Listener) -> None:
        self._listeners = [each for each in self._listeners if each[0] is not listener]
        self._by_kind.clear()

    def has_listeners(self, kind: type[Happening]) -> bool:
        """Return whether at least one listener hears events whose ``what`` is of the class ``kind``."""
        return bool(self._of(kind))

    def _of(self, kind: type) -> tuple[Listener, ...]:
        """Return the listeners that hear events whose ``what`` is of the class ``kind``."""
        if kind not in self._by_kind:
            self._by_kind[kind] = tuple(each for each, kinds in self._listeners if kinds is None or kind in kinds)
        return self._by_kind[kind]

    def publish(self, event: Event) -> None:
        """Pass an event to its listeners. Exceptions from listeners are caught; each listener's first one is logged."""
        for listener in self._of(type(event.what)):
            try:
                listener(event)
            except Exception:
                if id(listener) not in self._failed:
                    self._failed.add(id(listener))
                    _log_failure(event)


def _log_failure(event: Event) -> None:
    """Log the exception that a listener raised while it handled ``event``."""
    _log.exception("a listener failed to handle %s of trial %d", type(event.what).__name__, event.trial)


class _ListenerThread(threading.Thread):
    """Calls one listener with the events that ``put`` receives, until ``close`` is called."""

    def __init__(self, listener: BatchListener, urgent: Callable[[Event], bool] | None) -> None:
        super().__init__(name="listener", daemon=True)  # so that a listener that hangs doesn't keep the process alive
        self._listener, self._urgent = listener, urgent
        self._waiting: list[Event] = []
        self._wake, self._closing, self._failed = threading.Event(), threading.Event(), False

    def put(self, event: Event) -> None:
        """Add an event to the events that are waiting for the listener."""
        self._waiting.append(event)
        if self._urgent and self._urgent(event):
            self._wake.set()

    def close(self) -> None:
        """End the thread, after waiting up to PATIENCE_S seconds until the listener has handled all events."""
        self._closing.set()
        self._wake.set()
        self.join(PATIENCE_S)

    def run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(DELAY_S)
            self._wake.clear()
            closing = self._closing.is_set()
            while batch := self._take():
                self._pass_on(batch)
            self._closing.wait(PAUSE_S)

    def _take(self) -> list[Event]:
        """Return the events that are waiting, and remove them."""
        batch = self._waiting[:]
        del self._waiting[: len(batch)]  # and not what another thread has added meanwhile
        return batch

    def _pass_on(self, batch: list[Event]) -> None:
        """Call the listener with a batch of events. Only the listener's first exception is logged."""
        try:
            self._listener(batch)
        except Exception:
            if not self._failed:
                self._failed = True
                _log_failure(batch[0])


@dataclass
class TrialEvents:
    """The events of one trial. They are passed to the listeners of this trial, and then to those of the run."""

    trial: int = 1
    run: EventStream = field(default_factory=EventStream)
    listeners: EventStream = field(default_factory=EventStream)
    _began: float | None = None

    def start_clock(self) -> float:
        """Start the trial's clock, and return its start time as a value of ``time.monotonic``."""
        self._began = time.monotonic()
        return self._began

    def now(self) -> float:
        """Return the seconds since the trial's clock was started, or 0 if the clock hasn't been started yet."""
        return 0.0 if self._began is None else round(time.monotonic() - self._began, 3)

    def publish(self, what: Happening) -> None:
        """Pass an event of this trial to all listeners."""
        kind = type(what)
        if self.listeners.has_listeners(kind) or self.run.has_listeners(kind):  # most events have none or one
            event = Event(self.trial, self.now(), what)
            self.listeners.publish(event)
            self.run.publish(event)


class Transcript(list[Entry]):
    """The messages of a trial so far. Each message that is appended is dated and passed to the listeners."""

    def __init__(self, events: TrialEvents) -> None:
        super().__init__()
        self._events = events

    def append(self, entry: Entry) -> None:
        """Append a message with the current time, and publish it as an event."""
        dated = entry.model_copy(update={"at_s": self._events.now()})
        super().append(dated)
        self._events.publish(Said(dated))
