"""The eye: a small process that looks at watched files the moment the kernel says that something happened to them.

It has a process of its own, with all the priority it can get, so that nothing else the lab does makes it look late.
What is done and undone within one tool call leaves a trace here: a removal or a rename is certain, for the event
itself says it; a changed mode or content is seen when it lasts until the eye has looked, well under a millisecond.

One JSON object a line, both ways, one answer to each request (harness/sandbox/observe/client.py is the other end, eye_words.py
has the answers), and a slate that says whether there is anything to ask for (harness/sandbox/observe/dirty_flags.py):
  {"watch": id, "place": place on the slate, "merged": dir, "upper": dir, "lowers": [dir], "paths": [path],
   "programs": [path], "container": id, "first": pid}
  {"take": id}        what happened since it was last taken; nothing where it is watched no more
  {"openings": id}    who opened the watched files so far, where that is known
  {"drop": id}
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import dirname
from typing import Any

import msgspec
from inotify_simple import Event, INotify, flags

from harness.judging.bypass import words_of
from harness.judging.evidence import FileKind, FileState
from harness.process.gc_tuning import collect_garbage_rarely
from harness.sandbox.observe.attribution import ProcessAttribution
from harness.sandbox.observe.dirty_flags import DirtyFlags
from harness.sandbox.observe.exec_gate import ContainerRoot, NotAllowedError, PermissionGate, WatchedContainer
from harness.sandbox.observe.overlay import OverlayReader, as_text, missing
from harness.sandbox.observe.protocol import DaemonReply, NewEvents
from harness.sandbox.protocol import FileEvent

MASK = flags.MODIFY | flags.ATTRIB | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.CLOSE_WRITE
GONE = flags.DELETE | flags.MOVED_FROM
CAME = flags.CREATE | flags.MOVED_TO
WRITING = flags.MODIFY | flags.CREATE
KEPT = 1_000  # glimpses of one sandbox between two looks; more are a flood, and the eye closes until the next look
KEPT_BYTES = 4 << 20  # of content in one sandbox's glimpses; of those that follow only the hash is kept
FILES = 100  # of one sandbox, watched beside its folders
OTHER_END_MS = 1
LOOK_UP_S = 0.05  # how long one flood may keep the eye from the others


@dataclass
class ContainerWatch:
    """One sandbox's watched paths, what stood there at first, and what was seen since the lab was told.

    ``touched`` are the paths of which anything was ever seen: what stands at the others is known without being told.
    """

    reader: OverlayReader
    merged: str
    paths: frozenset[str]
    slot: int
    first: dict[str, FileState] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    gated: WatchedContainer | None = None
    attribution: ProcessAttribution | None = None
    watch_ids: set[int] = field(default_factory=set)
    seen: list[FileEvent] = field(default_factory=list)
    now: dict[str, FileState] = field(default_factory=dict)  # what was looked at since events were last read
    lost: bool = False
    content_room: int = KEPT_BYTES

    def record_start(self, path: str, at: float) -> bool:
        """Keep what stands at a path while somebody who starts it is held, unless nobody ever touched it."""
        if len(self.seen) >= KEPT or (path not in self.touched and self.reader.untouched(path)):
            return False
        (state,) = self.reader.states([path])
        if path not in self.touched and state == self.first[path]:
            return False
        self._keep(FileEvent(at=at, state=state, started=True))
        return True

    def _keep(self, file_event: FileEvent) -> None:
        """Keep a glimpse, with the content while there is room for it."""
        state = file_event.state
        self.touched.add(state.path)
        self.content_room -= len(state.content or b"")
        if self.content_room <= 0:
            file_event = file_event.model_copy(update={"state": state.model_copy(update={"content": None})})
        self.seen.append(file_event)

    def record_event(
        self, folder: str, event: Event, moved_to: str | None, came_from: str | None, *, writing: bool = False
    ) -> None:
        """Look at once at what an event is about; ``writing``: it is being written to already."""
        path = _join(folder, event.name)
        if path not in self.paths:
            return
        if len(self.seen) >= KEPT:
            self.lost = True
            return
        at, state = time.monotonic(), self.now.get(path)
        if state is None:  # all that was read at once had happened by then: one look does
            (state,) = self.reader.states([path])
            self.now[path] = state
        if event.mask & GONE and state.kind is not FileKind.MISSING:
            # It was gone, and something is there again.
            self._keep(FileEvent(at=at, state=missing(path), moved_to=moved_to))
        away = moved_to if state.kind is FileKind.MISSING else None
        writing = writing or bool(event.mask & WRITING)
        self._keep(FileEvent(at=at, state=state, moved_to=away, came_from=came_from, writing=writing))


def _same_file(event: Event, other: Event) -> bool:
    return bool(other.wd == event.wd and other.name == event.name)


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{as_text(name)}" if name else folder


class WatchDaemon:
    """All watches, the one inotify instance behind them, and the gate where this host lets the lab have one."""

    def __init__(self) -> None:
        self.flags = DirtyFlags()
        self.inotify = INotify(nonblocking=True)
        self.gate: PermissionGate | None = None
        with suppress(NotAllowedError):
            self.gate = PermissionGate()
        self._watches: dict[str, ContainerWatch] = {}
        self._folders: dict[int, tuple[ContainerWatch, str]] = {}

    def handle(self, request: dict[str, Any]) -> DaemonReply:
        """Do what is asked, after everything that happened before."""
        self.process_events()
        if "watch" in request:
            self._watch(request)
        elif "drop" in request:
            if dropped := self._watches.pop(request["drop"], None):
                self.flags.mark(dropped.slot)  # who asks all the same is to be told
                self._close(dropped)
                dropped.reader.close()
                if dropped.attribution:
                    dropped.attribution.close()
                if self.gate and dropped.gated:
                    self.gate.forget(dropped.gated)
        elif "openings" in request:
            asked = self._watches.get(request["openings"])
            known = asked.gated if asked and asked.gated and not asked.gated.lost else None
            return DaemonReply(accesses=tuple(known.seen) if known else None)
        elif taken := self._watches.get(request["take"]):
            return DaemonReply(new_events=self._take(taken))
        return DaemonReply()

    def _take(self, watch: ContainerWatch) -> NewEvents:
        """Hand over what was seen, and look again where a flood had closed the eye."""
        one_process = watch.attribution.one_process() if watch.attribution else None
        new_events = NewEvents(events=tuple(watch.seen), lost=watch.lost, one_process=one_process)
        watch.seen = []
        self.flags.clear(watch.slot)
        if watch.lost:
            watch.lost = False
            with closing(ContainerRoot(watch.merged)) as root:
                self._open(watch, root)
        return new_events

    def _watch(self, request: dict[str, Any]) -> None:
        reader = OverlayReader(Path(request["upper"]), tuple(request["lowers"]), content_only=True)
        watch = ContainerWatch(reader, request["merged"], frozenset(request["paths"]), request["place"])
        self._watches[request["watch"]] = watch
        self.flags.clear(watch.slot)
        watch.first = {state.path: state for state in reader.states(watch.paths)}
        with closing(ContainerRoot(watch.merged)) as root:
            self._open(watch, root)
            with suppress(NotAllowedError):
                watch.attribution = ProcessAttribution(root, watch.paths)
            if self.gate:
                words = frozenset().union(*(words_of(state.content or b"") for state in watch.first.values()))
                programs = set(request["programs"])
                container, first = request["container"], request["first"]
                gated = WatchedContainer(request["watch"], watch.merged, watch.paths, container, first, words, programs)
                with suppress(NotAllowedError):
                    self.gate.open(gated, root)
                    watch.gated = gated

    def _open(self, watch: ContainerWatch, root: ContainerRoot) -> None:
        """Be told of what happens to the watched paths from now on."""
        for path in sorted({dirname(path) for path in watch.paths}) + sorted(watch.paths):
            self._add(watch, root, path)

    def _add(self, watch: ContainerWatch, root: ContainerRoot, path: str) -> None:
        """Be told of what happens to what stands at a path, reached without following any link."""
        if self.gate and watch.gated:
            watch.gated.programs.discard(path)  # what comes to a program's place may be a script
            self.gate.mark(watch.gated, root, path)
        if len(watch.watch_ids) >= FILES:
            return
        with suppress(OSError):  # a path that isn't there yet is seen from its folder
            folder, name = root.parent(path)
            number = self.inotify.add_watch(f"/proc/self/fd/{folder}/{name}", MASK | flags.DONT_FOLLOW)
            self._folders[number] = (watch, path)
            watch.watch_ids.add(number)

    def _close(self, watch: ContainerWatch) -> None:
        for number in watch.watch_ids:
            self._folders.pop(number, None)
            with suppress(OSError):  # what it watched is gone, and the watch with it
                self.inotify.rm_watch(number)
        watch.watch_ids.clear()

    def process_events(self, *, only_held: bool = False) -> None:
        """Look at everything that the kernel has told of so far, then let go whoever it holds.

        ``only_held``: nothing is known to have happened but that somebody is held.
        """
        if not only_held:
            self._look_at_events()
        if self.gate:
            for gated, path in self.gate.held():
                self._look_at_events()
                watch = self._watches[gated.name]
                with self._or_lost(watch):
                    start = gated.seen[-1]
                    if start.started and watch.record_start(path, start.at_s):
                        self.flags.mark(watch.slot)

    def _look_at_events(self) -> None:
        """Look at what inotify has told; a flood is given up on, and said to be one."""
        deadline = time.monotonic() + LOOK_UP_S
        self.flags.busy()
        while events := self.inotify.read(timeout=0):
            if events[-1].mask & flags.MOVED_FROM:  # the other end of a rename follows at once
                events += self.inotify.read(timeout=OTHER_END_MS)
            if not self._look_at_all(events, deadline):
                break
        self.flags.idle()

    def _look_at_all(self, events: list[Event], deadline: float) -> bool:
        """Look at these; False where there are too many of them for the time there is."""
        for watch in self._watches_of(events):
            watch.now.clear()
        for slot, event in enumerate(events):
            self._look_at(event, events, slot)
            if time.monotonic() > deadline:
                self._flooded(events[slot:])
                return False
        return True

    def _look_at(self, event: Event, events: list[Event], slot: int) -> None:
        if event.mask & flags.Q_OVERFLOW:
            for watch in self._watches.values():
                self._lose(watch)
        if event.wd not in self._folders:
            return
        watch, folder = self._folders[event.wd]
        self.flags.mark(watch.slot)
        if event.mask & flags.IGNORED:  # what it watched is gone
            watch.watch_ids.discard(event.wd)
            del self._folders[event.wd]
            return
        moved_to = came_from = None
        if event.mask & flags.MOVED_FROM:
            moved_to = self._other_end(watch, event, events[slot + 1 : slot + 3])
        if event.mask & flags.MOVED_TO:
            came_from = self._other_end(watch, event, events[max(0, slot - 2) : slot]) or ""
        rewritten = any(_same_file(event, other) and other.mask & WRITING for other in events[slot + 1 : slot + 9])
        with self._or_lost(watch):
            watch.record_event(folder, event, moved_to, came_from, writing=rewritten)
        path = _join(folder, event.name)
        if event.mask & CAME and path in watch.paths:
            with closing(ContainerRoot(watch.merged)) as root:
                self._add(watch, root, path)
        if watch.lost:
            self._lose(watch)
            self._close(watch)

    def _flooded(self, events: list[Event]) -> None:
        """Watch those no more who make more events than can be looked at; their trials go on with snapshots."""
        for watch in self._watches_of(events):
            self._lose(watch)
            self._close(watch)

    def _watches_of(self, events: list[Event]) -> list[ContainerWatch]:
        """Whom these events are about, one for each event."""
        return [self._folders[event.wd][0] for event in events if event.wd in self._folders]

    @contextmanager
    def _or_lost(self, watch: ContainerWatch) -> Iterator[None]:
        """Where the host itself can't look, that is said, and no guess is made."""
        try:
            yield
        except OSError:
            self._lose(watch)

    def _lose(self, watch: ContainerWatch) -> None:
        """Say that more happened than could be looked at."""
        watch.lost = True
        watch.touched |= watch.paths
        self.flags.mark(watch.slot)

    def _other_end(self, watch: ContainerWatch, event: Event, others: list[Event]) -> str | None:
        """The path at the other end of a rename, where it is in a folder that is watched for the same sandbox."""
        other = next((each for each in others if each.cookie == event.cookie), None)
        mine, folder = self._folders.get(other.wd, (None, "")) if other else (None, "")
        return _join(folder, other.name) if other and mine is watch else None


def main() -> None:
    """Serve until whoever started it hangs up."""
    collect_garbage_rarely()
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with socket.socket(fileno=sys.stdin.fileno()) as line, suppress(BrokenPipeError, ConnectionResetError):
        serve(WatchDaemon(), line)  # until whoever asks is gone


def serve(eye: WatchDaemon, line: socket.socket) -> None:
    """Look and answer, in turn, until nobody asks any more."""
    poll, waiting, gate = select.poll(), b"", eye.gate.fileno() if eye.gate else None
    for each in (line, eye.inotify, *([eye.gate] if eye.gate else [])):
        poll.register(each, select.POLLIN)
    eye.flags.hand_over(line, eye.inotify.fileno())
    while True:
        ready = [number for number, _ in poll.poll()]
        if line.fileno() not in ready:
            eye.process_events(only_held=ready == [gate])
            continue
        if not (data := line.recv(1 << 16)):
            return
        *requests, waiting = (waiting + data).split(b"\n")
        for request in requests:
            try:
                answer = eye.handle(msgspec.json.decode(request))
            except OSError as error:
                answer = DaemonReply(failed=str(error))
            line.sendall(answer.model_dump_json(exclude_none=True).encode() + b"\n")


if __name__ == "__main__":
    main()
