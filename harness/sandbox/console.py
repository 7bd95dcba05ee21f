"""The lab's connection to a sandbox's console, the container's first process (sandbox_images/console/console.c).

The lab sends commands to the console and receives their results. The task program in the container sends questions
through the console, and the lab answers them. An agent that is root may have forged whatever arrives here, so arriving
data is limited in size, checked, and never used as evidence.
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
    """What a command wrote to one stream, either standard output or standard error.

    If the output was too long, only its first part (``head``) and last part (``tail``) are kept, and ``cut`` is the
    number of bytes left out between them.
    """

    head: bytes = b""
    tail: bytes = b""
    cut: int = 0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of one command.

    If a signal ended the command, ``exit_code`` is the signal's number with a minus sign. ``exit_code`` is None if the
    machine stopped first, or if the command was killed after its time limit and still didn't end. ``failed_to_start``
    is the reason why the command didn't start, or None if it did.
    """

    exit_code: int | None
    stdout: Output = Output()
    stderr: Output = Output()
    timed_out: bool = False
    failed_to_start: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run: its arguments, user, group, working folder, environment and time limit.

    ``env`` is the whole environment, as "NAME=value": the command inherits no other variables.
    """

    argv: tuple[str, ...]
    uid: int
    gid: int
    cwd: str
    env: tuple[str, ...]
    limit_s: float

    def encode(self) -> bytes:
        """Encode the command as the console expects it.

        Raises ValueError if an argument or variable contains a NUL byte, which the kernel doesn't allow.
        """
        words = [str(self.uid), str(self.gid), self.cwd, str(len(self.env)), *self.env, *self.argv]
        text = "\0".join(words) + "\0"
        if text.count("\0") != len(words):
            raise ValueError("a command can't hold a NUL byte")
        return text.encode(errors="replace")


class Console(asyncio.Protocol):
    """A connection to one container's console; ``lost`` is set as soon as the connection has ended.

    Data is parsed as soon as it arrives, which is faster than using a StreamReader.
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
        """Wait at most ``limit_s`` until the console has reported that it runs.

        Raises SandboxError if the console hasn't reported in this time.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._greeted.wait()
        if not self._ready:
            raise SandboxError("the sandbox's console did not start")

    async def run(self, command: Command) -> CommandResult:
        """Run one command and return its result. After ``command.limit_s``, kill all processes of its session.

        Raises LabError if, while the command ran, the lab failed to answer a question of the task program.
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
        """Cancel the answers that are still being prepared, and close the connection."""
        for task in self._answering.values():
            task.cancel()
        await asyncio.gather(*self._answering.values(), return_exceptions=True)
        self._stream.close()
        await self._closed.wait()

    def _send(self, kind: bytes, number: int, payload: bytes) -> None:
        if not self.lost.is_set():
            self._stream.write(_HEADER.pack(kind, number, len(payload)) + payload)

    def data_received(self, data: bytes) -> None:
        """Parse data from the engine, which may arrive in pieces of any length."""
        if self.lost.is_set():
            return
        self._received += data
        try:
            self._parse_stream(self._received)
        except SandboxError:
            self._end()  # a process inside forged frames

    def connection_lost(self, error: Exception | None) -> None:
        """End all running commands without an exit code, because the connection has ended."""
        self._end()
        self._closed.set()

    def _end(self) -> None:
        self.lost.set()
        self._greeted.set()
        for result in self._waiting.values():
            if not result.done():
                result.set_result(CommandResult(exit_code=None))

    def _parse_stream(self, received: bytearray) -> None:
        """Remove the complete messages from ``received``, and handle the console's frames in them.

        The engine wraps a container's output in messages that say whether it is standard output or standard error. The
        console sends frames on standard output only, so messages with standard error are dropped.
        """
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
        """Remove the complete frames from the start of ``frames``, and handle each of them.

        Raises SandboxError if a frame is too long.
        """
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
    """Parse the payload of the console's frame that reports the end of a command.

    Raises SandboxError if the lengths in the payload are wrong.
    """
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
    """Parse the output of one stream, starting at ``offset``, and return it with the offset of its end."""
    total, head_size = struct.unpack_from(">QI", payload, offset)
    head = payload[offset + 12 : offset + 12 + head_size]
    offset += 12 + head_size
    (tail_size,) = struct.unpack_from(">I", payload, offset)
    tail = payload[offset + 4 : offset + 4 + tail_size]
    return Output(head, tail, max(0, total - len(head) - len(tail))), offset + 4 + tail_size
