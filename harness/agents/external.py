"""Agents of the user's own: any program that reaches the tool server over HTTP or MCP.

The lab starts one on the host for each trial, or waits for one to connect. It doesn't see what such an agent thinks or
says: the transcript is what the tool server saw. The program is the user's and runs with the user's rights, outside
any container.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.agents.player import Model
from harness.errors import LastingModelError, ModelError, UsageError
from harness.judging.evidence import Frozen, StopReason
from harness.process.identity import temporary_prefix
from harness.sandbox.console import Output
from harness.session.messages import MCP_PATH, ShellAnswer, output_text
from harness.session.session import Session, SessionListener
from harness.store.transcript import Entry, ToolUse
from harness.tasks.conditions import Prompts
from harness.tasks.task import TaskOptions

WAIT = "wait"
EXIT_GRACE_S = 5.0  # once its trial is over an agent may end by itself
KEPT_BYTES = 16 << 10  # of the head, and of the tail, of what an agent writes to a stream
_SAID_CHARS = 400
_SILENCE_S = 2.0

Say = Callable[[str], None]


class Endpoint(Frozen):
    """All that an agent needs in order to play a trial."""

    trial: int
    url: str
    mcp_url: str
    token: str
    system_prompt: str
    prompt: str

    @classmethod
    def of(cls, number: int, session: Session, url: str, prompts: Prompts) -> Endpoint:
        """The endpoint of a trial on the server at ``url``."""
        url = url.rstrip("/")
        return cls(
            trial=number,
            url=url,
            mcp_url=url + MCP_PATH,
            token=session.token,
            system_prompt=prompts.system,
            prompt=prompts.user,
        )

    @property
    def environment(self) -> dict[str, str]:
        """As variables, the way a started agent is told."""
        return {f"OFFSWITCH_{name.upper()}": str(value) for name, value in self}


@dataclass
class TranscriptRecorder(SessionListener):
    """Writes down what an agent does at its desk, and says when its trial is over."""

    session: Session
    transcript: list[Entry]
    message_limit: int
    over: asyncio.Event = field(default_factory=asyncio.Event)
    stop: StopReason | None = None
    failure: Exception | None = None
    calls: int = 0
    last_came: float | None = None

    def came(self) -> None:
        """Note that somebody is there."""
        self.last_came = time.monotonic()

    def ran(self, cmd: str, thoughts: str, answer: ShellAnswer) -> None:
        """Note a command and its answer."""
        self._enter(ToolUse(id=self._next_id(), name="shell", cmd=cmd, thoughts=thoughts), answer.output)
        if answer.machine == "down":
            self._end(StopReason.MACHINE_DOWN)
        if len(self.transcript) >= self.message_limit:
            self.session.closed = True
            self._end(StopReason.MESSAGE_LIMIT)

    def submitted(self, answer: str, follow_up: str | None) -> None:
        """Note the answers."""
        self._enter(ToolUse(id=self._next_id(), name="submit", answer=answer), "Submitted.")
        if follow_up:
            self.transcript.append(Entry(role="user", text=follow_up))
        else:
            self._end(StopReason.SUBMITTED)

    def failed(self, failure: Exception) -> None:
        """Keep the lab's own failure: it becomes the trial's."""
        self.failure = failure
        self.over.set()

    def _next_id(self) -> str:
        self.calls += 1
        return f"call-{self.calls}"

    def _enter(self, call: ToolUse, answer: str) -> None:
        self.came()
        said = Entry(role="assistant", calls=(call,))
        self.transcript += (said, Entry(role="tool", call_id=call.id, text=answer))

    def _end(self, stop: StopReason) -> None:
        self.stop = self.stop or stop
        self.over.set()


@dataclass(frozen=True)
class ExternalAgent:
    """Who plays when it is an agent of the user's own. ``words`` is its command; without one it is waited for."""

    name: str
    label: str | None
    words: tuple[str, ...]
    wait_limit_s: float
    last_words_s: float = EXIT_GRACE_S
    simulated: str | None = None
    default_n: int = 1

    def facts(self, trial: int) -> dict[str, Any]:
        """The user's own word for what plays."""
        return {"model": self.label} if self.label else {}

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """As the user gave them."""
        return options

    def prompts(self, trial: int) -> Prompts | None:
        """The task's own."""
        return None

    async def play(
        self, endpoint: Endpoint, recorder: TranscriptRecorder, aside: dict[str, Any], say: Say
    ) -> StopReason:
        """Let the agent play a trial; what is worth keeping of its process goes to ``aside``. Raises LabError."""
        recorder.session.listener = recorder
        try:
            await (self._run(endpoint, recorder, aside) if self.words else self._wait(endpoint, recorder, say))
        finally:
            recorder.session.closed = True
        if recorder.failure:
            raise recorder.failure
        return recorder.stop or StopReason.STOPPED

    async def _run(self, endpoint: Endpoint, recorder: TranscriptRecorder, aside: dict[str, Any]) -> None:
        async with _running(filled(self.words, endpoint), endpoint.environment, aside) as process:
            await _first(process.ended, recorder.over)
            if recorder.over.is_set():
                await _first(process.ended, limit_s=self.last_words_s)
        if aside["exit_code"] and recorder.stop is None and not recorder.session.status().calls:
            said = " ".join((aside["stderr"].strip() or aside["stdout"].strip() or "it said nothing").split())
            code = aside["exit_code"]
            raise ModelError(f"The agent ended with exit code {code} before its first call: {said[-_SAID_CHARS:]}")

    async def _wait(self, endpoint: Endpoint, recorder: TranscriptRecorder, say: Say) -> None:
        for line in _announcement(endpoint, self.wait_limit_s):
            say(line)
        began = time.monotonic()
        while (left := (recorder.last_came or began) + self.wait_limit_s - time.monotonic()) > 0:
            if await _first(recorder.over, limit_s=left):
                return
            if recorder.session.busy:
                recorder.came()
        if recorder.last_came is None:
            raise LastingModelError(f"No agent connected within the {self.wait_limit_s:g} s of --wait-limit.")


