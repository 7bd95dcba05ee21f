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
from harness.judging.evidence import Opening
from harness.process.environment import without_keys
from harness.sandbox.observe.dirty_flags import SlateReader
from harness.sandbox.observe.overlay import LayersLook
from harness.sandbox.observe.protocol import EyeAnswer, Happened
from harness.sandbox.protocol import MachineSpec

ANSWER_BYTES = 1 << 16  # taken at once
Ask = Callable[..., EyeAnswer]


@dataclass(frozen=True)
class Told:
    """What one sandbox's watched files went through, as far as the eye was told; ``place``: its own on the slate."""

    ask: Ask
    name: str
    nothing: Happened
    slate: SlateReader
    place: int

    def happened(self) -> Happened:
        """What happened since this was last asked."""
        if self.slate.quiet(self.place):
            return self.nothing
        happened = self.ask(take=self.name).happened
        if happened is None:
            raise SandboxError("the machine is no longer watched")
        return happened

    def openings(self) -> tuple[Opening, ...] | None:
        """Who opened them so far, or None where nobody could be held."""
        return self.ask(openings=self.name).openings


class FileEvents:
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
        self._slate = SlateReader(self._line)
        self._turn, self._ids = threading.Lock(), itertools.count(1)
        atexit.register(self.close)

    @contextmanager
    def watching(
        self, look: LayersLook, merged: str, spec: MachineSpec, *, container: str, first: int
    ) -> Iterator[Told]:
        """Watch what the spec says while the block runs. To be entered before anything in the container can have moved.

        ``first`` is the container's first process: what it may, all others may at most.
        """
        name = str(next(self._ids))
        where = {"merged": merged, "upper": str(look.upper), "lowers": look.lowers}
        what = {"paths": spec.watched, "programs": spec.programs, "container": container, "first": first}
        with self._slate.place() as place:
            try:
                self._ask(watch=name, place=place, **where, **what)
                yield Told(self._ask, name, Happened(alone=frozenset(spec.watched)), self._slate, place)
            finally:
                self._ask(drop=name)

    def _ask(self, **request: object) -> EyeAnswer:
        with self._turn:
            try:
                self._line.sendall(msgspec.json.encode(request) + b"\n")
                answer = EyeAnswer.model_validate_json(self._received())
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
def file_events() -> FileEvents:
    """The process's one, started when it is first needed."""
    return FileEvents()
