"""Starts the watch daemon (daemon.py), and requests the file events and file accesses of each sandbox from it."""

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
    """Requests the file events and file accesses of one sandbox from the watch daemon.

    ``ask`` is a function that sends a request to the daemon. ``name`` identifies the sandbox in requests. ``slot`` is
    the number of the sandbox's dirty flag. If the dirty flags show that there are no new file events, ``new_events``
    returns ``no_events`` without a request.
    """

    ask: Ask
    name: str
    no_events: NewEvents
    flags: DirtyFlagsReader
    slot: int

    def new_events(self) -> NewEvents:
        """Return the sandbox's file events since the last call.

        Raises SandboxError if the watch daemon no longer watches the sandbox.
        """
        if self.flags.quiet(self.slot):
            return self.no_events
        new_events = self.ask(new_events=self.name).new_events
        if new_events is None:
            raise SandboxError("the machine is no longer watched")
        return new_events

    def accesses(self) -> tuple[FileAccess, ...] | None:
        """Return all accesses to the sandbox's watched files so far.

        Returns None if the accesses can't be observed on this host or weren't recorded completely.
        """
        return self.ask(accesses=self.name).accesses


class DaemonClient:
    """Starts a watch daemon and sends requests to it. Several threads may use one client.

    The constructor raises SandboxError if the daemon doesn't start.
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
        """Return the process ID of the watch daemon."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the watch daemon is running and the connection to it works."""
        return not self._broken and self._process.poll() is None

    @contextmanager
    def watching(
        self, reader: OverlayReader, merged: str, spec: MachineSpec, *, container: str, first: int
    ) -> Iterator[EventSource]:
        """Watch the paths ``spec.watched`` in a container while the ``with`` block runs, and yield an EventSource.

        The block must begin before any process in the container can change a file. ``merged`` is the container's root
        folder on the host. ``container`` is the container's ID. ``first`` is the process ID of the container's first
        process.
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
        """Tell the watch daemon to stop watching a sandbox.

        Raises SandboxError if this fails although the daemon is running.
        """
        try:
            self._ask(unwatch=name)
        except SandboxError:
            if self.is_alive():
                raise

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Prevent ``discard`` from closing the dirty flags while the ``with`` block runs."""
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
        """Return the next line from the watch daemon. The line is incomplete or empty if the daemon has died."""
        answer = self._connection.recv(RECEIVE_BYTES)
        while answer and not answer.endswith(b"\n") and (more := self._connection.recv(RECEIVE_BYTES)):
            answer += more
        return answer

    def discard(self) -> int:
        """Kill a watch daemon that has failed, and return its exit status.

        The dirty flags remain open as long as a sandbox uses them.
        """
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
        """Close the connection to the watch daemon, and wait until the daemon's process has ended."""
        self._connection.close()
        with suppress(KeyboardInterrupt):  # a second Ctrl-C changes nothing: the daemon ends by itself
            self._process.wait()

    def close(self) -> None:
        """End the watch daemon and close the dirty flags. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._end_process()
        self._flags.close()


@dataclass
class DaemonSupervisor:
    """Starts the lab's watch daemon at the first use, and starts a new one if the daemon has died."""

    _client: DaemonClient | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> DaemonClient:
        """Start the watch daemon if it isn't running, and return its client.

        Raises SandboxError if the daemon doesn't start.
        """
        with self._lock:
            if self._client is not None and not self._client.is_alive():
                dead, self._client = self._client, None
                log.warning("the watch daemon died (exit status %d): starting another", dead.discard())
            if self._client is None:
                self._client = DaemonClient()
            return self._client


_supervisor = DaemonSupervisor()


def daemon_client() -> DaemonClient:
    """Start this process's watch daemon if it isn't running, and return its client.

    Raises SandboxError if the daemon doesn't start.
    """
    return _supervisor.client()
