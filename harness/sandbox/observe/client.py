"""The client of the watch daemon (daemon.py): file events and accesses of sandboxes, between two snapshots."""

from __future__ import annotations

import atexit
import itertools
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from harness.errors import SandboxError
from harness.judging.evidence import FileAccess
from harness.process.environment import without_keys
from harness.sandbox.observe.dirty_flags import DirtyFlagsReader
from harness.sandbox.observe.overlay import OverlayReader
from harness.sandbox.observe.protocol import DaemonReply, NewEvents
from harness.sandbox.protocol import MachineSpec

RECEIVE_BYTES = 1 << 16
Ask = Callable[..., DaemonReply]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EventSource:
    """One sandbox's file events and accesses. ``no_events`` answers for the daemon while the dirty flag isn't set."""

    ask: Ask
    name: str
    no_events: NewEvents
    flags: DirtyFlagsReader
    slot: int

    def new_events(self) -> NewEvents:
        """Return the file events since the last call. Raises SandboxError where the sandbox is no longer watched."""
        if self.flags.quiet(self.slot):
            return self.no_events
        new_events = self.ask(new_events=self.name).new_events
        if new_events is None:
            raise SandboxError("the machine is no longer watched")
        return new_events

    def accesses(self) -> tuple[FileAccess, ...] | None:
        """Return all accesses to the watched files so far; None where the host can't hold processes, or lost some."""
        return self.ask(accesses=self.name).accesses


class DaemonClient:
    """Starts one watch daemon and asks it questions, safely from several threads.

    Raises SandboxError where the daemon doesn't start.
    """

    def __init__(self) -> None:
        self._connection, daemons_end = socket.socketpair()
        with daemons_end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.sandbox.observe.daemon"],
                stdin=daemons_end.fileno(),
                env=without_keys(),
                start_new_session=True,  # Ctrl-C must not end it: the lab still has questions
            )
        self._lock, self._ids = threading.Lock(), itertools.count(1)
        self._watches = 0
        self._broken = self._discarded = self._closed = False
        try:
            self._flags = DirtyFlagsReader(self._connection)
        except (OSError, ValueError) as error:
            self._end_process()
            raise SandboxError("the watch daemon did not start") from error
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the daemon's process runs and its connection works."""
        return not self._broken and self._process.poll() is None

    @contextmanager
    def watching(
        self, reader: OverlayReader, merged: str, spec: MachineSpec, *, container: str, first: int
    ) -> Iterator[EventSource]:
        """Watch the spec's paths while the block runs; enter before any process in the container can change a file.

        ``first`` is the container's first process, whose limits are the baseline for all others.
        """
        name = str(next(self._ids))
        where = {"merged": merged, "upper": str(reader.upper), "lowers": reader.lowers}
        what = {"paths": spec.watched, "programs": spec.programs, "container": container, "first": first}
        with self._in_use(), self._flags.allocated() as slot:
            try:
                self._ask(watch=name, slot=slot, **where, **what)
                yield EventSource(self._ask, name, NewEvents(one_process=frozenset(spec.watched)), self._flags, slot)
            finally:
                self._unwatch(name)

    def _unwatch(self, name: str) -> None:
        """End a watch; a dead daemon watches nothing, so its failure is ignored."""
        try:
            self._ask(unwatch=name)
        except SandboxError:
            if self.is_alive():
                raise

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the dirty flags open while the block runs, even where the daemon is discarded meanwhile."""
        with self._lock:
            self._watches += 1
        try:
            yield
        finally:
            with self._lock:
                self._watches -= 1
                self._close_if_unused()

    def _ask(self, **request: object) -> DaemonReply:
        with self._lock:
            try:
                self._connection.sendall(msgspec.json.encode(request) + b"\n")
                answer = DaemonReply.model_validate_json(self._receive())
            except (OSError, ValueError) as error:
                self._broken = True
                raise SandboxError("the watch daemon died, so nobody saw what happened to the watched files") from error
        if answer.failed is not None:
            raise SandboxError(f"the host doesn't let the lab watch files: {answer.failed}")
        return answer

    def _receive(self) -> bytes:
        """Receive one line; part of one, or nothing, where the daemon has died."""
        answer = self._connection.recv(RECEIVE_BYTES)
        while answer and not answer.endswith(b"\n") and (more := self._connection.recv(RECEIVE_BYTES)):
            answer += more
        return answer

    def discard(self) -> int:
        """Give up a dead daemon and return its exit status; its last watch closes the dirty flags."""
        self._process.kill()  # it may live on behind a broken connection
        status = self._process.wait()
        with self._lock:
            self._broken = self._discarded = True
            self._close_if_unused()
        return status

    def _close_if_unused(self) -> None:
        if self._discarded and not self._watches:
            self.close()

    def _end_process(self) -> None:
        """End the daemon by closing its connection, and wait for it."""
        self._connection.close()
        with suppress(KeyboardInterrupt):  # a second Ctrl-C changes nothing: the daemon ends by itself
            self._process.wait()

    def close(self) -> None:
        """End the daemon and close the dirty flags; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._end_process()
        self._flags.close()


@dataclass
class DaemonSupervisor:
    """Keeps one watch daemon for the process: starts it when first needed, and another after it has died."""

    _client: DaemonClient | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> DaemonClient:
        """Return the client of a living daemon. Raises SandboxError where none starts."""
        with self._lock:
            if self._client is not None and not self._client.is_alive():
                dead, self._client = self._client, None
                log.warning("the watch daemon died (exit status %d): starting another", dead.discard())
            if self._client is None:
                self._client = DaemonClient()
            return self._client


_supervisor = DaemonSupervisor()


def daemon_client() -> DaemonClient:
    """Return the client of this process's watch daemon, starting the daemon where none is alive."""
    return _supervisor.client()
