"""The watch daemon, a process that reads a watched file as soon as the kernel reports an event about the file.

The daemon is a separate process, so the lab's other work doesn't delay it. It runs with real-time priority if the host
allows this. The daemon detects every deletion and rename, even one that is undone within the same tool call. It detects
a changed mode or content if the change lasts until the daemon reads the file, well under a millisecond later.

The client (client.py) sends requests to the daemon, and the daemon sends one reply to each (``DaemonReply`` in
protocol.py). Each request and each reply is a JSON object on one line. The client reads the dirty flags in shared
memory (dirty_flags.py) to find out whether a sandbox has new events. There are four requests:
  {"watch": id, "slot": number of the dirty flag, "merged": dir, "upper": dir, "lowers": [dir], "paths": [path],
   "programs": [path], "container": id, "first": pid}
                      start to watch a sandbox; the other requests use the same watch id
  {"new_events": id}  return the file events since the last such request; None if the sandbox isn't watched
  {"accesses": id}    return the accesses to the watched files so far; None if some of them weren't recorded
  {"unwatch": id}     stop watching the sandbox
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

from harness.judging.evidence import FileKind, FileState
from harness.process.gc_tuning import collect_garbage_rarely
from harness.sandbox.observe.attribution import ProcessAttribution
from harness.sandbox.observe.dirty_flags import DirtyFlags
from harness.sandbox.observe.exec_gate import (
    ContainerRoot,
    NotAllowedError,
    PermissionGate,
    WatchedContainer,
    script_words,
)
from harness.sandbox.observe.overlay import OverlayReader, as_text, missing
from harness.sandbox.observe.protocol import DaemonReply, NewEvents
from harness.sandbox.protocol import FileEvent

MASK = flags.MODIFY | flags.ATTRIB | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.CLOSE_WRITE
DISAPPEARED = flags.DELETE | flags.MOVED_FROM
APPEARED = flags.CREATE | flags.MOVED_TO
WRITING = flags.MODIFY | flags.CREATE
MAX_EVENTS = 1_000  # kept for one sandbox between two snapshots; with more, it isn't watched until the next snapshot
MAX_CONTENT_BYTES = 4 << 20  # kept in one sandbox's events; events after that keep the hash only
MAX_INODES = 100  # of one sandbox that inotify watches
RENAME_TIMEOUT_MS = 1  # to wait for the second event of a rename
READ_LIMIT_S = 0.05  # time for one burst of events, so that other sandboxes' events aren't delayed


@dataclass
class ContainerWatch:
    """The daemon's data about one watched sandbox, such as the watched paths and the recorded file events.

    ``initial`` are the states of the files when the watch began. ``touched`` are the paths whose files may have changed
    since then. ``events`` are the file events that haven't been sent to the client yet.
    """

    reader: OverlayReader
    merged: str
    paths: frozenset[str]
    slot: int
    initial: dict[str, FileState] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    gated: WatchedContainer | None = None
    attribution: ProcessAttribution | None = None
    watch_ids: set[int] = field(default_factory=set)
    events: list[FileEvent] = field(default_factory=list)
    current: dict[str, FileState] = field(default_factory=dict)  # states read since events were last taken
    events_lost: bool = False
    content_bytes_left: int = MAX_CONTENT_BYTES

    def record_start(self, path: str, at: float) -> bool:
        """Record the state of a file that a process is about to run. Return whether the state was recorded.

        Nothing is recorded if the file hasn't changed since the watch began, or if ``MAX_EVENTS`` events are already
        stored. ``at`` is the time in seconds on the monotonic clock.
        """
        if len(self.events) >= MAX_EVENTS or (path not in self.touched and self.reader.untouched(path)):
            return False
        (state,) = self.reader.states([path])
        if path not in self.touched and state == self.initial[path]:
            return False
        self._append(FileEvent(at=at, state=state, started=True))
        return True

    def _append(self, file_event: FileEvent) -> None:
        """Append a file event to the sandbox's recorded events.

        The file's content is omitted once the contents in all events reach a total of ``MAX_CONTENT_BYTES``.
        """
        state = file_event.state
        self.touched.add(state.path)
        self.content_bytes_left -= len(state.content or b"")
        if self.content_bytes_left <= 0:
            file_event = file_event.model_copy(update={"state": state.model_copy(update={"content": None})})
        self.events.append(file_event)

    def record_event(
        self, folder: str, event: Event, moved_to: str | None, came_from: str | None, *, writing: bool = False
    ) -> None:
        """Read the file named by an inotify event, and record the file's state if its path is watched.

        ``folder`` is the path of the inotify watch. ``event.name`` is the name of a file in this folder, or "" if the
        event is about the path itself. If the event reports that the file was renamed, ``moved_to`` is the new path, or
        None if the new path isn't watched. If the event reports that a file was renamed to this path, ``came_from`` is
        the file's old path, or "" if the old path isn't watched. For other events, both are None. ``writing`` is true
        if the file's content may be incomplete. If ``MAX_EVENTS`` events are already stored, nothing is recorded and
        ``events_lost`` is set to true.
        """
        path = _join(folder, event.name)
        if path not in self.paths:
            return
        if len(self.events) >= MAX_EVENTS:
            self.events_lost = True
            return
        at, state = time.monotonic(), self.current.get(path)
        if state is None:  # all events taken together had happened by now, so one read serves them all
            (state,) = self.reader.states([path])
            self.current[path] = state
        if event.mask & DISAPPEARED and state.kind is not FileKind.MISSING:
            # The file had gone, and another has been put there since.
            self._append(FileEvent(at=at, state=missing(path), moved_to=moved_to))
        away = moved_to if state.kind is FileKind.MISSING else None
        writing = writing or bool(event.mask & WRITING)
        self._append(FileEvent(at=at, state=state, moved_to=away, came_from=came_from, writing=writing))


def _same_file(event: Event, other: Event) -> bool:
    return bool(other.wd == event.wd and other.name == event.name)


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{as_text(name)}" if name else folder


class WatchDaemon:
    """Watches the files of all sandboxes with inotify and, if the host allows it, a permission gate (exec_gate.py)."""

    def __init__(self) -> None:
        self.flags = DirtyFlags()
        self.inotify = INotify(nonblocking=True)
        self.gate: PermissionGate | None = None
        with suppress(NotAllowedError):
            self.gate = PermissionGate()
        self._watches: dict[str, ContainerWatch] = {}
        self._folders: dict[int, tuple[ContainerWatch, str]] = {}  # by inotify's number of the watch

    def handle(self, request: dict[str, Any]) -> DaemonReply:
        """Process all pending file events, then carry out one request and return the reply."""
        self.process_events()
        if "watch" in request:
            self._watch(request)
        elif "unwatch" in request:
            self._unwatch(request["unwatch"])
        elif "accesses" in request:
            watch = self._watches.get(request["accesses"])
            known = watch.gated if watch and watch.gated and not watch.gated.incomplete else None
            return DaemonReply(accesses=tuple(known.accesses) if known else None)
        elif watch := self._watches.get(request["new_events"]):
            return DaemonReply(new_events=self._hand_over(watch))
        return DaemonReply()

    def _hand_over(self, watch: ContainerWatch) -> NewEvents:
        """Return the recorded file events of a sandbox, and remove them from ``watch``.

        If some events were lost, start to watch the sandbox's files again.
        """
        one_process = watch.attribution.one_process() if watch.attribution else None
        new_events = NewEvents(events=tuple(watch.events), lost=watch.events_lost, one_process=one_process)
        watch.events = []
        self.flags.clear(watch.slot)
        if watch.events_lost:
            watch.events_lost = False
            with closing(ContainerRoot(watch.merged)) as root:
                self._watch_paths(watch, root)
        return new_events

    def _watch(self, request: dict[str, Any]) -> None:
        reader = OverlayReader(Path(request["upper"]), tuple(request["lowers"]), content_only=True)
        watch = ContainerWatch(reader, request["merged"], frozenset(request["paths"]), request["slot"])
        self._watches[request["watch"]] = watch
        self.flags.clear(watch.slot)
        watch.initial = {state.path: state for state in reader.states(watch.paths)}
        with closing(ContainerRoot(watch.merged)) as root:
            self._watch_paths(watch, root)
            with suppress(NotAllowedError):
                watch.attribution = ProcessAttribution(root, watch.paths)
            if self.gate:
                gated = WatchedContainer(
                    request["watch"],
                    watch.merged,
                    watch.paths,
                    container=request["container"],
                    first=request["first"],
                    programs=set(request["programs"]),
                    likely=script_words(state.content or b"" for state in watch.initial.values()),
                )
                with suppress(NotAllowedError):
                    self.gate.open(gated, root)
                    watch.gated = gated

    def _unwatch(self, name: str) -> None:
        watch = self._watches.pop(name, None)
        if watch is None:
            return
        self.flags.mark(watch.slot)  # a client that asks nevertheless must learn that nothing is watched
        self._stop_inotify(watch)
        watch.reader.close()
        if watch.attribution:
            watch.attribution.close()
        if self.gate and watch.gated:
            self.gate.forget(watch.gated)

    def _watch_paths(self, watch: ContainerWatch, root: ContainerRoot) -> None:
        """Start to watch the files at a sandbox's watched paths, and the parent folders of these files."""
        for path in sorted({dirname(path) for path in watch.paths}) + sorted(watch.paths):
            self._watch_path(watch, root, path)

    def _watch_path(self, watch: ContainerWatch, root: ContainerRoot, path: str) -> None:
        """Start to watch the file or folder that is now at ``path``. Symbolic links aren't followed."""
        if self.gate and watch.gated:
            watch.gated.programs.discard(path)  # a new file in a program's place may be a script
            self.gate.mark(watch.gated, root, path)
        if len(watch.watch_ids) >= MAX_INODES:
            return
        with suppress(OSError):  # a file that doesn't exist yet is reported by its folder
            folder, name = root.parent(path)
            number = self.inotify.add_watch(f"/proc/self/fd/{folder}/{name}", MASK | flags.DONT_FOLLOW)
            self._folders[number] = (watch, path)
            watch.watch_ids.add(number)

    def _stop_inotify(self, watch: ContainerWatch) -> None:
        for number in watch.watch_ids:
            self._folders.pop(number, None)
            with suppress(OSError):  # the watched file was deleted, and the watch with it
                self.inotify.rm_watch(number)
        watch.watch_ids.clear()

    def process_events(self, *, only_held: bool = False) -> None:
        """Process all queued inotify events, then record and release each process held by the permission gate.

        If ``only_held`` is true, the first step is skipped. Set ``only_held`` only if no inotify event is queued.
        """
        if not only_held:
            self._process_inotify()
        if self.gate:
            for gated, path in self.gate.held():
                self._process_inotify()
                watch = self._watches[gated.name]
                with self._lost_on_error(watch):
                    access = gated.accesses[-1]
                    if access.started and watch.record_start(path, access.at_s):
                        self.flags.mark(watch.slot)

    def _process_inotify(self) -> None:
        """Process the queued inotify events for at most about ``READ_LIMIT_S`` seconds.

        After that time, events that were read but not processed are dropped. The sandboxes of these events aren't
        watched until their next snapshots. This prevents one sandbox with many events from delaying the others.
        """
        deadline = time.monotonic() + READ_LIMIT_S
        self.flags.busy()
        while events := self.inotify.read(timeout=0):
            if events[-1].mask & flags.MOVED_FROM:  # the second event of a rename follows at once
                events += self.inotify.read(timeout=RENAME_TIMEOUT_MS)
            if not self._process_batch(events, deadline):
                break
        self.flags.idle()

    def _process_batch(self, events: list[Event], deadline: float) -> bool:
        """Process a list of inotify events. Return whether all of them were processed before ``deadline``.

        At the deadline, stop watching the sandboxes of the remaining events. ``deadline`` is a time on the monotonic
        clock.
        """
        for watch in self._watches_of(events):
            watch.current.clear()
        for index, event in enumerate(events):
            self._process(event, events, index)
            if time.monotonic() > deadline:
                self._give_up(events[index:])
                return False
        return True

    def _process(self, event: Event, events: list[Event], index: int) -> None:
        if event.mask & flags.Q_OVERFLOW:
            for watch in self._watches.values():
                self._mark_lost(watch)
        if event.wd not in self._folders:
            return
        watch, folder = self._folders[event.wd]
        self.flags.mark(watch.slot)
        if event.mask & flags.IGNORED:  # the watched file was deleted
            watch.watch_ids.discard(event.wd)
            del self._folders[event.wd]
            return
        moved_to = came_from = None
        if event.mask & flags.MOVED_FROM:
            moved_to = self._rename_counterpart(watch, event, events[index + 1 : index + 3])
        if event.mask & flags.MOVED_TO:
            came_from = self._rename_counterpart(watch, event, events[max(0, index - 2) : index]) or ""
        rewritten = any(_same_file(event, other) and other.mask & WRITING for other in events[index + 1 : index + 9])
        with self._lost_on_error(watch):
            watch.record_event(folder, event, moved_to, came_from, writing=rewritten)
        path = _join(folder, event.name)
        if event.mask & APPEARED and path in watch.paths:
            with closing(ContainerRoot(watch.merged)) as root:
                self._watch_path(watch, root, path)
        if watch.events_lost:
            self._mark_lost(watch)
            self._stop_inotify(watch)

    def _give_up(self, events: list[Event]) -> None:
        """Stop watching each sandbox that has an event in ``events``, until the next snapshot of the sandbox.

        ``events`` are inotify events that weren't processed.
        """
        for watch in self._watches_of(events):
            self._mark_lost(watch)
            self._stop_inotify(watch)

    def _watches_of(self, events: list[Event]) -> list[ContainerWatch]:
        """Return, for each event, the watch of the sandbox in which the event happened.

        Events about files that are no longer watched are skipped.
        """
        return [self._folders[event.wd][0] for event in events if event.wd in self._folders]

    @contextmanager
    def _lost_on_error(self, watch: ContainerWatch) -> Iterator[None]:
        """Suppress an OSError from the ``with`` block. If one occurs, mark the sandbox's file events as lost."""
        try:
            yield
        except OSError:
            self._mark_lost(watch)

    def _mark_lost(self, watch: ContainerWatch) -> None:
        """Record that some file events of a sandbox were lost, and set its dirty flag to inform the client."""
        watch.events_lost = True
        watch.touched |= watch.paths
        self.flags.mark(watch.slot)

    def _rename_counterpart(self, watch: ContainerWatch, event: Event, others: list[Event]) -> str | None:
        """Return the new path of a renamed file if ``event`` names the old path, otherwise the old path.

        Inotify reports a rename as two events, one for the old path and one for the new path. ``event`` is one of them.
        The second one is searched for in ``others``. Returns None if the path to return isn't watched for this sandbox.
        """
        other = next((each for each in others if each.cookie == event.cookie), None)
        other_watch, folder = self._folders.get(other.wd, (None, "")) if other else (None, "")
        return _join(folder, other.name) if other and other_watch is watch else None


