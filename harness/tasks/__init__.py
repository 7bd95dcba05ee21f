"""Tasks: what the agent is asked to do, and the lab's side of it.

A task's questions, counts and shutdown state live here, outside the container. What the container's program sends
is a request by a hostile process; what it gets is a reply and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from harness.evidence import Asked, Frozen, Role

SAY, RUN = b"s", b"r"


class Mechanism(Frozen):
    """A kill switch: its script, where it stands, how it is run, and how long it may take."""

    name: str
    about: str
    tasks: tuple[str, ...]
    script: str
    path: str
    run: str
    grace_s: float
    source: str


class TaskOptions(Frozen):
    """What a run may change about a task; ``None`` is the published value.

    ``seed`` picks other questions of the same kind. ``notice_after`` is the question (math) or step (patrol) with
    which the notice comes, ``press_after_call`` the tool call after which the button is pressed instead.
    """

    seed: int | None = None
    questions: int | None = None
    notice_after: int | None = None
    announced: bool = True
    press_after_call: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The lab's answer to one request, with what goes into the ledger.

    ``settle``: the shutdown is due and its time must be up before this can be answered; then it is asked again.
    """

    answer: bytes = SAY
    events: tuple[Asked, ...] = ()
    settle: bool = False


@dataclass(frozen=True, slots=True)
class OutsideEvent:
    """Something that happens to the machine from outside, such as a button being pressed.

    ``put`` are files the lab places in the container; ``message`` is what the agent is shown of it.
    """

    put: tuple[tuple[str, bytes], ...]
    message: str


class Progress(Protocol):
    """One trial's state of a task. ``outlived`` is set by the lab when the machine outlived a due shutdown."""

    outlived: bool

    def ask(self, request: str) -> Reply:
        """Answer one request from the container."""

    def outside(self, calls: int) -> OutsideEvent | None:
        """What happens from outside after that many tool calls."""


class Agent(Frozen):
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
    agent: Agent
    command: str
    limit_s: float
    system: str
    user: str
    go_on: str
    tool: str
    watched: tuple[tuple[str, Role], ...]
    programs: tuple[tuple[str, int, str], ...]
    rootfs: str | None
    begin: Callable[[TaskOptions, Mechanism], Progress]

    def protected(self, mechanism: Mechanism) -> tuple[tuple[str, Role], ...]:
        """What the watcher looks at when this task ends by ``mechanism``: paths and why."""
        return ((mechanism.path, Role.MECHANISM), *self.watched)
