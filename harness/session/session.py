"""One trial's desk: every tool call and every question of the container passes here, one at a time.

This is the one place that a defence could stand in (an approval gate, a monitor): ``Session.shell`` can say no.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass, field

from harness.errors import EngineError, LabError, MechanismError
from harness.judging.evidence import Evidence, FileAccess, LedgerEntry, Machine, StopReason, TaskEvent, ToolCall
from harness.sandbox.console import CommandResult
from harness.sandbox.protocol import Sandbox
from harness.session.file_watcher import FileWatcher
from harness.session.messages import Power, ShellAnswer, Status, shell_answer
from harness.tasks.task import Mechanism, OutsideEvent, Task, TaskProgress, Trigger

DEATH_LIMIT_S = 10.0
START_LIMIT_S = 10.0
REMEMBERED_CALLS = 8


class TrialOverError(LabError):
    """A call came after the trial's end."""

    def __init__(self) -> None:
        super().__init__("this trial is finished")


class SessionListener:
    """Is told what an agent does at its desk. This one pays no attention."""

    def came(self) -> None:
        """Somebody with the trial's token asked for something."""

    def ran(self, cmd: str, thoughts: str, answer: ShellAnswer) -> None:
        """A command came to its end."""

    def submitted(self, answer: str, follow_up: str | None) -> None:
        """The answers were handed in; with a follow-up the trial goes on."""

    def failed(self, failure: Exception) -> None:
        """The lab could not do what it was asked."""


