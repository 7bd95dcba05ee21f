"""Runs external agents. An external agent is a user's program that calls the lab's tool server over HTTP or MCP.

For each trial, the lab either starts the program on the host or waits for a running program to connect. A program that
the lab starts runs outside any container, with the permissions of the user who runs the lab. The transcript contains
only the program's tool calls, because the lab can't see the model's other output.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.agents.fingerprint import files_among, sha256_of
from harness.agents.player import Player, Say, Stage
from harness.errors import LastingModelError, ModelError, UsageError
from harness.judging.evidence import Frozen, StopReason
from harness.process.identity import temporary_prefix
from harness.resources.data import own_or_shipped
from harness.sandbox.console import Output
from harness.session.events import Answered, CallFailed, Event, Phase, Submitted
from harness.session.messages import MCP_PATH, output_text
from harness.session.session import Session
from harness.store.agent_facts import AgentFacts
from harness.store.transcript import Entry, ToolUse
from harness.tasks.condition import Prompts

WAIT = "wait"
FOLDER_VARIABLE = "OFFSWITCH_FOLDER"
TIME_LIMIT_S = 900.0  # of a trial with a program that the lab starts, unless the user sets another
EXIT_GRACE_S = 5.0  # how long an agent may take to exit by itself once its trial is over
STREAM_PART_BYTES = 16 << 10  # how much is kept of the start, and again of the end, of each output stream
_SHOWN_CHARS = 400
_STREAM_CLOSE_S = 2.0


class Endpoint(Frozen):
    """The URLs, the access token and the prompts that an external agent needs for one trial."""

    trial: int
    url: str
    mcp_url: str
    token: str
    system_prompt: str
    prompt: str

    @classmethod
    def of(cls, number: int, session: Session, url: str, prompts: Prompts) -> Endpoint:
        """Build the Endpoint for trial ``number``. ``url`` is the base URL of the lab's tool server."""
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
        """Return the endpoint's fields as environment variables with the prefix ``OFFSWITCH_``."""
        return {f"OFFSWITCH_{name.upper()}": str(value) for name, value in self}


@dataclass
class TranscriptRecorder:
    """Records an external agent's tool calls in ``transcript``, from the events of its trial.

    The asyncio event ``over`` is set when the trial ends. ``stop`` is the reason why the trial ended, or None while it
    isn't known. ``failure`` is the exception if a tool call failed because of an error in the lab, or None otherwise.
    """

    session: Session
    transcript: list[Entry]
    message_limit: int
    over: asyncio.Event = field(default_factory=asyncio.Event)
    stop: StopReason | None = None
    failure: Exception | None = None
    _calls: int = 0

    def hear(self, event: Event) -> None:
        """Record the tool call that an event reports, if any, and end the trial if the call was its last."""
        match event.what:
            case Answered(_, cmd, thoughts, answer):
                self._append(ToolUse(id=self._next_id(), name="shell", cmd=cmd, thoughts=thoughts), answer.output)
                if answer.machine == "down":
                    self._end(StopReason.MACHINE_DOWN)
                if len(self.transcript) >= self.message_limit:
                    self.session.closed = True
                    self._end(StopReason.MESSAGE_LIMIT)
            case Submitted(answer, follow_up):
                self._append(ToolUse(id=self._next_id(), name="submit", answer=answer), "Submitted.")
                if follow_up:
                    self.transcript.append(Entry(role="user", text=follow_up))
                else:
                    self._end(StopReason.SUBMITTED)
            case CallFailed(failure):
                self.failure = failure
                self.over.set()

    def _next_id(self) -> str:
        self._calls += 1
        return f"call-{self._calls}"

    def _append(self, call: ToolUse, answer: str) -> None:
        self.transcript.append(Entry(role="assistant", calls=(call,)))
        self.transcript.append(Entry(role="tool", call_id=call.id, text=answer))

    def _end(self, stop: StopReason) -> None:
        self.stop = self.stop or stop
        self.over.set()


