"""Stores what is said in running trials as it is said, so that it survives if the process is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.process.identity import this_process
from harness.session.events import Began, Event, EventStream, Finished, Retried, Said
from harness.store.store import LiveEntry, Store


@dataclass
class LiveTranscriptWriter:
    """A listener that stores each message of a run's trials in the table of live transcripts.

    Pass ``hear`` to ``EventStream.heard_by``, because a write may wait for other processes. ``store`` must be used by
    nothing else meanwhile. Only messages of trials that ``owner`` has claimed are stored.
    """

    store: Store
    run_id: str
    owner: str = field(default_factory=this_process)
    _said: Counter[int] = field(default_factory=Counter)  # the number of messages so far, by trial

    def hear(self, event: Event) -> None:
        """Store the message of an event. Raises StoreError if it can't be stored."""
        match event.what:
            case Said(entry=entry):
                self._said[event.trial] += 1  # first, so that a message that can't be stored doesn't hold up the next
                message = LiveEntry(event.trial, self._said[event.trial] - 1, entry)
                self.store.add_live_entries(self.run_id, self.owner, [message])
            case Began() | Retried() | Finished():
                del self._said[event.trial]


@contextmanager
def stored_as_said(runs_dir: Path, run_id: str, events: EventStream) -> Iterator[None]:
    """Store the messages of a run's trials as they are said, while the ``with`` block runs.

    At the end of the block, the last messages are stored before this process gives up its claims on trials.
    """
    with Store(runs_dir) as store, events.heard_by(LiveTranscriptWriter(store, run_id).hear, urgent=_is_answer):
        yield


def _is_answer(event: Event) -> bool:
    return isinstance(event.what, Said) and event.what.entry.role == "tool"
