"""What happens to watched files between two looks, as the kernel tells the host.

One inotify instance and one thread serve every sandbox of the process. The thread looks at a file the moment
something happens to it, so that what is done and undone within one tool call leaves a trace: a rename or a removal is
certain (the event itself says it), a changed mode or content is seen when it lasts until the thread has looked.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from posixpath import dirname

from inotify_simple import Event, INotify, flags

from harness.engine.look import LayersLook, missing
from harness.evidence import FileKind
from harness.sandbox import Glimpse

MASK = flags.MODIFY | flags.ATTRIB | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.CLOSE_WRITE
KEPT = 10_000  # glimpses of one sandbox between two looks; a flood of them is the agent's own
GONE = flags.DELETE | flags.MOVED_FROM


Glimpses = Callable[[], tuple[Glimpse, ...]]


@dataclass
class Watch:
    """One sandbox's watched paths and what was seen of them since the last look."""

    look: LayersLook
    merged: Path
    paths: tuple[str, ...]
    seen: deque[Glimpse] = field(default_factory=lambda: deque(maxlen=KEPT))
    lost: bool = False

    def notice(self, folder: str, event: Event, moved_to: str | None) -> None:
        """Look at once at what an event is about."""
        path = _join(folder, event.name)
        if path not in self.paths:
            return
        at, (state,) = time.monotonic(), self.look.states([path])
        if event.mask & GONE and state.kind is not FileKind.MISSING:
            # It was gone, and something is there again.
            self.seen.append(Glimpse(at=at, state=missing(path), moved_to=moved_to))
        away = moved_to if state.kind is FileKind.MISSING else None
        writing = bool(event.mask & (flags.MODIFY | flags.CREATE))
        self.seen.append(Glimpse(at=at, state=state, moved_to=away, writing=writing))


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if name else folder


class FileEvents:
    """The process's one inotify instance and its thread."""

    def __init__(self) -> None:
        self._inotify = INotify(nonblocking=True)
        self._watches: dict[int, list[tuple[Watch, str]]] = {}
        self._lock = threading.Lock()
        self._asked, self._ask = os.pipe2(os.O_CLOEXEC)
        self._answers: deque[threading.Event] = deque()
        threading.Thread(target=self._serve, name="file-events", daemon=True).start()

    @contextmanager
    def watching(self, watch: Watch) -> Iterator[Callable[[], tuple[Glimpse, ...]]]:
        """Watch while the block runs; yields what hands over the glimpses since it was last called.

        To be entered before anything in the container can have moved: the paths are the host's, and followed.
        """
        numbers = [
            self._add(watch, path) for path in sorted({p for path in watch.paths for p in (path, dirname(path))})
        ]
        try:
            yield lambda: self._take(watch)
        finally:
            with self._lock:
                for number in filter(None, numbers):
                    self._watches.pop(number, None)
                    with suppress(OSError):  # what it watched is gone, and the watch with it
                        self._inotify.rm_watch(number)

    def _add(self, watch: Watch, path: str) -> int | None:
        with self._lock, suppress(OSError):  # a path that isn't there yet is seen from its folder
            number: int = self._inotify.add_watch(os.fspath(watch.merged) + path, MASK)
            self._watches.setdefault(number, []).append((watch, path))
            return number
        return None

    def _take(self, watch: Watch) -> tuple[Glimpse, ...]:
        """Wait until every event so far was looked at, then hand over."""
        done = threading.Event()
        self._answers.append(done)
        os.write(self._ask, b"?")
        done.wait(timeout=5)
        taken = tuple(watch.seen)
        watch.seen.clear()
        return taken

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._inotify, select.POLLIN)
        poll.register(self._asked, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            asked = len(os.read(self._asked, 4096)) if self._asked in ready else 0
            self._read_events()
            for _ in range(asked):
                self._answers.popleft().set()

    def _read_events(self) -> None:
        while events := self._inotify.read(timeout=0):
            for number, event in enumerate(events):
                with self._lock:
                    targets = list(self._watches.get(event.wd, ()))
                    if event.mask & flags.Q_OVERFLOW:
                        targets = []
                        for watched in self._watches.values():
                            for watch, _ in watched:
                                watch.lost = True
                for watch, path in targets:
                    with suppress(OSError):  # the container's layers went away under the look
                        watch.notice(path, event, self._moved_to(watch, event, events[number + 1 :]))

    def _moved_to(self, watch: Watch, event: Event, rest: list[Event]) -> str | None:
        """Where a file went that was renamed into a folder that is watched for the same sandbox."""
        if not event.mask & flags.MOVED_FROM:
            return None
        arrived = next((each for each in rest if each.cookie == event.cookie), None)
        with self._lock:
            folders = self._watches.get(arrived.wd, ()) if arrived else ()
            return next((_join(path, arrived.name) for mine, path in folders if arrived and mine is watch), None)


@cache
def file_events() -> FileEvents:
    """The process's one, made when it is first needed."""
    return FileEvents()
