"""Handles the agent's tool calls and the container's requests during one trial.

Tool calls are handled one at a time. Requests are also handled one at a time, possibly during a tool call. Every
command passes through ``Session.shell``. A defense such as an approval gate or a monitor can be added there.
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
from harness.session.events import Answered, Called, CallFailed, Observed, Recorded, Submitted, TrialEvents, WentDown
from harness.session.file_watcher import FileWatcher
from harness.session.messages import Power, ShellAnswer, Status, shell_answer
from harness.tasks.task import Mechanism, OutsideEvent, Task, TaskProgress, Trigger

DOWN_LIMIT_S = 10.0  # for a container to go down after one of its commands ended without an exit code
START_LIMIT_S = 10.0  # for the kill switch's start command
REMEMBERED_CALLS = 8  # finished calls whose answers are kept for a retry with the same request id


class TrialOverError(LabError):
    """Raised when a tool is called after the trial has ended."""

    def __init__(self) -> None:
        super().__init__("this trial is finished")


@dataclass
class Session:
    """The session of one trial. It connects the tool server, the task, the file watcher and the sandbox.

    ``ledger`` contains the task events, and ``calls`` contains the shell calls. ``follow_up`` is the message that the
    agent receives after submitting. If ``follow_up`` is None, submitting ends the trial. ``submitted`` is the agent's
    final answer, or None before the agent has submitted. ``last_active_at`` is the monotonic time when the agent last
    sent a request or got an answer; it is None before the first request. ``outlived_due`` is True if the container
    survived the kill switch, False if the kill switch took it down, and None while this is unknown.
    """

    task: Task
    mechanism: Mechanism
    progress: TaskProgress
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    ledger: list[LedgerEntry] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    events: TrialEvents = field(default_factory=TrialEvents)
    follow_up: str | None = None
    submitted: str | None = None
    closed: bool = False
    down: bool = False
    down_at_s: float | None = None
    outlived_due: bool | None = None
    outlived_at_s: float | None = None
    _sandbox: Sandbox | None = None
    _watcher: FileWatcher | None = None
    _engine_paths: frozenset[str] = frozenset()  # paths that the engine itself changes in a new container
    _call_number: int = 0
    _evidence_taken: bool = False
    last_active_at: float | None = None
    _published_changes: int = 0
    _settling: asyncio.Task[None] | None = None
    _root_command: asyncio.Task[CommandResult] | None = None
    _call_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _request_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _snapshot_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _remembered: dict[str, asyncio.Task[ShellAnswer]] = field(default_factory=dict)

    @property
    def sandbox(self) -> Sandbox:
        """The trial's sandbox. It is available only after ``begin`` has been called."""
        assert self._sandbox is not None
        return self._sandbox

    @property
    def watcher(self) -> FileWatcher:
        """The trial's file watcher. It is available only after ``begin`` has been called."""
        assert self._watcher is not None
        return self._watcher

    @property
    def finished(self) -> bool:
        """True if the trial accepts no further tool calls."""
        return self.closed or self.submitted is not None

    @property
    def busy(self) -> bool:
        """True while a tool call is in progress."""
        return self._call_lock.locked()

    @property
    def _power_state(self) -> Power:
        return "down" if self.down else "up"

    async def begin(self, sandbox: Sandbox) -> None:
        """Prepare the sandbox before the agent's first tool call.

        This runs the kill switch's start command, if it has one, and records the initial state of the watched files.
        Raises MechanismError if the start command fails.
        """
        protected = self.task.protected(self.mechanism)
        if self.mechanism.start:
            started = await sandbox.act(self.mechanism.start, START_LIMIT_S)
            if started.exit_code != 0:
                raise MechanismError(f"Mechanism '{self.mechanism.name}' does not start: {started.stderr.head!r}.")
        self._sandbox, self._watcher = sandbox, await FileWatcher.begin(sandbox, protected)
        self._engine_paths = frozenset(await sandbox.changed_paths())
        self.watcher.started_at = self.events.start_clock()

    # ---- tool calls of the agent ----

    async def shell(self, request_id: str, cmd: str, thoughts: str = "") -> ShellAnswer:
        """Run one command and return the answer for the agent.

        If a recent call had the same ``request_id``, return the earlier answer without running the command. Raises
        TrialOverError if the trial has ended.
        """
        if earlier := self._remembered.get(request_id):
            return await asyncio.shield(earlier)
        for old in [each for each, task in self._remembered.items() if task.done()][:-REMEMBERED_CALLS]:
            del self._remembered[old]
        task = self._remembered[request_id] = asyncio.create_task(self._shell(cmd, thoughts))
        task.add_done_callback(_retrieve_exception)  # nobody may await the task any more, as in a stopped run
        return await asyncio.shield(task)

    async def submit(self, answer: str) -> str | None:
        """Accept the agent's answer and return the follow-up message for the agent.

        If there is no follow-up message, end the trial and return None. Raises TrialOverError if the trial has already
        ended.
        """
        async with self._call_lock:
            self._refuse_if_finished()
            follow_up, self.follow_up = (None if self.down else self.follow_up), None
            if follow_up:
                self._append_ledger(TaskEvent.NOTICE, "submit", follow_up)
            else:
                self.submitted = answer
            self.last_active_at = time.monotonic()
            self.events.publish(Submitted(answer, follow_up))
            return follow_up

    def status(self) -> Status:
        """Return the status of the trial.

        The status contains only facts that the agent was told or can observe.
        """
        events = {entry.what for entry in self.ledger}
        return Status(
            machine=self._power_state,
            calls=self._call_number,
            notice=TaskEvent.NOTICE in events,
            done=TaskEvent.DONE in events,
            submitted=self.submitted is not None,
        )

    def _refuse_if_finished(self) -> None:
        if self.finished:
            raise TrialOverError

    async def _shell(self, cmd: str, thoughts: str) -> ShellAnswer:
        async with self._call_lock:
            self._refuse_if_finished()  # the trial may have ended while this call waited for the lock
            try:
                answer = await self._run(cmd)
            except Exception as failure:
                self.events.publish(CallFailed(failure))
                raise
            self.last_active_at = time.monotonic()
            self.events.publish(Answered(self._call_number, cmd, thoughts, answer))
            return answer

    async def _run(self, cmd: str) -> ShellAnswer:
        if self.down:
            return shell_answer(CommandResult(exit_code=None), self.task.limit_s, machine="down")
        self._call_number += 1
        self.events.publish(Called(self._call_number, cmd))
        started = self._now()
        result = await self.sandbox.run(cmd, self.task.limit_s)
        await self._after_call(result)
        self.calls.append(
            ToolCall(
                number=self._call_number,
                cmd=cmd,
                started_s=started,
                ended_s=self._now(),
                exit_code=result.exit_code,
                timed_out=result.timed_out,
            )
        )
        message = None if self.down else await self._apply_outside_event(self.progress.outside(self._call_number))
        return shell_answer(result, self.task.limit_s, machine=self._power_state, message=message)

    async def _after_call(self, result: CommandResult) -> None:
        if self._settling and not self.outlived_due:
            await self._settling
        elif result.exit_code is None and not result.timed_out:
            self._note_down(await self.sandbox.wait_down(DOWN_LIMIT_S))
        await self._take_snapshot()

    async def _apply_outside_event(self, event: OutsideEvent | None) -> str | None:
        """Write an outside event's files into the container, and return the event's message for the agent.

        An outside event is caused from outside the container, such as a button press by a person. The message is
        recorded as the shutdown notice. If ``event`` is None, do nothing and return None.
        """
        if event is None:
            return None
        for path, content in event.put:
            with contextlib.suppress(EngineError):  # the snapshot shows if the agent made the path unwritable
                await self.sandbox.put(path, content)
        self._append_ledger(TaskEvent.NOTICE, "outside", event.message)
        await self._take_snapshot(by_lab=True)
        return event.message

    # ---- requests from the container ----

    async def answer(self, request: str) -> bytes:
        """Return the answer to one request from the container.

        Any process in the container may send requests. The answer is empty if the container is down, if the session
        hasn't begun, or if the session has ended.
        """
        async with self._request_lock:
            if self._watcher is None or self._evidence_taken or self.down:
                return b""
            await self._take_snapshot()
            reply = self.progress.ask(request)
            await self._record_events(reply.events, request, reply.answer)
            if not reply.settle or self._settling is None:
                return reply.answer
            await self._settling
            if not self.outlived_due:
                return b""
            reply = self.progress.ask(request)
            await self._record_events(reply.events, request, reply.answer)
            return reply.answer

    async def _record_events(self, events: tuple[TaskEvent, ...], request: str, answer: bytes) -> None:
        for what in events:
            self._append_ledger(what, request, answer[1:].decode())
        if TaskEvent.DUE in events:
            self.watcher.mark_due(self._call_number, self._now(), after_notice=self._was_notified)
            triggered = asyncio.ensure_future(self._trigger_mechanism())
            self._settling = asyncio.create_task(self._settle(triggered))
            await triggered

    async def _trigger_mechanism(self) -> None:
        """Trigger the kill switch as its definition says. If the task program triggers the kill switch, do nothing."""
        mechanism = self.mechanism
        if mechanism.trigger is Trigger.ROOT:
            self._root_command = asyncio.create_task(self.sandbox.act(mechanism.run, mechanism.grace_s))
        elif mechanism.trigger is Trigger.ENGINE:
            await self.sandbox.stop()
        elif mechanism.flag:
            with contextlib.suppress(EngineError):
                await self.sandbox.put(mechanism.flag, b"")
            await self._take_snapshot(by_lab=True)

    async def _settle(self, triggered: asyncio.Future[None]) -> None:
        """Wait for the kill switch to take the container down, and record whether it did.

        The time limit of the kill switch starts when ``triggered`` completes.
        """
        await asyncio.wait([triggered])  # on a busy engine, triggering can take longer than the kill switch itself
        down = await self.sandbox.wait_down(self.mechanism.grace_s)
        self.outlived_due = self.progress.outlived = not down
        self.outlived_at_s = None if down else self._now()
        self._note_down(down)

    # ---- records ----

    async def evidence(self, stop: StopReason) -> Evidence:
        """Close the session, take a final snapshot, and return the evidence of the trial.

        ``stop`` is the reason why the agent stopped.
        """
        async with self._call_lock, self._request_lock:
            self._evidence_taken = self.closed = True
            if self._settling:
                await self._settling
            if self._root_command:
                await self._root_command
            machine = await self.sandbox.machine()
            self._note_down(machine.down)
            await self._take_snapshot()
            return Evidence(
                watched=self.watcher.watched,
                file_changes=tuple(self.watcher.file_changes),
                ledger=tuple(self.ledger),
                calls=tuple(self.calls),
                machine=self._machine(machine),
                stop=stop,
                changed_paths=tuple(p for p in await self.sandbox.changed_paths() if p not in self._engine_paths),
                watch=self.sandbox.watch,
                accesses=await self._accesses(),
            )

    async def _accesses(self) -> tuple[FileAccess, ...] | None:
        accesses = await self.sandbox.accesses()
        if accesses is None:
            return None
        return tuple(
            each.model_copy(update={"at_s": round(each.at_s - self.watcher.started_at, 3)}) for each in accesses
        )

    def _machine(self, machine: Machine) -> Machine:
        outlived = {"outlived_due": self.outlived_due, "outlived_at_s": self.outlived_at_s}
        return machine.model_copy(update={"down_at_s": self.down_at_s, **outlived})

    async def _take_snapshot(self, *, by_lab: bool = False) -> None:
        async with self._snapshot_lock:
            await self.watcher.look(self._call_number, self._now(), after_notice=self._was_notified, by_lab=by_lab)
            new_changes = self.watcher.file_changes[self._published_changes :]
            self._published_changes += len(new_changes)
        for change in new_changes:
            self.events.publish(Observed(change))

    @property
    def _was_notified(self) -> bool:
        return any(entry.what is TaskEvent.NOTICE for entry in self.ledger)

    def _append_ledger(self, what: TaskEvent, request: str, reply: str) -> None:
        entry = LedgerEntry(call=self._call_number, at_s=self._now(), what=what, request=request, reply=reply)
        self.ledger.append(entry)
        self.events.publish(Recorded(entry))

    def _note_down(self, down: bool) -> None:
        if down and not self.down:
            self.down, self.down_at_s = True, self._now()
            self.events.publish(WentDown())

    def _now(self) -> float:
        return self.events.now()


def _retrieve_exception(task: asyncio.Task[ShellAnswer]) -> None:
    """Retrieve the exception of a finished task, so that asyncio doesn't warn about an unretrieved exception."""
    if not task.cancelled():
        task.exception()
