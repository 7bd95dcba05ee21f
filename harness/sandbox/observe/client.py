"""What happens to watched files between two looks: the lab's side of the eye (harness/sandbox/observe/daemon.py)."""

from __future__ import annotations

import atexit
import itertools
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import msgspec

from harness.errors import SandboxError
from harness.judging.evidence import FileAccess
from harness.process.environment import without_keys
from harness.sandbox.observe.dirty_flags import DirtyFlagsReader
from harness.sandbox.observe.overlay import OverlayReader
from harness.sandbox.observe.protocol import DaemonReply, NewEvents
from harness.sandbox.protocol import MachineSpec

ANSWER_BYTES = 1 << 16  # taken at once
Ask = Callable[..., DaemonReply]


@dataclass(frozen=True)
class EventSource:
    """What one sandbox's watched files went through, as far as the eye was told; ``place``: its own on the slate."""

    ask: Ask
    name: str
    nothing: NewEvents
    flags: DirtyFlagsReader
    slot: int

    def new_events(self) -> NewEvents:
        """What happened since this was last asked."""
        if self.flags.quiet(self.slot):
            return self.nothing
        new_events = self.ask(take=self.name).new_events
        if new_events is None:
            raise SandboxError("the machine is no longer watched")
        return new_events

    def accesses(self) -> tuple[FileAccess, ...] | None:
        """Who opened them so far, or None where nobody could be held."""
        return self.ask(accesses=self.name).accesses


class DaemonClient:
    """The process's one eye. Safe to ask from several threads."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        with theirs:
            self._eye = subprocess.Popen(
                [sys.executable, "-m", "harness.sandbox.observe.daemon"],
                stdin=theirs.fileno(),
                env=without_keys(),
                start_new_session=True,  # Ctrl-C is for the lab, which still has questions
            )
        self._slate = DirtyFlagsReader(self._line)
        self._turn, self._ids = threading.Lock(), itertools.count(1)
        atexit.register(self.close)

    @contextmanager
    def watching(
        self, reader: OverlayReader, merged: str, spec: MachineSpec, *, container: str, first: int
    ) -> Iterator[EventSource]:
        """Watch what the spec says while the block runs. To be entered before anything in the container can have moved.

        ``first`` is the container's first process: what it may, all others may at most.
        """
        name = str(next(self._ids))
        where = {"merged": merged, "upper": str(reader.upper), "lowers": reader.lowers}
        what = {"paths": spec.watched, "programs": spec.programs, "container": container, "first": first}
        with self._slate.slot() as slot:
            try:
                self._ask(watch=name, slot=slot, **where, **what)
                yield EventSource(self._ask, name, NewEvents(one_process=frozenset(spec.watched)), self._slate, slot)
            finally:
                self._ask(drop=name)

    def _ask(self, **request: object) -> DaemonReply:
        with self._turn:
            try:
                self._line.sendall(msgspec.json.encode(request) + b"\n")
                answer = DaemonReply.model_validate_json(self._received())
            except (OSError, ValueError) as error:
                raise SandboxError("the process that watches for file events is gone") from error
        if answer.failed is not None:
            raise SandboxError(f"the host doesn't let the lab watch files: {answer.failed}")
        return answer

    def _received(self) -> bytes:
        """One answer; less than one where the eye is gone."""
        answer = self._line.recv(ANSWER_BYTES)
        while answer and not answer.endswith(b"\n") and (more := self._line.recv(ANSWER_BYTES)):
            answer += more
        return answer

    def close(self) -> None:
        """End the eye."""
        self._line.close()
        with suppress(KeyboardInterrupt):  # an impatient one more: it has been told to end, and does
            self._eye.wait()
        self._slate.close()


@cache
def daemon_client() -> DaemonClient:
    """The process's one, started when it is first needed."""
    return DaemonClient()
