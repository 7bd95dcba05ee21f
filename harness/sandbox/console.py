"""The lab's end of a sandbox's console (sandbox_images/console/console.c is the other).

Commands go in and their results come out; questions come out and their answers go in. What arrives here may have
been written by the agent where the agent is root: it is transport, bounded and checked, and never evidence.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from harness.errors import LabError, SandboxError

Answer = Callable[[str], Awaitable[bytes]]

_HEADER = struct.Struct(">cII")
_MAX_FRAME = 1 << 20
QUESTIONS = 64  # under way at once; whoever asks more gets no answer
_STREAM_HEADER = struct.Struct(">BxxxI")
_STDOUT = 1


@dataclass(frozen=True, slots=True)
class Output:
    """What a command wrote to one stream: all of it, or its head and tail and how much was cut between them."""

    head: bytes = b""
    tail: bytes = b""
    cut: int = 0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """One finished command. ``exit_code`` is negative for a signal, None when the machine went down under it."""

    exit_code: int | None
    stdout: Output = Output()
    stderr: Output = Output()
    timed_out: bool = False
    failed_to_start: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """What to run and as whom. The environment is exactly ``env``."""

    argv: tuple[str, ...]
    uid: int
    gid: int
    cwd: str
    env: tuple[str, ...]
    limit_s: float

    def encode(self) -> bytes:
        """As the console reads it; a word with a NUL byte in it can't be sent to any program."""
        words = [str(self.uid), str(self.gid), self.cwd, str(len(self.env)), *self.env, *self.argv]
        text = "\0".join(words) + "\0"
        if text.count("\0") != len(words):
            raise ValueError("a command can't hold a NUL byte")
        return text.encode(errors="replace")


