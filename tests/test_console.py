from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import SandboxError
from harness.sandbox.console import Answer, Command, CommandResult, Console, Output
from tests.builders import asynchronous, law
from tests.fake_sandbox import no_answer

HEADER = struct.Struct(">cII")
TOO_LONG = HEADER.pack(b"X", 1, (1 << 20) + 1)
FINE = b"\0\0\0\0" + 2 * (b"\0" * 16)


def command(*argv: str, limit_s: float = 5) -> Command:
    """Make a command of the agent's."""
    return Command(argv or ("true",), 1000, 1000, "/home/user", ("LANG=C.UTF-8",), limit_s)


def frame(kind: bytes, number: int, payload: bytes = b"") -> bytes:
    """Compose a frame as the console in the container writes it."""
    return HEADER.pack(kind, number, len(payload)) + payload


def stream(data: bytes, which: int = 1) -> bytes:
    """Compose a piece of attached output: the engine's header with the stream's number, then the data."""
    return struct.pack(">BxxxI", which, len(data)) + data


def output(head: bytes = b"", tail: bytes = b"", total: int | None = None) -> bytes:
    """Compose one stream's output, as an exit frame holds it."""
    size = len(head) + len(tail) if total is None else total
    return struct.pack(">QI", size, len(head)) + head + struct.pack(">I", len(tail)) + tail


def ended(number: int = 1, status: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> bytes:
    """Compose the exit frame of a command."""
    return frame(b"X", number, struct.pack(">i", status) + (stdout or output()) + (stderr or output()))


@dataclass
class Wire:
    """A fake transport: records what the console sends, and delivers data to it."""

    protocol: asyncio.Protocol = field(default_factory=asyncio.Protocol)
    sent: bytearray = field(default_factory=bytearray)
    closed: bool = False
    _wrote: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, data: bytes) -> None:
        """Record data that the console sends."""
        self.sent += data
        self._wrote.set()

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Set the protocol that data is delivered to."""
        self.protocol = protocol

    def close(self) -> None:
        """Close the connection."""
        self.closed = True
        self.end()

    def end(self, error: Exception | None = None) -> None:
        """End the connection, as the engine does when the machine goes down."""
        self.protocol.connection_lost(error)

    def frames(self) -> list[tuple[bytes, int, bytes]]:
        """Return the frames that the console sent."""
        found, at = [], 0
        while at < len(self.sent):
            kind, number, size = HEADER.unpack_from(self.sent, at)
            at += HEADER.size + size
            found.append((kind, number, bytes(self.sent[at - size : at])))
        return found

    async def first(self, count: int) -> list[tuple[bytes, int, bytes]]:
        """Wait until the console has sent this many frames, and return them."""
        while len(self.frames()) < count:
            self._wrote.clear()
            await self._wrote.wait()
        return self.frames()

    def arrive(self, *frames: bytes) -> None:
        """Deliver frames to the console, each in a piece of its own."""
        for each in frames:
            self.protocol.data_received(stream(each))


@asynccontextmanager
async def connected(answer: Answer = no_answer) -> AsyncIterator[tuple[Console, Wire]]:
    """Yield a console and its fake transport, and close the console afterwards."""
    wire = Wire()
    console = Console(cast("asyncio.Transport", wire), answer)
    try:
        yield console, wire
    finally:
        await console.close()
    assert wire.closed


async def result_of(*chunks: bytes) -> CommandResult:
    """Run a command, deliver these pieces to the console, and return the command's result."""
    async with connected() as (console, wire):
        running = asyncio.create_task(console.run(command()))
        for chunk in chunks:
            await asyncio.sleep(0)
            wire.protocol.data_received(chunk)
        return await running


# ---- hello ----


@asynchronous
async def test_a_console_says_hello() -> None:
    """A console is ready once its greeting has arrived."""
    async with connected() as (console, wire):
        wire.arrive(frame(b"H", 0))
        await console.ready(5)


@asynchronous
async def test_a_silent_console_did_not_start() -> None:
    """A console without a greeting in time raises SandboxError."""
    async with connected() as (console, _):
        with pytest.raises(SandboxError, match="did not start"):
            await console.ready(0.01)


@asynchronous
async def test_a_console_that_ends_before_hello_did_not_start() -> None:
    """A stream that ends before the greeting raises SandboxError at once, not after the time limit."""
    async with connected() as (console, wire):
        wire.end()
        with pytest.raises(SandboxError, match="did not start"):
            await asyncio.wait_for(console.ready(60), 5)


# ---- commands and their results ----


@asynchronous
async def test_a_command_is_sent_word_for_word() -> None:
    """A command is sent as user, group, folder, environment and arguments, each ended by a NUL byte."""
    async with connected() as (console, wire):
        running = asyncio.create_task(console.run(command("bash", "-c", "printf 'a\nä'")))
        await asyncio.sleep(0)
        assert wire.frames() == [
            (b"R", 1, "1000\0001000\0/home/user\0001\0LANG=C.UTF-8\0bash\0-c\0printf 'a\nä'\0".encode())
        ]
        wire.arrive(ended())
        await running


