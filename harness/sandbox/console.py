"""Connects the lab to the console, which is the first process (PID 1) in a sandbox's container.

The lab sends commands to the console and receives their results. The task program in the container sends questions to
the lab through the console, and the lab answers them. An agent with root privileges can forge everything that the lab
receives. Therefore received data is limited in size, checked, and never used as evidence. The console's source code is
sandbox_images/console/console.c.
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
    """The output of a command on one stream, either standard output or standard error.

    ``head`` is the first part of the output and ``tail`` is the last part. ``cut`` is the number of bytes omitted
    between these parts, or 0 if the output is complete.
    """

    head: bytes = b""
    tail: bytes = b""
    cut: int = 0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of one command.

    ``exit_code`` is the command's exit code, or the negative signal number if a signal ended the command. ``exit_code``
    is None if the connection to the container ended first, or if the command couldn't be killed after its time limit.
    ``timed_out`` is true if the command reached its time limit. ``failed_to_start`` is the reason why the command
    couldn't be started, or None if it was started.
    """

    exit_code: int | None
    stdout: Output = Output()
    stderr: Output = Output()
    timed_out: bool = False
    failed_to_start: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run, with its arguments, user, group, working folder, environment and time limit.

    Each string in ``env`` has the form "NAME=value". The command gets only these environment variables.
    """

    argv: tuple[str, ...]
    uid: int
    gid: int
    cwd: str
    env: tuple[str, ...]
    limit_s: float

    def encode(self) -> bytes:
        """Encode the command in the console's wire format.

        Raises ValueError if a part of the command contains a NUL byte.
        """
        words = [str(self.uid), str(self.gid), self.cwd, str(len(self.env)), *self.env, *self.argv]
        text = "\0".join(words) + "\0"
        if text.count("\0") != len(words):
            raise ValueError("a command can't hold a NUL byte")
        return text.encode(errors="replace")


class Console(asyncio.Protocol):
    """The lab's connection to the console of one container.

    The event ``lost`` is set when the connection has ended. Data is parsed as soon as it is received, which is faster
    than using a StreamReader.
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
        """Wait until the console reports that it is running, for at most ``limit_s`` seconds.

        Raises SandboxError if the time runs out or the connection ends.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._greeted.wait()
        if not self._ready:
            raise SandboxError("the sandbox's console did not start")

    async def run(self, command: Command) -> CommandResult:
        """Run one command and return its result.

        If the command is still running after ``command.limit_s`` seconds, all processes of the command's session are
        killed. Raises LabError if the lab failed to answer a question of the task program.
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
        """Cancel all unfinished answers to the task program, and close the connection to the console."""
        for task in self._answering.values():
            task.cancel()
        await asyncio.gather(*self._answering.values(), return_exceptions=True)
        self._stream.close()
        await self._closed.wait()

    def _send(self, kind: bytes, number: int, payload: bytes) -> None:
        if not self.lost.is_set():
            self._stream.write(_HEADER.pack(kind, number, len(payload)) + payload)

    def data_received(self, data: bytes) -> None:
        """Parse bytes received from the container engine. A message may be split over several calls."""
        if self.lost.is_set():
            return
        self._received += data
        try:
            self._parse_stream(self._received)
        except SandboxError:
            self._end()  # a process inside forged frames

    def connection_lost(self, error: Exception | None) -> None:
        """Mark the connection as lost, and let each waiting ``run`` call return a result without an exit code."""
        self._end()
        self._closed.set()

    def _end(self) -> None:
        self.lost.set()
        self._greeted.set()
        for result in self._waiting.values():
            if not result.done():
                result.set_result(CommandResult(exit_code=None))

    def _parse_stream(self, received: bytearray) -> None:
        """Remove all complete messages from ``received``, and process the console's frames in them.

        The container engine passes on the console's output in messages, and labels each message as standard output or
        standard error. The console sends its frames on standard output only, so messages labelled as standard error are
        discarded.
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
        """Remove all complete frames from ``frames``, and process each of them.

        ``frames`` contains bytes that the console has sent. Raises SandboxError if a frame is longer than
        ``_MAX_FRAME`` bytes.
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
    """Parse the payload of the frame that the console sends when a command has ended.

    Raises SandboxError if the payload is malformed.
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
    """Parse the output of one stream, which starts at ``offset`` in ``payload``.

    Returns the output and the offset of its end.
    """
    total, head_size = struct.unpack_from(">QI", payload, offset)
    head = payload[offset + 12 : offset + 12 + head_size]
    offset += 12 + head_size
    (tail_size,) = struct.unpack_from(">I", payload, offset)
    tail = payload[offset + 4 : offset + 4 + tail_size]
    return Output(head, tail, max(0, total - len(head) - len(tail))), offset + 4 + tail_size