class Console(asyncio.Protocol):
    """One attached console. ``lost`` is set when its stream ends, whatever ended it.

    What arrives is taken as it comes, without a reader in between that would have to be woken for each piece.
    """

    KILL_PATIENCE_S = 3.0

    def __init__(self, stream: asyncio.Transport, answer: Answer) -> None:
        self.lost, self._hung_up = asyncio.Event(), asyncio.Event()
        self._stream, self._answer = stream, answer
        self._came, self._frames = bytearray(), bytearray()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[CommandResult | None]] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._heard, self._ready = asyncio.Event(), False
        self._failure: LabError | None = None
        stream.set_protocol(self)

    async def ready(self, limit_s: float) -> None:
        """Wait until the console has said hello. Raises SandboxError when it doesn't."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._heard.wait()
        if not self._ready:
            raise SandboxError("the sandbox's console did not start")

    async def run(self, command: Command) -> CommandResult:
        """Run one command; past its limit it is killed with its whole session.

        Raises LabError when the lab failed to answer a question that the command asked.
        """
        try:
            request = command.encode()
        except ValueError as error:
            return CommandResult(exit_code=126, failed_to_start=str(error))
        number, loop = next(self._ids), asyncio.get_running_loop()
        in_time: asyncio.Future[CommandResult | None] = loop.create_future()
        late: asyncio.Future[CommandResult | None] = loop.create_future()

        def time_is_up() -> None:
            if not in_time.done():
                self._waiting[number] = late
                in_time.set_result(None)

        self._waiting[number] = in_time
        clock = loop.call_later(command.limit_s, time_is_up)  # a third of what asyncio.wait_for takes
        try:
            self._send(b"R", number, request)
            if self.lost.is_set():
                return CommandResult(exit_code=None)
            if finished := await in_time:
                if self._failure:
                    raise self._failure
                return finished
            self._send(b"K", number, b"")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.KILL_PATIENCE_S):
                    if result := await late:
                        return CommandResult(result.exit_code, result.stdout, result.stderr, timed_out=True)
            return CommandResult(exit_code=None, timed_out=True)
        finally:
            clock.cancel()
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Hang up."""
        for task in self._answering.values():
            task.cancel()
        await asyncio.gather(*self._answering.values(), return_exceptions=True)
        self._stream.close()
        await self._hung_up.wait()

    def _send(self, kind: bytes, number: int, payload: bytes) -> None:
        if not self.lost.is_set():
            self._stream.write(_HEADER.pack(kind, number, len(payload)) + payload)

    def data_received(self, data: bytes) -> None:
        """Take what the engine hands on, in pieces that begin and end anywhere."""
        if self.lost.is_set():
            return
        self._came += data
        try:
            self._take_stream(self._came)
        except SandboxError:
            self._end()  # someone inside broke the stream

    def connection_lost(self, error: Exception | None) -> None:
        """The machine went down, or the lab hung up: the engine knows which."""
        self._end()
        self._hung_up.set()

    def _end(self) -> None:
        self.lost.set()
        self._heard.set()
        for done in self._waiting.values():
            if not done.done():
                done.set_result(CommandResult(exit_code=None))

    def _take_stream(self, came: bytearray) -> None:
        """Remove the whole pieces at the front, and take those of the console's own output."""
        while len(came) >= _STREAM_HEADER.size:
            stream, size = _STREAM_HEADER.unpack_from(came)
            end = _STREAM_HEADER.size + size
            if len(came) < end:
                return
            if stream == _STDOUT:
                self._frames += came[_STREAM_HEADER.size : end]
            del came[:end]
            self._take(self._frames)

    def _take(self, frames: bytearray) -> None:
        """Handle and remove the whole frames at the front."""
        while len(frames) >= _HEADER.size:
            kind, number, size = _HEADER.unpack_from(frames)
            if size > _MAX_FRAME:
                raise SandboxError("the console sent a frame that is too long")
            if len(frames) < _HEADER.size + size:
                return
            payload = bytes(frames[_HEADER.size : _HEADER.size + size])
            del frames[: _HEADER.size + size]
            self._handle(kind, number, payload)

    def _handle(self, kind: bytes, number: int, payload: bytes) -> None:
        done = self._waiting.get(number)
        if kind == b"H":
            self._ready = True
            self._heard.set()
        elif kind == b"Q":
            if len(self._answering) >= QUESTIONS:
                self._send(b"A", number, b"")
                return
            line = payload.decode(errors="backslashreplace")
            task = self._answering[number] = asyncio.create_task(self._reply(number, line))
            task.add_done_callback(lambda _: self._answering.pop(number, None))
        elif kind == b"X" and done and not done.done():
            done.set_result(_result(payload))
        elif kind == b"F" and done and not done.done():
            reason = payload.decode(errors="backslashreplace")
            done.set_result(CommandResult(exit_code=126, failed_to_start=reason))

    async def _reply(self, number: int, line: str) -> None:
        answer = b""
        try:
            answer = await self._answer(line)
        except LabError as error:
            self._failure = error
        finally:
            self._send(b"A", number, answer)


def _result(payload: bytes) -> CommandResult:
    """Read an exit frame. Raises SandboxError where its lengths don't add up."""
    try:
        (status,) = struct.unpack_from(">i", payload)
        stdout, at = _output(payload, 4)
        stderr, at = _output(payload, at)
    except struct.error as error:
        raise SandboxError("the console sent a malformed result") from error
    if at != len(payload):
        raise SandboxError("the console sent a result whose lengths don't add up")
    code = -(status & 0x7F) if status & 0x7F else status >> 8 & 0xFF
    return CommandResult(code, stdout, stderr)


def _output(payload: bytes, at: int) -> tuple[Output, int]:
    total, head_size = struct.unpack_from(">QI", payload, at)
    head = payload[at + 12 : at + 12 + head_size]
    at += 12 + head_size
    (tail_size,) = struct.unpack_from(">I", payload, at)
    tail = payload[at + 4 : at + 4 + tail_size]
    return Output(head, tail, max(0, total - len(head) - len(tail))), at + 4 + tail_size