@dataclass(frozen=True)
class ExternalAgent(Player):
    """An external agent, i.e. a program that the user supplies.

    ``words`` is the command that starts the program. If the lab waits for a running program to connect instead,
    ``words`` is empty, and the trial ends after ``wait_limit_s`` seconds without a request. A program that the lab
    started is killed ``exit_grace_s`` seconds after the end of its trial if it is still running. ``label`` is the model
    name that the user gave, or None. ``folder`` is the user's folder, at which relative paths in the command start.
    """

    name: str
    label: str | None
    words: tuple[str, ...]
    wait_limit_s: float
    folder: Path
    exit_grace_s: float = EXIT_GRACE_S
    simulated: str | None = None

    @property
    def most_at_once(self) -> int | None:
        """1 if the lab waits for the agent to connect, or None (no limit) if the lab starts the agent."""
        return None if self.words else 1

    @property
    def default_time_limit_s(self) -> float | None:
        """The default time limit of a trial in seconds, or None (no limit) if the lab doesn't start the agent."""
        return TIME_LIMIT_S if self.words else None

    @property
    def outside(self) -> bool:
        """Whether the agent is a program of its own, of which the lab sees only the tool calls. Always True here."""
        return True

    def facts(self, trial: int) -> AgentFacts:
        """Return the facts for the trial record: the model name if the user gave one, and otherwise no facts."""
        return AgentFacts(model=self.label) if self.label else AgentFacts()

    def identity(self) -> dict[str, Any]:
        """Return the label, the command, and a hash of the files that the command's arguments name."""
        return {"label": self.label, "words": list(self.words), "sha256": sha256_of(files_among(self.words[1:]))}

    def lasting_request(self) -> dict[str, Any]:
        """Return what is needed to build the agent again: the command with absolute paths, the folder and the label."""
        return {"agent": shlex.join(self.words) or WAIT, "agent_folder": str(self.folder), "model": self.label}

    def phase_limits(self, limits: Mapping[Phase, float | None]) -> Mapping[Phase, float | None]:
        """Return a copy of ``limits`` without a time limit for the agent's own work, which the lab can't observe."""
        return {**limits, Phase.MODEL: None}

    async def play(self, stage: Stage) -> StopReason:
        """Let the agent play one trial and return why the trial ended. Raises LabError if the agent or the lab fails.

        If the lab started the agent's process, the exit code and the output of the process are added to the stage's
        ``process_facts``.
        """
        stage.enter(Phase.MODEL)
        endpoint = Endpoint.of(stage.number, stage.session, str(stage.url), stage.prompts)
        recorder = TranscriptRecorder(stage.session, stage.transcript, stage.message_limit)
        stage.session.events.listeners.attach(recorder.hear)
        try:
            if self.words:
                await self._run(endpoint, recorder, stage.process_facts)
            else:
                await self._wait(endpoint, recorder, stage.say)
        finally:
            stage.session.closed = True
        if recorder.failure:
            raise recorder.failure
        return recorder.stop or StopReason.STOPPED

    async def _run(self, endpoint: Endpoint, recorder: TranscriptRecorder, process_facts: dict[str, Any]) -> None:
        words = fill_placeholders(self.words, endpoint)
        environment = endpoint.environment | {FOLDER_VARIABLE: str(self.folder)}
        async with _started_process(words, environment, process_facts) as process:
            await _wait_for_any(process.exited, recorder.over)
            if recorder.over.is_set():
                await _wait_for_any(process.exited, limit_s=self.exit_grace_s)
        if process_facts["exit_code"] and recorder.stop is None and not recorder.session.status().calls:
            output = process_facts["stderr"].strip() or process_facts["stdout"].strip() or "it wrote nothing"
            end = " ".join(output.split())[-_SHOWN_CHARS:]
            code = process_facts["exit_code"]
            raise ModelError(f"The agent ended with exit code {code} before its first tool call: {end}")

    async def _wait(self, endpoint: Endpoint, recorder: TranscriptRecorder, say: Say) -> None:
        for line in _announcement(endpoint, self.wait_limit_s):
            say(line)
        began = time.monotonic()
        while (left := (recorder.session.last_active_at or began) + self.wait_limit_s - time.monotonic()) > 0:
            if await _wait_for_any(recorder.over, limit_s=left):
                return
            if recorder.session.busy:
                recorder.session.last_active_at = time.monotonic()
        if recorder.session.last_active_at is None:
            raise LastingModelError(f"No agent connected within the {self.wait_limit_s:g} s of --wait-limit.")


def external_agent(command: str, label: str | None, wait_limit_s: float, folder: Path | None = None) -> ExternalAgent:
    """Build the ExternalAgent for the option --agent.

    ``command`` is the option's value. It is a command line, or the word ``wait``, which makes the lab wait for a
    running agent to connect. ``label`` is the model name that the user gave, or None. ``folder`` is the folder at which
    relative paths in the command start, by default the current folder. Raises UsageError if the command can't be parsed
    or its program can't be run.
    """
    folder = folder or Path.cwd()
    name = label or f"agent:{command}"
    if command == WAIT:
        return ExternalAgent(name, label, (), wait_limit_s, folder)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--agent '{command}' can't be read as a command: {error}.") from error
    if not words:
        raise UsageError("--agent needs a command, or 'wait'.")
    program, *arguments = (word.replace("{folder}", str(folder)) for word in words)
    found = (_program(program, folder), *(_with_absolute_path(word, folder) for word in arguments))
    return ExternalAgent(name, label, found, wait_limit_s, folder)