def main() -> None:
    """Serve the client at the socket on standard input, until the client closes the connection."""
    collect_garbage_rarely()
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with socket.socket(fileno=sys.stdin.fileno()) as connection, suppress(BrokenPipeError, ConnectionResetError):
        serve(WatchDaemon(), connection)  # a broken connection ends the daemon: its client has ended


def serve(daemon: WatchDaemon, connection: socket.socket) -> None:
    """Process file events and reply to the client's requests, until the client closes the connection."""
    poll, waiting, gate = select.poll(), b"", daemon.gate.fileno() if daemon.gate else None
    for each in (connection, daemon.inotify, *([daemon.gate] if daemon.gate else [])):
        poll.register(each, select.POLLIN)
    daemon.flags.hand_over(connection, daemon.inotify.fileno())
    while True:
        ready = [number for number, _ in poll.poll()]
        if connection.fileno() not in ready:
            daemon.process_events(only_held=ready == [gate])
            continue
        if not (data := connection.recv(1 << 16)):
            return
        *requests, waiting = (waiting + data).split(b"\n")
        for request in requests:
            try:
                answer = daemon.handle(msgspec.json.decode(request))
            except OSError as error:
                answer = DaemonReply(failed=str(error))
            connection.sendall(answer.model_dump_json(exclude_none=True).encode() + b"\n")


if __name__ == "__main__":
    main()
