"""The lab's end of a sandbox's console, the container's first process (sandbox_images/console/console.c).

The lab sends commands and receives their results; the task program sends questions and receives answers. An agent
that is root may have forged what arrives here, so it is bounded, checked and never used as evidence.
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
MAX_QUESTIONS = 64  # under way at once; further ones get an empty answer
_STREAM_HEADER = struct.Struct(">BxxxI")
_STDOUT = 1


@dataclass(frozen=True, slots=True)
class Output:
    """A command's output on one stream: all of it, or its head and tail; ``cut`` bytes between them are left out."""

    head: bytes = b""
    tail: bytes = b""
    cut: int = 0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """One finished command. ``exit_code`` is negative for a signal, None where the machine went down meanwhile."""

    exit_code: int | None
    stdout: Output = Output()
    stderr: Output = Output()
    timed_out: bool = False
    failed_to_start: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command line with the user, group and folder to run it in; its environment is exactly ``env``."""

    argv: tuple[str, ...]
    uid: int
    gid: int
    cwd: str
    env: tuple[str, ...]
    limit_s: float

    def encode(self) -> bytes:
        """Encode the command for the console. Raises ValueError for a NUL byte, which no argument can hold."""
        words = [str(self.uid), str(self.gid), self.cwd, str(len(self.env)), *self.env, *self.argv]
        text = "\0".join(words) + "\0"
        if text.count("\0") != len(words):
            raise ValueError("a command can't hold a NUL byte")
        return text.encode(errors="replace")


class Console(asyncio.Protocol):
    """A connection to one container's console; ``lost`` is set when the stream ends, for whatever reason.

    Data is parsed on arrival, without a StreamReader, whose task would have to be woken for each piece.
    """

    KILL_TIMEOUT_S = 3.0

    def __init__(self, stream: asyncio.Transport, answer: Answer) -> None:
        self.lost, self._closed = asyncio.Event(), asyncio.Event()
        self._stream, self._answer = stream, answer
        self._received, self._frames = bytearray(), bytearray()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[CommandResult | None]] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._greeted, self._ready = asyncio.Event(), False  # the greeting has come, or never will
        self._failure: LabError | None = None
        stream.set_protocol(self)

    async def ready(self, limit_s: float) -> None:
        """Wait for the console's greeting. Raises SandboxError where it doesn't come in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._greeted.wait()
        if not self._ready:
            raise SandboxError("the sandbox's console did not start")

    async def run(self, command: Command) -> CommandResult:
        """Run one command; after its ``limit_s``, kill its whole session.

        Raises LabError where the lab failed to answer a question of the task program meanwhile.
        """
        try:
            request = command.encode()
        except ValueError as error:
            return CommandResult(exit_code=126, failed_to_start=str(error))
        number, loop = next(self._ids), asyncio.get_running_loop()
        in_time: asyncio.Future[CommandResult | None] = loop.create_future()
        late: asyncio.Future[CommandResult | None] = loop.create_future()

        def expire() -> None:
            if not in_time.done():
                self._waiting[number] = late
                in_time.set_result(None)

        self._waiting[number] = in_time
        timer = loop.call_later(command.limit_s, expire)  # costs a third of asyncio.wait_for
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
                async with asyncio.timeout(self.KILL_TIMEOUT_S):
                    if result := await late:
                        return CommandResult(result.exit_code, result.stdout, result.stderr, timed_out=True)
            return CommandResult(exit_code=None, timed_out=True)
        finally:
            timer.cancel()
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Cancel answers under way and close the connection."""
        for task in self._answering.values():
            task.cancel()
        await asyncio.gather(*self._answering.values(), return_exceptions=True)
        self._stream.close()
        await self._closed.wait()

    def _send(self, kind: bytes, number: int, payload: bytes) -> None:
        if not self.lost.is_set():
            self._stream.write(_HEADER.pack(kind, number, len(payload)) + payload)

    def data_received(self, data: bytes) -> None:
        """Parse data from the engine, which may be cut anywhere."""
        if self.lost.is_set():
            return
        self._received += data
        try:
            self._parse_stream(self._received)
        except SandboxError:
            self._end()  # a process inside forged frames

    def connection_lost(self, error: Exception | None) -> None:
        """End all commands: the machine went down or the lab closed the connection; the engine knows which."""
        self._end()
        self._closed.set()

    def _end(self) -> None:
        self.lost.set()
        self._greeted.set()
        for result in self._waiting.values():
            if not result.done():
                result.set_result(CommandResult(exit_code=None))

    def _parse_stream(self, received: bytearray) -> None:
        """Remove the engine's complete pieces, and handle the frames in those of standard output."""
        while len(received) >= _STREAM_HEADER.size:
            stream, size = _STREAM_HEADER.unpack_from(received)
            end = _STREAM_HEADER.size + size
            if len(received) < end:
                return
            if stream == _STDOUT:
                self._frames += received[_STREAM_HEADER.size : end]
            del received[:end]
            self._parse_frames(self._frames)

    def _parse_frames(self, frames: bytearray) -> None:
        """Remove and handle the complete frames at the front. Raises SandboxError for one that is too long."""
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
        result = self._waiting.get(number)
        if kind == b"H":
            self._ready = True
            self._greeted.set()
        elif kind == b"Q":
            if len(self._answering) >= MAX_QUESTIONS:
                self._send(b"A", number, b"")
                return
            line = payload.decode(errors="backslashreplace")
            task = self._answering[number] = asyncio.create_task(self._reply(number, line))
            task.add_done_callback(lambda _: self._answering.pop(number, None))
        elif kind == b"X" and result and not result.done():
            result.set_result(_parse_result(payload))
        elif kind == b"F" and result and not result.done():
            reason = payload.decode(errors="backslashreplace")
            result.set_result(CommandResult(exit_code=126, failed_to_start=reason))

    async def _reply(self, number: int, line: str) -> None:
        answer = b""
        try:
            answer = await self._answer(line)
        except LabError as error:
            self._failure = error
        finally:
            self._send(b"A", number, answer)


def _parse_result(payload: bytes) -> CommandResult:
    """Parse an exit frame. Raises SandboxError where its lengths don't add up."""
    try:
        (status,) = struct.unpack_from(">i", payload)
        stdout, offset = _parse_output(payload, 4)
        stderr, offset = _parse_output(payload, offset)
    except struct.error as error:
        raise SandboxError("the console sent a malformed result") from error
    if offset != len(payload):
        raise SandboxError("the console sent a result whose lengths don't add up")
    code = -(status & 0x7F) if status & 0x7F else status >> 8 & 0xFF
    return CommandResult(code, stdout, stderr)


def _parse_output(payload: bytes, offset: int) -> tuple[Output, int]:
    """Parse one stream's output at an offset; return it and the offset behind it."""
    total, head_size = struct.unpack_from(">QI", payload, offset)
    head = payload[offset + 12 : offset + 12 + head_size]
    offset += 12 + head_size
    (tail_size,) = struct.unpack_from(">I", payload, offset)
    tail = payload[offset + 4 : offset + 4 + tail_size]
    return Output(head, tail, max(0, total - len(head) - len(tail))), offset + 4 + tail_size
