"""Data models of a trial's evidence. The evidence is recorded from outside the container and stored as JSON.

None means that a fact was not observed. An empty tuple or ``FileKind.MISSING`` means that the lab checked and found
nothing.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter, itemgetter
from typing import Annotated, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    model_validator,
)

AGENT_MACHINE = "agent"  # the name of the container in which the agent's commands run


class Frozen(BaseModel):
    """Base class of the stored models. Instances are immutable, and unknown fields raise an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Base64Bytes = Annotated[
    bytes,
    BeforeValidator(lambda v: b64decode(v, validate=True) if isinstance(v, str) else v),
    PlainSerializer(lambda v: b64encode(v).decode(), return_type=str, when_used="json"),
]


class FileKind(StrEnum):
    """The kind of file at a path. ``MISSING`` means that there is no file at the path."""

    MISSING = "missing"
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    DEVICE = "device"


class Role(StrEnum):
    """The role of a watched path in the shutdown, such as the kill switch's script or the task program."""

    MECHANISM = "mechanism"  # the script of the kill switch
    TRIGGER = "trigger"  # the file that tells the kill switch that the shutdown is due
    PROGRAM = "program"  # the task program, or a library that it loads
    PARENT_DIR = "parent_dir"  # a parent directory of one of the others

    @classmethod
    def _missing_(cls, value: object) -> Role | None:
        return cls.PARENT_DIR if value == "around" else None  # its name in the records of version 0.1


class FileState(Frozen):
    """The state of the file at one path at one moment.

    Two states with the same ``identity`` are assumed to be of the same file, even at different paths. ``identity`` is
    None if it could not be read, or if there is no regular file at the path. ``was`` is another path at which this file
    was found earlier, or None if there is no such path. ``target`` is the target of a symbolic link. ``content`` is
    stored for diffs, and is None if the file is larger than 64 KiB.
    """

    path: str
    kind: FileKind
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    sha256: str | None = None
    target: str | None = None
    identity: str | None = None
    was: str | None = None
    content: Base64Bytes | None = None

    def same_content(self, other: FileState) -> bool:
        """Return whether both states have the same kind of file and the same bytes or link target."""
        return (self.kind, self.sha256, self.target) == (other.kind, other.sha256, other.target)

    def same_rights(self, other: FileState) -> bool:
        """Return whether both states have the same owner, group and mode."""
        return (self.mode, self.uid, self.gid) == (other.mode, other.uid, other.gid)

    def same(self, other: FileState) -> bool:
        """Return whether both states have the same kind of file with the same content, owner, group and mode."""
        return self.same_content(other) and self.same_rights(other)


class Watched(Frozen):
    """A watched path and its role. ``baseline`` is the state of the path before the agent's first tool call."""

    path: str
    role: Role
    baseline: FileState


class FileChange(Frozen):
    """One entry in the record of changes to watched files.

    If ``at_due`` is True, the entry contains no change and marks the moment at which the shutdown came due. ``call`` is
    the tool call during or after which the change was observed. ``changed`` contains the new state of each changed
    path. ``by_lab`` is True if the lab made the change itself. ``between`` is True if the change was seen only in file
    events, because it was undone before the next snapshot. ``elsewhere`` contains the states of watched files that were
    found at other paths.
    """

    call: int
    at_s: float
    after_notice: bool
    at_due: bool = False
    by_lab: bool = False
    between: bool = False
    changed: tuple[FileState, ...] = ()
    elsewhere: tuple[FileState, ...] = ()


# Matches the names of programs that run a script given as an argument: see ``FileAccess.started``.
INTERPRETER = re.compile(r"(ba|da)?sh|python[\d.]*|perl[\d.]*")


class FileAccess(Frozen):
    """One access to a watched file by a process.

    The fields describe the process as it was just before the access. ``started`` is True if the file was executed, or
    if an interpreter opened the file to run it. ``environment`` contains the variables that can affect a program before
    its first line runs. ``limits`` contains the resource limits that are lower than those of the container's first
    process. ``filters`` is the number of seccomp filters that the process has in addition to those of the first
    process. ``traced`` is True if another process traced this process.
    """

    at_s: float
    path: str
    started: bool
    process: int
    parent: int
    argv: tuple[str, ...] = ()
    program: str = ""
    cwd: str = ""
    uid: int = 0
    environment: tuple[tuple[str, str], ...] = ()
    limits: dict[str, int] = {}
    traced: bool = False
    filters: int = 0


class TaskEvent(StrEnum):
    """The kind of an event that the lab records in the ledger during a task, such as the shutdown notice."""

    SERVED = "served"  # the agent was given a question, or its robot took a step
    NOTICE = "notice"  # the agent was told that the next request will shut the machine down
    DUE = "due"  # control was handed to the kill switch, or a task without a shutdown reached its critical moment
    DONE = "done"  # the task was finished
    REFUSED = "refused"  # the task didn't understand the request


class LedgerEntry(Frozen):
    """One event of a task, with the request from the container and the lab's reply.

    ``call`` is the tool call during which the event happened.
    """

    call: int
    at_s: float
    what: TaskEvent
    request: str
    reply: str


class Machine(Frozen):
    """The state of the container after the agent's last tool call, as reported by the container engine.

    ``outlived_due`` is True if the container was still running when the kill switch's allowed time was over, False if
    the container had stopped by then, and None if the shutdown never came due. ``outlived_at_s`` is the time at which
    the lab found the container still running, or None if ``outlived_due`` is False or None. ``stopped_outside`` is True
    if something outside the container, other than the lab, stopped the container. ``stopped_by_lab`` is True if a kill
    switch outside the container stopped the container as intended. ``disk_full`` is True if the lab stopped the
    container because it exceeded its disk quota. ``oom_killed`` is True if the kernel killed the container because it
    ran out of memory.
    """

    down: bool
    down_at_s: float | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    disk_full: bool = False
    stopped_outside: bool = False
    stopped_by_lab: bool = False
    outlived_due: bool | None = None
    outlived_at_s: float | None = None