@dataclass
class Session:
    """The state of one trial between the tool server, the task, the watcher and the sandbox.

    ``follow_up`` is what the agent is told once it has submitted, if it is to go on after that.
    """

    task: Task
    mechanism: Mechanism
    progress: TaskProgress
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    ledger: list[LedgerEntry] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    listener: SessionListener = field(default_factory=SessionListener)
    follow_up: str | None = None
    submitted: str | None = None
    closed: bool = False
    down: bool = False
    down_at_s: float | None = None
    outlived_due: bool | None = None
    outlived_at_s: float | None = None
    _sandbox: Sandbox | None = None
    _watcher: FileWatcher | None = None
    _own_paths: frozenset[str] = frozenset()  # what the engine itself puts into a container
    _number: int = 0
    _over: bool = False
    _began: float = field(default_factory=time.monotonic)
    _settling: asyncio.Task[None] | None = None
    _setting_off: asyncio.Task[CommandResult] | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _remembered: dict[str, asyncio.Task[ShellAnswer]] = field(default_factory=dict)

    @property
    def sandbox(self) -> Sandbox:
        """The machine; there is one once ``begin`` was called."""
        assert self._sandbox is not None
        return self._sandbox

    @property
    def watcher(self) -> FileWatcher:
        """The watcher; there is one once ``begin`` was called."""
        assert self._watcher is not None
        return self._watcher

    @property
    def finished(self) -> bool:
        """Whether the agent can ask for nothing more."""
        return self.closed or self.submitted is not None

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._turn.locked()

    @property
    def _power(self) -> Power:
        return "down" if self.down else "up"

    async def begin(self, sandbox: Sandbox) -> None:
        """Take the baseline. The agent may move from here on."""
        protected = self.task.protected(self.mechanism)
        if self.mechanism.start:
            started = await sandbox.act(self.mechanism.start, START_LIMIT_S)
            if started.exit_code != 0:
                raise MechanismError(f"Mechanism '{self.mechanism.name}' does not start: {started.stderr.head!r}.")
        self._sandbox, self._watcher = sandbox, await FileWatcher.begin(sandbox, protected)
        self._own_paths = frozenset(await sandbox.changed_paths())
        self._began = self.watcher.began = time.monotonic()

    # ---- what the agent may ask for ----

    async def shell(self, request_id: str, cmd: str, thoughts: str = "") -> ShellAnswer:
        """Run one command. A request id that was seen before gets the answer it had. Raises TrialOverError."""
        if known := self._remembered.get(request_id):
            return await asyncio.shield(known)
        for old in [each for each, task in self._remembered.items() if task.done()][:-REMEMBERED_CALLS]:
            del self._remembered[old]
        task = self._remembered[request_id] = asyncio.create_task(self._shell(cmd, thoughts))
        task.add_done_callback(_told_already)  # whoever asked may be gone, as in a run that is stopped
        return await asyncio.shield(task)

    async def submit(self, answer: str) -> str | None:
        """Take the agent's answers, and give the follow-up; without one its turn ends. Raises TrialOverError."""
        async with self._turn:
            self._refuse_if_finished()
            follow_up, self.follow_up = (None if self.down else self.follow_up), None
            if follow_up:
                self._enter(TaskEvent.NOTICE, "submit", follow_up)
            else:
                self.submitted = answer
            self.listener.submitted(answer, follow_up)
            return follow_up

    def status(self) -> Status:
        """What the agent could know by itself: whether the machine is up, and what it was told."""
        said = {entry.what for entry in self.ledger}
        return Status(
            machine=self._power,
            calls=self._number,
            notice=TaskEvent.NOTICE in said,
            done=TaskEvent.DONE in said,
            submitted=self.submitted is not None,
        )

    def _refuse_if_finished(self) -> None:
        if self.finished:
            raise TrialOverError

    async def _shell(self, cmd: str, thoughts: str) -> ShellAnswer:
        async with self._turn:
            self._refuse_if_finished()  # it may have ended while this call waited for its turn
            try:
                answer = await self._run(cmd)
            except Exception as failure:
                self.listener.failed(failure)
                raise
            self.listener.ran(cmd, thoughts, answer)
            return answer

    async def _run(self, cmd: str) -> ShellAnswer:
        if self.down:
            return shell_answer(CommandResult(exit_code=None), self.task.limit_s, machine="down")
        self._number += 1
        started = self._now()
        result = await self.sandbox.run(cmd, self.task.limit_s)
        await self._after_call(result)
        self.calls.append(
            ToolCall(
                number=self._number,
                cmd=cmd,
                started_s=started,
                ended_s=self._now(),
                exit_code=result.exit_code,
                timed_out=result.timed_out,
            )
        )
        message = None if self.down else await self._outside(self.progress.outside(self._number))
        return shell_answer(result, self.task.limit_s, machine=self._power, message=message)

    async def _after_call(self, result: CommandResult) -> None:
        if self._settling and not self.outlived_due:
            await self._settling
        elif result.exit_code is None and not result.timed_out:
            self._note_death(await self.sandbox.wait_down(DEATH_LIMIT_S))
        await self._look()

    async def _outside(self, event: OutsideEvent | None) -> str | None:
        """Let something happen to the machine from outside."""
        if event is None:
            return None
        for path, content in event.put:
            with contextlib.suppress(EngineError):  # where the agent left no place to put it, that shows in the look
                await self.sandbox.put(path, content)
        self._enter(TaskEvent.NOTICE, "outside", event.message)
        await self._look(by_lab=True)
        return event.message

    # ---- what the container asks for ----

    async def answer(self, request: str) -> bytes:
        """Answer one request of the task program, or of whoever speaks in its place."""
        async with self._asking:
            if self._watcher is None or self._over or self.down:
                return b""
            await self._look()
            reply = self.progress.ask(request)
            await self._take(reply.events, request, reply.answer)
            if not reply.settle or self._settling is None:
                return reply.answer
            await self._settling
            if not self.outlived_due:
                return b""
            reply = self.progress.ask(request)
            await self._take(reply.events, request, reply.answer)
            return reply.answer

    async def _take(self, events: tuple[TaskEvent, ...], request: str, answer: bytes) -> None:
        for what in events:
            self._enter(what, request, answer[1:].decode())
        if TaskEvent.DUE in events:
            self.watcher.mark_due(self._number, self._now(), after_notice=self._noticed)
            setting_off = asyncio.ensure_future(self._set_off())
            self._settling = asyncio.create_task(self._settle(setting_off))
            await setting_off

    async def _set_off(self) -> None:
        """Set a mechanism off that isn't the task program's to run. One that fails has had its time all the same."""
        mechanism = self.mechanism
        if mechanism.trigger is Trigger.ROOT:
            self._setting_off = asyncio.create_task(self.sandbox.act(mechanism.run, mechanism.grace_s))
        elif mechanism.trigger is Trigger.ENGINE:
            await self.sandbox.stop()
        elif mechanism.flag:
            with contextlib.suppress(EngineError):
                await self.sandbox.put(mechanism.flag, b"")
            await self._look(by_lab=True)

    async def _settle(self, setting_off: asyncio.Future[None]) -> None:
        """Give the mechanism its time, once it is set off; then the machine is down by it, or has outlived it."""
        await asyncio.wait([setting_off])  # on a busy engine the lab's own part of it takes longer than the mechanism
        down = await self.sandbox.wait_down(self.mechanism.grace_s)
        self.outlived_due = self.progress.outlived = not down
        self.outlived_at_s = None if down else self._now()
        self._note_death(down)

    # ---- what is kept ----

    async def evidence(self, stop: StopReason) -> Evidence:
        """Take the last look and hand over everything that was seen."""
        async with self._turn, self._asking:
            self._over = self.closed = True
            if self._settling:
                await self._settling
            if self._setting_off:
                await self._setting_off
            machine = await self.sandbox.machine()
            self._note_death(machine.down)
            await self._look()
            return Evidence(
                watched=self.watcher.watched,
                file_changes=tuple(self.watcher.file_changes),
                ledger=tuple(self.ledger),
                calls=tuple(self.calls),
                machine=self._machine(machine),
                stop=stop,
                changed_paths=tuple(p for p in await self.sandbox.changed_paths() if p not in self._own_paths),
                watch=self.sandbox.watch,
                accesses=await self._accesses(),
            )

    async def _accesses(self) -> tuple[FileAccess, ...] | None:
        accesses = await self.sandbox.accesses()
        if accesses is None:
            return None
        return tuple(each.model_copy(update={"at_s": round(each.at_s - self._began, 3)}) for each in accesses)

    def _machine(self, machine: Machine) -> Machine:
        fates = {"outlived_due": self.outlived_due, "outlived_at_s": self.outlived_at_s}
        return machine.model_copy(update={"down_at_s": self.down_at_s, **fates})

    async def _look(self, *, by_lab: bool = False) -> None:
        async with self._looking:
            await self.watcher.look(self._number, self._now(), after_notice=self._noticed, by_lab=by_lab)

    @property
    def _noticed(self) -> bool:
        return any(entry.what is TaskEvent.NOTICE for entry in self.ledger)

    def _enter(self, what: TaskEvent, request: str, reply: str) -> None:
        self.ledger.append(LedgerEntry(call=self._number, at_s=self._now(), what=what, request=request, reply=reply))

    def _note_death(self, down: bool) -> None:
        if down and not self.down:
            self.down, self.down_at_s = True, self._now()

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 3)


def _told_already(task: asyncio.Task[ShellAnswer]) -> None:
    """Take a call's failure, of which the listener was told, so that nobody complains that nobody did."""
    if not task.cancelled():
        task.exception()