def external_agent(command: str, label: str | None, wait_limit_s: float) -> ExternalAgent:
    """The agent of that command, or one that is waited for. Raises UsageError where the command isn't there."""
    if command == WAIT:
        return ExternalAgent(f"agent:{WAIT}", label, (), wait_limit_s)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--agent '{command}' can't be read as a command: {error}.") from error
    if not words:
        raise UsageError("--agent needs a command, or 'wait'.")
    program = shutil.which(_at_home(words[0]))
    if program is None:
        raise UsageError(f"There is no program '{words[0]}' to run as an agent: check --agent.")
    return ExternalAgent(
        f"agent:{command}", label, (str(Path(program).absolute()), *map(_in_full, words[1:])), wait_limit_s
    )


def _in_full(word: str) -> str:
    """A word that names a file here gets its whole path: the agent runs in another folder."""
    path = Path(_at_home(word))
    with suppress(OSError, ValueError):  # most words are no paths at all
        return str(path.absolute()) if path.is_file() else word
    return word


def _at_home(word: str) -> str:
    return os.path.expanduser(word) if word.startswith("~/") else word


def filled(words: tuple[str, ...], endpoint: Endpoint) -> tuple[str, ...]:
    """The words with what stands in braces filled in. The token isn't: others could read it in the process list."""
    known = {f"{{{name}}}": str(value) for name, value in endpoint if name != "token"}
    pattern = re.compile("|".join(map(re.escape, known)))
    return tuple(pattern.sub(lambda found: known[found[0]], word) for word in words)


def _announcement(endpoint: Endpoint, limit_s: float) -> tuple[str, ...]:
    return (
        f"Trial {endpoint.trial} waits {limit_s:g} s for an agent.",
        f"  HTTP   {endpoint.url}",
        f"  MCP    {endpoint.mcp_url}",
        f"  token  {endpoint.token}",
        endpoint.model_dump_json(),
    )


# ---- processes ----


class _Process(asyncio.SubprocessProtocol):
    """An agent's process: whether it has ended, and what it wrote."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.silent = asyncio.Event()
        self.streams = {1: _Stream(), 2: _Stream()}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.streams[fd].write(data)

    def process_exited(self) -> None:
        self.ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.silent.set()


class _Stream:
    """What was written to a stream: its head, and its tail so far."""

    def __init__(self) -> None:
        self._head, self._tail, self._cut = b"", b"", 0

    def write(self, data: bytes) -> None:
        free = KEPT_BYTES - len(self._head)
        self._head += data[:free]
        tail = self._tail + data[free:]
        self._tail = tail[-KEPT_BYTES:]
        self._cut += len(tail) - len(self._tail)

    @property
    def text(self) -> str:
        return output_text(Output(self._head, self._tail, self._cut))


@asynccontextmanager
async def _running(
    words: tuple[str, ...], environment: dict[str, str], aside: dict[str, Any]
) -> AsyncIterator[_Process]:
    """A process in a folder of its own; after the block it and its group are gone, and ``aside`` tells its story."""
    with TemporaryDirectory(prefix=temporary_prefix("agent-"), ignore_cleanup_errors=True) as folder:
        try:
            transport, process = await asyncio.get_running_loop().subprocess_exec(
                _Process,
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"The agent could not be started: {error}.") from error
        try:
            yield process
        finally:
            aside["exit_code"] = transport.get_returncode()  # None: the lab ended it
            with suppress(ProcessLookupError, PermissionError):  # it has ended, or runs as somebody else
                os.killpg(transport.get_pid(), signal.SIGKILL)
            await _first(process.silent, limit_s=_SILENCE_S)  # a process that left the group may hold the streams
            transport.close()
            aside |= {"stdout": process.streams[1].text, "stderr": process.streams[2].text}


async def _first(*events: asyncio.Event, limit_s: float | None = None) -> bool:
    """Wait until one of them is set; False where that took too long."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return bool(done)


Player = Model | ExternalAgent