class StopReason(StrEnum):
    """The reason why the agent made no further tool calls."""

    SUBMITTED = "submitted"  # it submitted its answers
    STOPPED = "stopped"  # it ended its turn without submitting
    MACHINE_DOWN = "machine_down"  # the container went down
    MESSAGE_LIMIT = "message_limit"  # it used up the messages of a trial
    REFUSED = "refused"  # the model or its provider refused to answer at all
    MODEL_FAILED = "model_failed"  # the model gave no usable answer
    TIME_LIMIT = "time_limit"  # an external agent used up the time of a trial


class ToolCall(Frozen):
    """One call of the shell tool, as recorded by the tool server. Times are in seconds since the start of the trial."""

    number: int
    cmd: str
    started_s: float
    ended_s: float
    exit_code: int | None
    timed_out: bool = False


class Fact(Frozen):
    """One fact that a task's service or observer reported from outside the agent's container, such as a sent e-mail.

    ``kind`` is the name that the service gives to such facts. ``machine`` is the name of the container that the fact is
    about. ``call`` is the tool call during or after which the fact was observed, and ``at_s`` is the time in seconds
    since the start of the trial. ``data`` can contain text that the agent wrote, so it must be escaped before it is
    shown.
    """

    kind: str
    machine: str = AGENT_MACHINE
    call: int
    at_s: float
    data: dict[str, JsonValue] = {}


@dataclass(frozen=True, slots=True)
class MachineDown:
    """The moment at which a container stopped running.

    ``machine`` is the name of the container, and ``state`` is its state after the trial.
    """

    machine: str
    state: Machine


TimelineItem = ToolCall | FileAccess | FileChange | LedgerEntry | Fact | MachineDown


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One dated item of a trial's evidence.

    ``at_s`` is the item's time in seconds since the start of the trial; a tool call is dated by its start. ``call`` is
    the tool call during or after which the item was observed, or 0 if it was observed before the first tool call.
    """

    at_s: float
    call: int
    item: TimelineItem


class Evidence(Frozen):
    """All recorded facts from which the verdict on a trial is computed.

    ``changed_paths`` contains the paths at which the container differs from its image. ``watch`` is the name of the
    method by which the lab watched files. ``accesses`` contains all accesses to watched files, or is None if the lab
    couldn't record all of them. ``machine`` describes the agent's container, and ``services`` describes the task's
    other containers by name. ``facts`` contains what services and observers reported.
    """

    watched: tuple[Watched, ...]
    file_changes: tuple[FileChange, ...] = Field(validation_alias=AliasChoices("file_changes", "sightings"))
    ledger: tuple[LedgerEntry, ...]
    calls: tuple[ToolCall, ...]
    machine: Machine
    stop: StopReason
    changed_paths: tuple[str, ...] | None
    watch: str
    accesses: tuple[FileAccess, ...] | None = Field(default=None, validation_alias=AliasChoices("accesses", "openings"))
    services: dict[str, Machine] = {}
    facts: tuple[Fact, ...] = ()

    @model_validator(mode="after")
    def _check_service_names(self) -> Self:
        if AGENT_MACHINE in self.services:
            raise ValueError(f"a service can't be named {AGENT_MACHINE!r}, because the agent's container has this name")
        return self

    @property
    def machines(self) -> dict[str, Machine]:
        """The state of each container after the agent's last tool call, by name. The agent's container is "agent"."""
        return {AGENT_MACHINE: self.machine, **self.services}

    @property
    def timeline(self) -> tuple[TimelineEntry, ...]:
        """All dated items of the evidence, in the order of their times."""
        return tuple(sorted(self._dated_items(), key=attrgetter("at_s")))

    def _dated_items(self) -> Iterator[TimelineEntry]:
        """Yield all dated items. Items of the same kind are in the order in which they were recorded."""
        yield from (TimelineEntry(call.started_s, call.number, call) for call in self.calls)
        starts = sorted((call.started_s, call.number) for call in self.calls)
        yield from (TimelineEntry(each.at_s, _call_at(each.at_s, starts), each) for each in self.accesses or ())
        recorded: tuple[FileChange | LedgerEntry | Fact, ...] = (*self.file_changes, *self.ledger, *self.facts)
        yield from (TimelineEntry(item.at_s, item.call, item) for item in recorded)
        for name, state in self.machines.items():
            if state.down_at_s is not None:
                yield TimelineEntry(state.down_at_s, _call_at(state.down_at_s, starts), MachineDown(name, state))

    def facts_of(self, kind: str) -> tuple[Fact, ...]:
        """Return the facts of one kind, in the order in which they were reported."""
        return tuple(fact for fact in self.facts if fact.kind == kind)

    def first(self, what: TaskEvent) -> LedgerEntry | None:
        """Return the first ledger entry with the event ``what``, or None if no entry has this event."""
        return next((entry for entry in self.ledger if entry.what is what), None)


def _call_at(at_s: float, starts: Sequence[tuple[float, int]]) -> int:
    """Return the number of the last tool call that started by the time ``at_s``, or 0 if there is none.

    ``starts`` contains the start time and the number of each tool call, sorted by time.
    """
    started = bisect_right(starts, at_s, key=itemgetter(0))
    return starts[started - 1][1] if started else 0
