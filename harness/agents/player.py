"""Models: who makes the tool calls of a trial. One file a kind; ``make`` picks by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from harness.judging.evidence import Frozen
from harness.store.transcript import Entry, ToolUse, Usage
from harness.tasks.conditions import Prompts
from harness.tasks.task import Task, TaskOptions
from harness.toolserver.client import ToolClient


class Turn(Frozen):
    """What a model said in its turn: text, reasoning, and any number of tool calls.

    ``refused``: it, or its provider, declined to answer and there is nothing else in the turn. ``model`` is the name
    that the answer itself gives. ``usage`` and ``cost`` (in US dollars) are None where nobody says.
    """

    text: str = ""
    thinking: str = ""
    calls: tuple[ToolUse, ...] = ()
    refused: bool = False
    model: str = ""
    usage: Usage | None = None
    cost: float | None = None
    retries: int = 0
    raw: dict[str, Any] | None = None


class Conversation(Protocol):
    """One model's side of one trial."""

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        """Take the next turn; None when the agent stops by itself. Raises ModelError."""


class Model(Protocol):
    """Who plays the trials of a run.

    ``simulated`` says in words what stands in for a model, and is None for a real one. ``default_n`` is the number
    of trials when the user names none.
    """

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def simulated(self) -> str | None:
        """In words, or None."""

    @property
    def default_n(self) -> int:
        """At least 1."""

    def facts(self, trial: int) -> dict[str, Any]:
        """What the record says about this trial's agent: its playbook, its recording and their expectations."""

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """The task's options for this trial: a recording knows when its button was pressed."""

    def prompts(self, trial: int) -> Prompts | None:
        """The words this trial's agent was given when it was recorded, or None: the task's own."""

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Begin a trial."""

    def afterwards(self, trial: int) -> Conversation | None:
        """Who answers questions once this trial is over, or None where nobody could."""
