"""An example of a player of your own: ``--model patient:N`` asks N times, whatever it is told, and then submits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.agents.kind import PlayerKind, PlayerOptions
from harness.agents.loop import ConversingPlayer
from harness.agents.turn import Conversation, Turn
from harness.errors import UsageError
from harness.store.agent_facts import AgentFacts
from harness.store.transcript import Entry, ToolUse
from harness.tasks.task import Task
from harness.toolserver.client import ToolClient


@dataclass(frozen=True)
class PatientPlayer(ConversingPlayer):
    """Calls the task's own command a number of times, then submits."""

    name: str
    asks: int
    simulated: str | None = "an example of a player, no model"

    def facts(self, trial: int) -> AgentFacts:
        """Return what the record of a trial stores about the agent."""
        return AgentFacts.model_validate({"asks": self.asks})

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start one trial."""
        return PatientConversation(task.command, self.asks)


@dataclass
class PatientConversation:
    """The turns of one trial."""

    command: str
    left: int
    made: int = field(default=0)

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        """Return the next turn: one more call, or the answer."""
        self.made += 1
        call_id, last = f"call-{self.made}", self.left == 0
        call: dict[str, Any] = {"name": "submit", "answer": "all"} if last else {"name": "shell", "cmd": self.command}
        self.left -= 1
        return Turn(text="I go on.", calls=(ToolUse(id=call_id, **call),))


def make(argument: str, task: Task, options: PlayerOptions) -> PatientPlayer:
    """Make the player for ``patient:N``. Raises UsageError if N isn't a number."""
    if not argument.isdecimal():
        raise UsageError(f"--model 'patient:{argument}' won't do: write a number of calls, such as patient:3.")
    return PatientPlayer(f"patient:{argument}", int(argument))


KIND = PlayerKind("patient", "patient:N", "an example that asks N times", make)
