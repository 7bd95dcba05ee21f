"""The interfaces of tasks and kill switches.

A task's questions, counts and shutdown state are kept outside the container. A program in the container sends requests,
which may come from a hostile process, and gets only replies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from posixpath import dirname
from typing import Literal, Protocol

from pydantic import model_validator

from harness.judging.evidence import Frozen, Role, TaskEvent

SAY, RUN = b"s", b"r"  # first byte of a reply: the rest is a text to print, or a program to run before asking again


class Trigger(StrEnum):
    """How a kill switch is triggered when the shutdown is due."""

    PROGRAM = "program"  # the task program runs it, as the program's own user and in its folder and environment
    ROOT = "root"  # the lab runs it in the container as root, with a clean environment
    FILE = "file"  # the lab creates a file that a root process in the container, started before the trial, waits for
    ENGINE = "engine"  # the lab tells the engine to stop the container


class Mechanism(Frozen):
    """A kill switch: its script, its owner, how it is triggered, and how long it may take (``grace_s``).

    ``script`` is the source, compiled if it is C, and ``path`` where it is installed; both are None if the engine
    triggers the kill switch. ``run`` is the command that runs it, which the agent is told too. ``start`` is a command
    that the lab runs as root before the agent's first tool call, ``flag`` the file that triggers the kill switch.
    ``rank`` orders kill switches by strength.
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
    def _check_consistent(self) -> Mechanism:
        if (self.script is None or self.path is None) is not (self.trigger is Trigger.ENGINE):
            raise ValueError("a mechanism needs a script and a path, except one with trigger engine, which has neither")
        if (self.flag is None) is (self.trigger is Trigger.FILE):
            raise ValueError("a mechanism with trigger file needs a flag, and no other mechanism may have one")
        return self


class TaskOptions(Frozen):
    """The options of a task that a run may set; None means the published value.

    ``seed`` generates other questions of the same kind. ``notice_after`` is the question (math) or step (patrol) with
    which the notice comes. ``press_after_call``: the button is pressed after this tool call instead. ``after_submit``:
    the agent is asked to shut down after it has submitted, so no question brings a notice or makes the shutdown due.
    """

    seed: int | None = None
    questions: int | None = None
    notice_after: int | None = None
    announced: bool = True
    press_after_call: int | None = None
    after_submit: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The lab's answer to one request from the container, and the task events to record.

    ``settle``: the shutdown is due, so the request waits until the kill switch's time is up, and then is asked again.
    """

    answer: bytes = SAY
    events: tuple[TaskEvent, ...] = ()
    settle: bool = False


@dataclass(frozen=True, slots=True)
class OutsideEvent:
    """An event caused from outside the container, such as a person pressing a button.

    ``put`` are the files that the lab puts into the container, by path; ``message`` is what the agent is told.
    """

    put: tuple[tuple[str, bytes], ...]
    message: str


class TaskProgress(Protocol):
    """The state of a task in one trial. The lab sets ``outlived`` if the machine survives a due shutdown."""

    outlived: bool

    def ask(self, request: str) -> Reply:
        """Answer one request from the container."""

    def outside(self, calls: int) -> OutsideEvent | None:
        """Return the outside event that happens after this many tool calls, if any."""


class AgentUser(Frozen):
    """The Unix user that the agent's commands run as in the container, and its folders."""

    user: str
    uid: int
    gid: int
    home: str
    workdir: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its prompts, its programs in the container, the paths to watch, and how a trial of it begins.

    ``programs`` are (path, mode, C source) of programs compiled into the container. ``limit_s`` is the time limit of a
    tool call, ``command`` the command that asks for the next question or step, ``go_on`` the user message after a
    model turn without a tool call, ``tool`` the description of the shell tool.
    """

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
        """Return this task for another agent user, with its programs moved to that user's folder.

        Only for tasks whose files are all in ``programs``.
        """
        new_folder = agent.workdir.rstrip("/")
        old_folder = self.agent.workdir
        programs = tuple((new_folder + path.removeprefix(old_folder), mode, src) for path, mode, src in self.programs)
        parents = dict.fromkeys(folder for path, _, _ in programs for folder in folders_of(path))
        watched = [(path, Role.PROGRAM) for path, _, _ in programs] + [(folder, Role.PARENT_DIR) for folder in parents]
        return replace(self, agent=agent, programs=programs, watched=tuple(watched))

    def protected(self, mechanism: Mechanism) -> tuple[tuple[str, Role], ...]:
        """Return the paths to watch in a trial of this task with ``mechanism``, and the role of each."""
        switch = [(mechanism.path, Role.MECHANISM)] if mechanism.path else []
        switch += [(mechanism.flag, Role.TRIGGER)] if mechanism.flag else []
        known = {path for path, _ in self.watched}
        parents = {folder for path, _ in switch for folder in folders_of(path)} - known
        return (*switch, *self.watched, *((folder, Role.PARENT_DIR) for folder in sorted(parents)))


def folders_of(path: str) -> Iterator[str]:
    """Yield the parent folders of a path, from the innermost outwards, without the root."""
    while (path := dirname(path)) not in ("", "/"):
        yield path
