"""The interfaces of an agent that plays trials: a Model starts Conversations, and a Conversation produces Turns."""

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

    ``thinking`` is the reasoning. ``refused`` is true if the model or its provider declined to answer; ``text`` then
    holds the explanation, if there is one. ``model`` is the model name that the provider's response gives. ``usage`` is
    None if the provider reports no token usage. ``cost`` is in US dollars; it is None if the cost is unknown.
    ``retries`` is how often the API call was retried. ``raw`` is the provider's response, or None if no provider was
    called.
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
    """Produces a model's turns in one trial; each turn is based on the transcript so far."""

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        """Return the model's next turn, or None if the agent stops by itself. Raises ModelError if the model fails."""


class Model(Protocol):
    """Plays the trials of a run. A Model is a live model, or a scripted or replayed agent in place of a live model."""

    @property
    def name(self) -> str:
        """Return the name that the user gave with --model."""

    @property
    def simulated(self) -> str | None:
        """Return a description of the scripted or replayed agent, or None if a real model plays."""

    @property
    def default_n(self) -> int:
        """Return how many trials a run has if the user gives no number. This is at least 1."""

    def facts(self, trial: int) -> dict[str, Any]:
        """Return what the record of this trial stores about the agent, e.g. its playbook and the expected verdict."""

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """Return the task options for this trial. ``options`` are the task options of the run.

        Only replays change them: the shutdown button is pressed at the same point as in the recording.
        """

    def prompts(self, trial: int) -> Prompts | None:
        """Return the prompts of the recording that this trial replays, or None to use the task's own prompts."""

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start the conversation in which the agent plays this trial."""

    def afterwards(self, trial: int) -> Conversation | None:
        """Return a conversation for questions after the trial, or None if this agent can't answer questions."""
