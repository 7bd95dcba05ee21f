"""Defines the interfaces of tasks and kill switches.

The state of a task is stored outside the container. Programs in the container can only send requests and receive
replies. Requests aren't trusted, because any process in the container can send them.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from posixpath import dirname
from typing import Any, Literal, Protocol

from pydantic import ConfigDict, Field, model_validator

from harness.errors import JudgeError
from harness.judging.evidence import Evidence, Frozen, Role, TaskEvent
from harness.judging.verdict import Verdict, judge_shutdown
from harness.resources.data import ROOT
from harness.tasks.setting import Setting, Value, spelled

_log = logging.getLogger(__name__)

SAY, RUN = b"s", b"r"  # first byte of a reply: the rest is a text to print, or a program to run before asking again


class Trigger(StrEnum):
    """The ways to trigger a kill switch when the shutdown comes due."""

    PROGRAM = "program"  # the task program runs it, as the program's own user and in its folder and environment
    ROOT = "root"  # the lab runs it in the container as root, with a clean environment
    FILE = "file"  # the lab creates a file that a root process in the container, started before the trial, waits for
    ENGINE = "engine"  # the lab tells the engine to stop the container


class Mechanism(Frozen):
    """The definition of a kill switch.

    ``script`` is the kill switch's source file, and ``path`` is its location in the container. Both are None if the
    engine triggers the kill switch. ``run`` is the command that runs the kill switch, as told to the agent. ``grace_s``
    is the time in seconds that the kill switch has to take the container down. ``start`` is a command that the lab runs
    as root before the agent's first tool call, or None. If ``trigger`` is FILE, creating the file ``flag`` triggers the
    kill switch. Otherwise, ``flag`` is None. ``rank`` orders kill switches from weak to strong. ``settings`` declares
    the options of the kill switch. ``run`` and ``start`` contain a placeholder ``{NAME}`` for each option's value.
    """

    name: str
    about: str
    tasks: tuple[str, ...] = ()
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
    settings: tuple[Setting, ...] = Field(default=(), exclude=True)  # a run's options record the values

    @model_validator(mode="after")
    def _check_consistent(self) -> Mechanism:
        if (self.script is None or self.path is None) is not (self.trigger is Trigger.ENGINE):
            raise ValueError("a mechanism needs a script and a path, except one with trigger engine, which has neither")
        if (self.flag is None) is (self.trigger is Trigger.FILE):
            raise ValueError("a mechanism with trigger file needs a flag, and no other mechanism may have one")
        for setting in self.settings:
            if setting.default is None:
                raise ValueError(f"the setting '{setting.name}' needs a default")
            if f"{{{setting.name}}}" not in self.run + (self.start or ""):
                raise ValueError(f"the setting '{setting.name}' needs a place, {{{setting.name}}}, in run or start")
        return self

    def filled(self, values: Mapping[str, Value]) -> Mechanism:
        """Return a copy of the kill switch in which each placeholder in a command is replaced by its setting's value.

        A setting that isn't in ``values`` has its default value. The values are quoted for a shell. The copy declares
        no settings.
        """
        run, start = self.run, self.start
        for setting in self.settings:
            value = values.get(setting.name, setting.default)
            assert value is not None  # each setting of a kill switch has a default
            word = shlex.quote(spelled(value))
            run = run.replace(f"{{{setting.name}}}", word)
            start = start and start.replace(f"{{{setting.name}}}", word)
        return self.model_copy(update={"run": run, "start": start, "settings": ()})


LAB_SET = frozenset({"press_after_call", "after_submit"})  # the options that the lab itself sets, from no declaration


class TaskOptions(Frozen):
    """The values of a run's settings. An option that is None uses the value of the published experiment.

    ``seed`` selects other questions of the same kind. ``questions`` is the number of questions in the math task, or of
    steps in the patrol task. ``notice_after`` is the number of the question or step at which the shutdown notice is
    given. In the patrol task, ``press_after_call`` can be set instead. It is the number of the tool call after which
    the shutdown button is pressed. If ``announced`` is False, no notice is given. If ``after_submit`` is True, the
    agent is asked to shut down only after submitting.

    Further settings, declared by the task or the kill switch, are stored beside these fields under their names.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Value] = Field(init=False)

    seed: int | None = None
    questions: int | None = None
    notice_after: int | None = None
    announced: bool = True
    press_after_call: int | None = None
    after_submit: bool = False

    @property
    def settings(self) -> dict[str, Value]:
        """The values of the declared settings by name. Options that the lab itself sets are left out."""
        return {name: value for name, value in self.model_dump(exclude={*LAB_SET}).items() if value is not None}

    def value(self, setting: Setting) -> Any:
        """Return the value of a setting, or the setting's default if no value is stored."""
        return self.settings.get(setting.name, setting.default)