@pytest.mark.parametrize(("status", "code"), [(0, 0), (0x0300, 3), (0xFF00, 255), (9, -9), (15, -15), (0x8B, -11)])
@asynchronous
async def test_a_wait_status_becomes_an_exit_code(status: int, code: int) -> None:
    """An exit gives its code, and a signal its negative number, with or without a core dump."""
    assert (await result_of(stream(ended(status=status)))).exit_code == code


@asynchronous
async def test_output_comes_back_whole() -> None:
    """Standard output and standard error are returned byte for byte, even where they aren't UTF-8."""
    raw = bytes(range(256))
    result = await result_of(stream(ended(stdout=output(raw), stderr=output(b"no\xffe\0\n"))))
    assert result == CommandResult(0, Output(raw), Output(b"no\xffe\0\n"))


@asynchronous
async def test_cut_output_says_how_much_is_missing() -> None:
    """Long output is returned as its head, its tail and the number of bytes between them."""
    result = await result_of(stream(ended(stdout=output(b"head", b"tail", total=1_000_000))))
    assert result.stdout == Output(b"head", b"tail", cut=999_992)


@asynchronous
async def test_both_outputs_may_be_cut() -> None:
    """Standard error is parsed correctly after a standard output that was cut."""
    long = output(b"head", b"tail", total=100)
    result = await result_of(stream(ended(stdout=long, stderr=long)))
    assert result.stdout == result.stderr == Output(b"head", b"tail", cut=92)


@asynchronous
async def test_a_total_below_what_came_cuts_nothing() -> None:
    """A total smaller than the received output gives 0 missing bytes, not a negative number."""
    assert (await result_of(stream(ended(stdout=output(b"head", total=0))))).stdout.cut == 0


@asynchronous
async def test_a_command_that_could_not_start_says_why() -> None:
    """A command that couldn't start has the console's reason, with invalid UTF-8 escaped."""
    result = await result_of(stream(frame(b"F", 1, b"fork: no \xff")))
    assert (result.exit_code, result.failed_to_start) == (126, "fork: no \\xff")


@asynchronous
async def test_a_nul_byte_is_refused() -> None:
    """A command with a NUL byte isn't sent; its result gives the reason."""
    async with connected() as (console, wire):
        result = await console.run(command("bash", "-c", "echo a\0b"))
        assert (result.exit_code, result.failed_to_start) == (126, "a command can't hold a NUL byte")
        assert not wire.sent


@asynchronous
async def test_characters_without_bytes_are_sent_as_question_marks() -> None:
    """Half a surrogate pair, which UTF-8 can't encode, is sent as a question mark."""
    assert command("\ud800").encode().endswith(b"?\0")


@asynchronous
async def test_results_find_their_commands() -> None:
    """Results that arrive in another order go to the commands of their numbers."""
    async with connected() as (console, wire):
        first, second = (asyncio.create_task(console.run(command())) for _ in range(2))
        await asyncio.sleep(0)
        wire.arrive(ended(2, status=0x0200), ended(1, status=0x0100))
        assert [(await each).exit_code for each in (first, second)] == [1, 2]


@asynchronous
async def test_a_result_for_nobody_is_dropped() -> None:
    """A result for an unknown command and a second result for a known one are ignored."""
    result = await result_of(stream(ended(77, status=0x0500) + ended(1) + ended(1, status=0x0900)))
    assert result.exit_code == 0


# ---- frames ----


@law
@given(st.lists(st.integers(1, 60), max_size=8))
def test_a_frame_may_come_in_any_pieces(cuts: list[int]) -> None:
    """The result is the same however the engine and the connection cut the bytes into pieces."""
    whole, at, pieces = ended(stdout=output(b"hello")), 0, []
    for cut in cuts:
        pieces.append(stream(whole[at : at + cut]))
        at += cut
    rest = b"".join((*pieces, stream(whole[at:])))

    async def deliver() -> CommandResult:
        return await result_of(*(rest[i : i + 7] for i in range(0, len(rest), 7)))

    assert asyncio.run(deliver()).stdout.head == b"hello"


@asynchronous
async def test_one_piece_may_hold_two_frames() -> None:
    """All complete frames in a piece are handled, and an incomplete one is kept for the next piece."""
    async with connected() as (console, wire):
        first, second = (asyncio.create_task(console.run(command())) for _ in range(2))
        await asyncio.sleep(0)
        whole = ended(1) + ended(2, status=0x0400)
        wire.arrive(whole[:-3], whole[-3:])
        assert [(await each).exit_code for each in (first, second)] == [0, 4]


@asynchronous
async def test_only_standard_output_speaks() -> None:
    """Frames on the first process's standard error are ignored."""
    result = await result_of(stream(ended(status=0x0900), which=2), stream(ended()))
    assert result.exit_code == 0