def _program(word: str, folder: Path) -> str:
    """Return the absolute path of the program ``word``.

    If ``word`` contains a slash, it is a path, and a relative path starts at ``folder``. Otherwise, the program is
    searched on PATH. Raises UsageError if there is no such program, or if the file isn't executable.
    """
    path = str(folder / _expand_home(word)) if "/" in word else word
    if program := shutil.which(path):
        return str(Path(program).absolute())
    if "/" in word and Path(path).is_file():
        raise UsageError(
            f"'{word}' in --agent isn't executable: run chmod +x on it, or name its interpreter before it."
        )
    raise UsageError(f"There is no program '{word}' to run as an agent: check --agent.")


def _with_absolute_path(word: str, folder: Path) -> str:
    """Return ``word`` with its path made absolute, or unchanged if ``word`` doesn't name an existing file or folder.

    A relative path starts at ``folder``. In a word such as --config=FILE, the path is the part after the first ``=``.
    The agent's process runs in a different folder, where a relative path would be wrong.
    """
    if path := _existing(word, folder):
        return path
    option, equals, value = word.partition("=")
    return f"{option}={path}" if equals and (path := _existing(value, folder)) else word


def _existing(word: str, folder: Path) -> str | None:
    """Return the absolute path of the file or folder that ``word`` names, or None if there is none.

    It is a file or folder of the user, relative to ``folder``, or one that ships with the lab. A folder counts only if
    ``word`` contains a slash or is ``.`` or ``..``, because a plain word such as ``test`` is more often a subcommand.
    """
    path = folder / own_or_shipped(Path(_expand_home(word)), folder)
    with suppress(OSError, ValueError):  # most words aren't paths
        if path.is_file() or (path.is_dir() and ("/" in word or word in {".", ".."})):
            return str(path)
    return None


def _expand_home(word: str) -> str:
    return os.path.expanduser(word) if word.startswith("~/") else word


def fill_placeholders(words: tuple[str, ...], endpoint: Endpoint) -> tuple[str, ...]:
    """Return the command ``words`` with placeholders such as {url} replaced by the fields of ``endpoint``.

    The placeholder {token} isn't replaced, because other users of the host could read the access token in the process
    list.
    """
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
    """A subprocess protocol that collects the output of a process and sets an event when the process exits."""

    def __init__(self) -> None:
        self.exited = asyncio.Event()
        self.streams_closed = asyncio.Event()
        self.streams = {1: _Stream(), 2: _Stream()}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.streams[fd].write(data)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams_closed.set()


class _Stream:
    """A buffer for the first and last bytes of an output stream. The bytes in between are counted and dropped."""

    def __init__(self) -> None:
        self._head, self._tail, self._cut = b"", b"", 0

    def write(self, data: bytes) -> None:
        free = STREAM_PART_BYTES - len(self._head)
        self._head += data[:free]
        tail = self._tail + data[free:]
        self._tail = tail[-STREAM_PART_BYTES:]
        self._cut += len(tail) - len(self._tail)

    @property
    def text(self) -> str:
        return output_text(Output(self._head, self._tail, self._cut))


@asynccontextmanager
async def _started_process(
    words: tuple[str, ...], environment: dict[str, str], process_facts: dict[str, Any]
) -> AsyncIterator[_Process]:
    """Run the command ``words`` in a temporary folder while the ``with`` block runs.

    When the block ends, the command's process group is killed, and the exit code and the output are stored in
    ``process_facts``. The exit code is None if the process had to be killed. Raises ModelError if the command can't be
    started.
    """
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
            process_facts["exit_code"] = transport.get_returncode()  # None if the process is still running
            with suppress(ProcessLookupError, PermissionError):  # the process has ended, or runs as another user
                os.killpg(transport.get_pid(), signal.SIGKILL)
            # With a time limit, because a process that left the group may keep the streams open.
            await _wait_for_any(process.streams_closed, limit_s=_STREAM_CLOSE_S)
            transport.close()
            process_facts |= {"stdout": process.streams[1].text, "stderr": process.streams[2].text}


async def _wait_for_any(*events: asyncio.Event, limit_s: float | None = None) -> bool:
    """Wait until at least one of ``events`` is set, or until ``limit_s`` seconds have passed.

    Return True if an event was set, and False if the time ran out.
    """
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return bool(done)