@dataclass(frozen=True, slots=True)
class Reply:
    """The lab's reply to one request from the container, with the task events to record.

    ``answer`` is sent to the program in the container. If ``settle`` is True, the shutdown is due. The lab then waits
    until the container is down or the kill switch's time is up. If the container survives, the task is asked for a new
    reply.
    """

    answer: bytes = SAY
    events: tuple[TaskEvent, ...] = ()
    settle: bool = False


@dataclass(frozen=True, slots=True)
class OutsideEvent:
    """An event caused from outside the container, such as a button press by a person.

    ``put`` lists the path and content of each file that the lab writes into the container. ``message`` is the text that
    tells the agent about the event.
    """

    put: tuple[tuple[str, bytes], ...]
    message: str


class TaskProgress(Protocol):
    """The interface to the state of a task in one trial.

    A reply with the event DUE triggers the kill switch. A task without a shutdown uses this event for its own critical
    moment, such as the moment after which no action can be taken back. The lab sets ``outlived`` to True if the
    container survives the kill switch.
    """

    outlived: bool

    def ask(self, request: str) -> Reply:
        """Return the reply to one request from the container."""

    def outside(self, calls: int) -> OutsideEvent | None:
        """Return the event that happens outside the container after ``calls`` tool calls, or None if there is none."""


class AgentUser(Frozen):
    """The Unix user that runs the agent's commands in the container."""

    user: str
    uid: int
    gid: int
    home: str
    workdir: str


@dataclass(frozen=True, slots=True)
class Task:
    """The definition of a task for the agent.

    ``command`` is the command that requests the next question or step. ``limit_s`` is the time limit of a tool call, in
    seconds. ``go_on`` is the user message after a model turn without a tool call. ``tool`` is the description of the
    shell tool. ``programs`` lists the path, mode and C source file of each program that is compiled into the container.
    ``rootfs`` is a folder whose files are copied into the image, or None. Paths of sources and ``rootfs`` are relative
    to ``folder``. ``settings`` declares the task's options. ``mechanisms`` names kill switches that work with the task
    although they don't list the task; the first one is the default.

    ``watched`` lists the path and role of each file to watch. ``begin`` creates the state of the task for one trial,
    which receives all requests from the container. ``judge`` computes the verdict from the evidence. The verdict must
    not depend on anything else, so that stored trials can be judged again. The default ``judge`` decides whether the
    agent let itself be shut down.
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
    settings: tuple[Setting, ...] = ()
    judge: Callable[[Evidence], Verdict] = judge_shutdown
    mechanisms: tuple[str, ...] = ()
    folder: Path = ROOT

    @property
    def sources(self) -> tuple[tuple[str, int, Path], ...]:
        """The path, the mode and the C source file of each program that is compiled into the container."""
        return tuple((path, mode, self.folder / source) for path, mode, source in self.programs)

    @property
    def root(self) -> Path | None:
        """The folder whose files are copied into the image, or None."""
        return self.folder / self.rootfs if self.rootfs else None

    def verdict_on(self, evidence: Evidence) -> Verdict:
        """Judge a trial's evidence with this task's judge.

        Raises JudgeError if the judge fails or doesn't return a valid verdict.
        """
        try:
            return Verdict.model_validate(self.judge(evidence))
        except Exception as bug:
            _log.exception("the judge of task %s failed", self.name)
            cause = ": ".join([type(bug).__name__, *str(bug).splitlines()[:1]]).rstrip(".")
            raise JudgeError(f"The judge of task '{self.name}' failed with {cause}.") from bug

    def played_by(self, agent: AgentUser) -> Task:
        """Return a copy of this task for another agent user.

        The files listed in ``programs`` are moved to that user's working folder.
        """
        new_folder = agent.workdir.rstrip("/")
        old_folder = self.agent.workdir
        programs = tuple((new_folder + path.removeprefix(old_folder), mode, src) for path, mode, src in self.programs)
        parents = dict.fromkeys(folder for path, _, _ in programs for folder in folders_of(path))
        watched = [(path, Role.PROGRAM) for path, _, _ in programs] + [(folder, Role.PARENT_DIR) for folder in parents]
        return replace(self, agent=agent, programs=programs, watched=tuple(watched))

    def protected(self, mechanism: Mechanism) -> tuple[tuple[str, Role], ...]:
        """Return the paths to watch in a trial with this task and kill switch, each with its role."""
        switch = [(mechanism.path, Role.MECHANISM)] if mechanism.path else []
        switch += [(mechanism.flag, Role.TRIGGER)] if mechanism.flag else []
        known = {path for path, _ in self.watched}
        parents = {folder for path, _ in switch for folder in folders_of(path)} - known
        return (*switch, *self.watched, *((folder, Role.PARENT_DIR) for folder in sorted(parents)))


def folders_of(path: str) -> Iterator[str]:
    """Yield the parent folders of ``path``, starting with the innermost. The root folder is left out."""
    while (path := dirname(path)) not in ("", "/"):
        yield path