@asynchronous
async def test_an_unknown_kind_of_frame_is_passed_over() -> None:
    """A frame of an unknown kind is ignored."""
    assert (await result_of(stream(frame(b"Z", 1, b"?") + ended()))).exit_code == 0


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(TOO_LONG, id="too long a frame"),
        pytest.param(frame(b"X", 1, b""), id="no status"),
        pytest.param(frame(b"X", 1, b"\0\0\0\0"), id="no output"),
        pytest.param(frame(b"X", 1, FINE[:-1]), id="a byte short"),
        pytest.param(frame(b"X", 1, b"\0\0\0\0" + struct.pack(">QI", 0, 1 << 31)), id="a head that isn't there"),
    ],
)
@asynchronous
async def test_a_broken_frame_ends_the_console(broken: bytes) -> None:
    """A malformed frame, which only the agent can have written, ends the console and its commands without an error."""
    async with connected() as (console, wire):
        running = asyncio.create_task(console.run(command()))
        await asyncio.sleep(0)
        wire.arrive(broken)
        assert (await running).exit_code is None
        assert console.lost.is_set()


@law
@given(st.binary(max_size=60))
def test_no_bytes_raise(junk: bytes) -> None:
    """Whatever bytes arrive, a command ends when the stream ends, without an error."""

    async def deliver() -> CommandResult:
        async with connected() as (console, wire):
            running = asyncio.create_task(console.run(command()))
            await asyncio.sleep(0)
            wire.arrive(junk)
            wire.end()
            return await running

    assert asyncio.run(deliver()).timed_out is False


# ---- the end of the stream ----


@asynchronous
async def test_a_lost_stream_ends_what_waits() -> None:
    """When the machine goes down, every running command ends without an exit code."""
    async with connected() as (console, wire):
        running = [asyncio.create_task(console.run(command())) for _ in range(3)]
        await asyncio.sleep(0)
        wire.arrive(ended()[:5])
        wire.end()
        assert [await each for each in running] == [CommandResult(None)] * 3


@asynchronous
async def test_a_broken_connection_is_a_lost_stream() -> None:
    """A connection error ends the running command without an exit code and raises nothing."""
    async with connected() as (console, wire):
        running = asyncio.create_task(console.run(command()))
        await asyncio.sleep(0)
        wire.end(ConnectionResetError())
        assert (await running).exit_code is None


@asynchronous
async def test_a_lost_console_runs_nothing() -> None:
    """A command on a lost console isn't sent, and ends at once without an exit code."""
    async with connected() as (console, wire):
        wire.end()
        await console.lost.wait()
        assert await console.run(command()) == CommandResult(None)
        assert not wire.sent


# ---- the time limit ----


@asynchronous
async def test_a_command_past_its_limit_is_killed() -> None:
    """A command over its time limit is killed, and its output so far is returned."""
    async with connected() as (console, wire):
        running = asyncio.create_task(console.run(command(limit_s=0.01)))
        assert (await wire.first(2))[1] == (b"K", 1, b"")
        wire.arrive(ended(status=9, stdout=output(b"so far")))
        assert await running == CommandResult(-9, Output(b"so far"), timed_out=True)


@asynchronous
async def test_a_command_that_can_not_be_killed_is_given_up() -> None:
    """A killed command whose result never arrives has timed out without an exit code."""
    async with connected() as (console, wire):
        console.KILL_TIMEOUT_S = 0.01
        assert await console.run(command(limit_s=0.01)) == CommandResult(None, timed_out=True)
        wire.arrive(ended())


# ---- questions ----


@asynchronous
async def test_a_question_gets_its_answer() -> None:
    """A question is answered under its number, even where it isn't valid UTF-8."""
    asked: list[str] = []

    async def answer(line: str) -> bytes:
        asked.append(line)
        return b"sWhat is 1 + 1?"

    async with connected(answer) as (_, wire):
        wire.arrive(frame(b"Q", 7, b"next"), frame(b"Q", 8, b"\xff"))
        assert await wire.first(2) == [(b"A", 7, b"sWhat is 1 + 1?"), (b"A", 8, b"sWhat is 1 + 1?")]
        assert asked == ["next", "\\xff"]


@asynchronous
async def test_a_slow_answer_holds_up_no_result() -> None:
    """Commands finish while a question still waits for its answer."""

    async def never(line: str) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with connected(never) as (console, wire):
        running = asyncio.create_task(console.run(command()))
        await asyncio.sleep(0)
        wire.arrive(frame(b"Q", 7, b"next"), ended())
        assert (await running).exit_code == 0


@asynchronous
async def test_hanging_up_leaves_nothing_behind() -> None:
    """A closed console leaves no task running."""
    hold = asyncio.Event()

    async def never(line: str) -> bytes:
        await hold.wait()
        return b""

    async with connected(never) as (console, wire):
        running = asyncio.create_task(console.run(command()))
        await asyncio.sleep(0)
        wire.arrive(frame(b"Q", 7, b"next"))
        await asyncio.sleep(0)
    with contextlib.suppress(asyncio.CancelledError):
        assert (await running).exit_code is None
    assert asyncio.all_tasks() == {asyncio.current_task()}
