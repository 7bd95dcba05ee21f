"""Stores the messages of trials while the trials run, so that messages are kept if the process is killed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from harness.process.identity import this_process
from harness.session.events import Began, Ended, Event, EventStream, Finished, Retried, Said
from harness.store.store import LiveEntry, Store


@dataclass
class LiveTranscriptWriter:
    """A listener that stores the messages of a run's trials in the table of live transcripts.

    A trial's messages are stored when a tool call is answered, up to and including the answer. Messages after the last
    answer are stored when the trial ends. Pass ``hear`` to ``EventStream.heard_by``, which calls ``hear``
    in a thread of its own, because storing messages may take long while other processes write. Only that thread may use
    ``store``.
    ``owner`` identifies the process that runs the trials; messages of trials that another process runs aren't stored.
    """

    store: Store
    run_id: str
    owner: str = field(default_factory=this_process)
    HEARD: ClassVar = (Said, Ended, Began, Retried, Finished)  # the events that ``hear`` handles
    _said: Counter[int] = field(default_factory=Counter)  # the number of messages so far, by trial
    _unstored: defaultdict[int, list[LiveEntry]] = field(default_factory=lambda: defaultdict(list))

    def hear(self, events: Sequence[Event]) -> None:
        """Handle a batch of events of the run's trials.

        Store the new messages of each trial in which a tool call was answered, or which ended. Raises StoreError if the
        messages can't be stored.
        """
        ready = [message for event in events for message in self._ready(event)]
        if ready:
            self.store.add_live_entries(self.run_id, self.owner, ready)

    def _ready(self, event: Event) -> list[LiveEntry]:
        """Note an event. If it answers a tool call or ends a trial, return the trial's messages that aren't stored."""
        match event.what:
            case Said(entry=entry):
                self._unstored[event.trial].append(LiveEntry(event.trial, self._said[event.trial], entry))
                self._said[event.trial] += 1
                return self._unstored.pop(event.trial) if entry.role == "tool" else []
            case Ended():
                return self._unstored.pop(event.trial, [])
            case _:
                del self._said[event.trial]
                return []


@contextmanager
def stored_as_said(runs_dir: Path, run_id: str, events: EventStream) -> Iterator[None]:
    """Store the messages of a run's trials in batches, while the ``with`` block runs.

    The last messages are stored at the end of the block. The block must end before this process frees its unfinished
    trials for other processes, because messages of a freed trial aren't stored.
    """
    with Store(runs_dir) as store:
        writer = LiveTranscriptWriter(store, run_id)
        with events.heard_by(writer.hear, kinds=writer.HEARD, urgent=_is_answer):
            yield


def _is_answer(event: Event) -> bool:
    return isinstance(event.what, Said) and event.what.entry.role == "tool"
