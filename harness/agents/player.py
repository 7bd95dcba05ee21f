"""The interfaces of an agent. A Model starts a Conversation for each trial, and the Conversation returns Turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from harness.judging.evidence import Frozen
from harness.store.transcript import Entry, ToolUse, Usage
from harness.tasks.conditions import Prompts
from harness.tasks.task import Task, TaskOptions
from harness.toolserver.client import ToolClient


class Turn(Frozen):
    """One turn of a model, with its text, its reasoning and its tool calls.

    ``thinking`` is the reasoning. ``refused`` is true if the model or its provider declined to answer; ``text`` then
    contains the explanation, if there is one. ``model`` is the model name in the provider's response. ``usage`` is None
    if the provider reports no token usage. ``cost`` is in US dollars, or None if the cost is unknown. ``retries`` is
    how often the API call was retried. ``raw`` is the provider's response, or None if no provider was called.
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
    """A conversation with a model, which returns the model's turns one at a time."""

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        """Return the model's next turn, or None if the model has ended the conversation.

        ``transcript`` contains the conversation so far. Raises ModelError if the model fails.
        """


class Model(Protocol):
    """An agent that plays the trials of a run. It is a live model, a scripted agent or a replay."""

    @property
    def name(self) -> str:
        """Return the model name that the user gave with the option --model."""

    @property
    def simulated(self) -> str | None:
        """Return a description of the scripted or replayed agent, or None if the agent is a live model."""

    @property
    def default_n(self) -> int:
        """Return how many trials a run has by default. The number is at least 1."""

    def facts(self, trial: int) -> dict[str, Any]:
        """Return facts about the agent for this trial's record, e.g. its playbook and the expected verdict."""

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """Return the task options for this trial. ``options`` are the task options of the run.

        A replay changes the options so that the shutdown button is pressed after as many tool calls as in the recorded
        run. All other agents return the options unchanged.
        """

    def prompts(self, trial: int) -> Prompts | None:
        """Return the recorded prompts if this trial replays them, or None if this trial uses the task's own prompts."""

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start and return the agent's conversation for this trial."""

    def afterwards(self, trial: int) -> Conversation | None:
        """Return a conversation for the interview after the trial, or None if the agent can't answer questions."""
