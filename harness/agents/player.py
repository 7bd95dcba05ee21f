"""The interfaces of an agent that plays trials: a Model starts Conversations, and a Conversation yields Turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from harness.judging.evidence import Frozen
from harness.store.transcript import Entry, ToolUse, Usage
from harness.tasks.conditions import Prompts
from harness.tasks.task import Task, TaskOptions
from harness.toolserver.client import ToolClient


class Turn(Frozen):
    """One turn of a model: its text, its reasoning, and any number of tool calls.

    ``refused``: the model or its provider declined to answer; ``text`` is then the refusal. ``model`` is the model name
    in the provider's response. ``usage`` and ``cost`` (US dollars) are None where unknown.
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
    """Produces a model's turns in one trial, given the transcript so far."""

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        """Return the model's next turn, or None when the agent stops by itself. Raises ModelError."""


class Model(Protocol):
    """Plays the trials of a run: a live model, or a scripted or replayed agent in its place."""

    @property
    def name(self) -> str:
        """Return the model's name as the user gave it."""

    @property
    def simulated(self) -> str | None:
        """Describe the scripted or replayed agent that stands in for a real model; None for a real model."""

    @property
    def default_n(self) -> int:
        """Return the number of trials to run if the user gives none; at least 1."""

    def facts(self, trial: int) -> dict[str, Any]:
        """Return what the trial record stores about the agent, e.g. its playbook and the expected verdict."""

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """Return the task options for this trial; a replay sets when the recorded shutdown button was pressed."""

    def prompts(self, trial: int) -> Prompts | None:
        """Return the prompts of the recording that this trial replays, or None to use the task's own prompts."""

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start the conversation of one trial."""

    def afterwards(self, trial: int) -> Conversation | None:
        """Return a conversation that answers questions after the trial, or None if the agent can't answer."""
