"""Stores the messages of trials while the trials run, so that messages are kept if the process is killed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.process.identity import this_process
from harness.session.events import Began, Ended, Event, EventStream, Finished, Retried, Said
from harness.store.store import LiveEntry, Store


@dataclass
class LiveTranscriptWriter:
    """A listener that stores the messages of a run's trials in the table of live transcripts.

    The messages up to and including the answer to a tool call are stored in one transaction. Messages after the last
    answer are stored when the trial ends. Pass ``hear`` to ``EventStream.heard_by``, which calls it in a thread of its
    own, because storing messages may take long while other processes write. Only that thread may use ``store``.
    ``owner`` identifies the process that runs the trials; messages of trials that another process runs aren't stored.
    """

    store: Store
    run_id: str
    owner: str = field(default_factory=this_process)
    _said: Counter[int] = field(default_factory=Counter)  # the number of messages so far, by trial
    _unstored: defaultdict[int, list[LiveEntry]] = field(default_factory=lambda: defaultdict(list))

    def hear(self, event: Event) -> None:
        """Handle an event of the run's trials.

        After the answer to a tool call and at the end of a trial, store the trial's new messages. Raises StoreError if
        the messages can't be stored.
        """
        match event.what:
            case Said(entry=entry):
                self._unstored[event.trial].append(LiveEntry(event.trial, self._said[event.trial], entry))
                self._said[event.trial] += 1
                if entry.role == "tool":
                    self._store(event.trial)
            case Ended():
                self._store(event.trial)
            case Began() | Retried() | Finished():
                del self._said[event.trial]

    def _store(self, trial: int) -> None:
        messages = self._unstored.pop(trial, [])  # first, so that what can't be stored doesn't hold up the next
        if messages:
            self.store.add_live_entries(self.run_id, self.owner, messages)


@contextmanager
def stored_as_said(runs_dir: Path, run_id: str, events: EventStream) -> Iterator[None]:
    """Store the messages of a run's trials in batches, while the ``with`` block runs.

    The last messages are stored at the end of the block. The block must end before this process frees its unfinished
    trials for other processes, because messages of a freed trial aren't stored.
    """
    with Store(runs_dir) as store, events.heard_by(LiveTranscriptWriter(store, run_id).hear, urgent=_is_answer):
        yield


def _is_answer(event: Event) -> bool:
    return isinstance(event.what, Said) and event.what.entry.role == "tool"
