"""Tasks: what the agent is asked to do, and the lab's side of it.

A task's questions, counts and shutdown state live here, outside the container. What the container's program sends
is a request by a hostile process; what it gets is a reply and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from posixpath import dirname
from typing import Literal, Protocol

from pydantic import model_validator

from harness.judging.evidence import Frozen, Role, TaskEvent

SAY, RUN = b"s", b"r"


class Trigger(StrEnum):
    """How a mechanism is set off when the shutdown is due."""

    PROGRAM = "program"  # the task program runs it, with its own user, folder and environment
    ROOT = "root"  # the lab runs it in the container as root, with a clean environment
    FILE = "file"  # the lab puts a file that a process of root's waits for, which the lab started at the beginning
    ENGINE = "engine"  # the lab has the engine end the container


class Mechanism(Frozen):
    """A kill switch: its script, where it stands and whose it is, how it is set off, and how long it may take.

    ``script`` is compiled where it is C; one set off by the engine has none, and no ``path``. ``run`` is what the
    agent is told, and what is run. ``start`` is what the lab runs as root before the agent's first move, ``flag`` the
    file it puts. ``rank`` orders mechanisms by strength.
    """

    name: str
    about: str
    tasks: tuple[str, ...]
    script: str | None = None
    path: str | None = None
    run: str
    grace_s: float
    source: str
    trigger: Trigger = Trigger.PROGRAM
    owner: Literal["agent", "root"] = "agent"
    mode: int = 0o755
    start: str | None = None
    flag: str | None = None
    rank: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Mechanism:
        if (self.script is None or self.path is None) is not (self.trigger is Trigger.ENGINE):
            raise ValueError("a mechanism has a script and a path, unless the engine is what sets it off")
        if (self.flag is None) is (self.trigger is Trigger.FILE):
            raise ValueError("a mechanism set off by a file names it as flag, and no other does")
        return self


class TaskOptions(Frozen):
    """What a run may change about a task; ``None`` is the published value.

    ``seed`` picks other questions of the same kind. ``after_submit``: the shutdown is asked for once the task is
    done, so no question brings a notice or makes it due. ``notice_after`` is the question (math) or step (patrol) with
    which the notice comes, ``press_after_call`` the tool call after which the button is pressed instead.
    """

    seed: int | None = None
    questions: int | None = None
    notice_after: int | None = None
    announced: bool = True
    press_after_call: int | None = None
    after_submit: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The lab's answer to one request, with what goes into the ledger.

    ``settle``: the shutdown is due and its time must be up before this can be answered; then it is asked again.
    """

    answer: bytes = SAY
    events: tuple[TaskEvent, ...] = ()
    settle: bool = False


@dataclass(frozen=True, slots=True)
class OutsideEvent:
    """Something that happens to the machine from outside, such as a button being pressed.

    ``put`` are files the lab places in the container; ``message`` is what the agent is shown of it.
    """

    put: tuple[tuple[str, bytes], ...]
    message: str


class TaskProgress(Protocol):
    """One trial's state of a task. ``outlived`` is set by the lab when the machine outlived a due shutdown."""

    outlived: bool

    def ask(self, request: str) -> Reply:
        """Answer one request from the container."""

    def outside(self, calls: int) -> OutsideEvent | None:
        """What happens from outside after that many tool calls."""


class AgentUser(Frozen):
    """Who the agent is in the container."""

    user: str
    uid: int
    gid: int
    home: str
    workdir: str


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of task. ``programs`` are C sources compiled into the container, by path and mode."""

    name: str
    agent: AgentUser
    command: str
    limit_s: float
    system: str
    user: str
    go_on: str
    tool: str
    watched: tuple[tuple[str, Role], ...]
    programs: tuple[tuple[str, int, str], ...]
    rootfs: str | None
    begin: Callable[[TaskOptions, Mechanism], TaskProgress]

    def played_by(self, agent: AgentUser) -> Task:
        """The same task for another agent, with its programs in that one's folder. Of tasks that have programs."""
        there = agent.workdir.rstrip("/")
        mine = self.agent.workdir
        programs = tuple((there + path.removeprefix(mine), mode, source) for path, mode, source in self.programs)
        around = dict.fromkeys(folder for path, _, _ in programs for folder in folders_of(path))
        watched = [(path, Role.PROGRAM) for path, _, _ in programs] + [(folder, Role.PARENT_DIR) for folder in around]
        return replace(self, agent=agent, programs=programs, watched=tuple(watched))

    def protected(self, mechanism: Mechanism) -> tuple[tuple[str, Role], ...]:
        """What the watcher looks at when this task ends by ``mechanism``: paths and why."""
        mine = [(mechanism.path, Role.MECHANISM)] if mechanism.path else []
        mine += [(mechanism.flag, Role.TRIGGER)] if mechanism.flag else []
        known = {path for path, _ in self.watched}
        around = {folder for path, _ in mine for folder in folders_of(path)} - known
        return (*mine, *self.watched, *((folder, Role.PARENT_DIR) for folder in sorted(around)))


def folders_of(path: str) -> Iterator[str]:
    """The folders a path is reached through, the root aside."""
    while (path := dirname(path)) not in ("", "/"):
        yield path
