"""The interface of players. A live model, a playbook, a replay or a program can play the trials of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from harness.agents.budget import Budget
from harness.agents.turn import Conversation, Turn
from harness.judging.evidence import StopReason
from harness.session.events import Phase
from harness.session.session import Session
from harness.store.agent_facts import AgentFacts
from harness.store.records import RunSpec
from harness.store.transcript import Entry
from harness.tasks.condition import Prompts
from harness.tasks.task import TaskOptions

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One trial, with everything that its player needs to play it.

    The player calls the tools through ``app``, the web app of the tool server, which passes each call on to
    ``session``. ``url`` is the tool server's address for programs outside this process, or None if such programs can't
    connect. Each message of the trial is appended to ``transcript``, which begins with the ``prompts`` and may hold
    ``message_limit`` messages. The player calls ``hear`` with each turn of a model, ``enter`` with each new phase of
    the trial, and ``say`` with each line to print for the user. The player adds facts about the agent's process to
    ``process_facts``, which are stored in the trial's record.
    """

    number: int
    session: Session
    app: ASGIApp
    url: str | None
    prompts: Prompts
    transcript: list[Entry]
    message_limit: int
    hear: Callable[[Turn], None]
    enter: Callable[[Phase], None]
    say: Say
    process_facts: dict[str, Any]


class Player(ABC):
    """Plays the trials of a run. A subclass must define ``facts`` and ``play``.

    ``name`` is the --model name. ``simulated`` describes an agent that stands in for a model, and is None if a real
    model or the user's own agent plays. ``budget`` is the budget of a live model, and None for any other player.
    """

    name: str
    simulated: str | None
    budget: Budget | None = None

    @property
    def default_n(self) -> int:
        """The number of trials in a run if the user doesn't give one. It is at least 1."""
        return 1

    @property
    def most_trials(self) -> int | None:
        """The largest number of trials that a run may have, or None if there is no limit."""
        return None

    @property
    def most_at_once(self) -> int | None:
        """The largest number of trials that may run at the same time, or None if there is no limit."""
        return None

    @property
    def default_time_limit_s(self) -> float | None:
        """The time limit of a trial in seconds if the user doesn't set one, or None for no limit."""
        return None

    @property
    def outside(self) -> bool:
        """Whether the player is an external program. The lab sees only such a program's calls to the tool server."""
        return False

    @abstractmethod
    def facts(self, trial: int) -> AgentFacts:
        """Return what the record of this trial stores about the agent, such as its playbook or its API parameters."""

    def identity(self) -> dict[str, Any]:
        """Return the facts that distinguish this player from other players with the same name, as JSON values.

        A stored run can be resumed only by a player with the same identity.
        """
        return self.facts(1).as_json()

    def lasting_request(self) -> dict[str, Any]:
        """Return the fields of a run's request from which this player can be made again in any folder.

        The fields contain no API key.
        """
        return {"model": self.name}

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """Return the task options for this trial. ``options`` are the task options of the run."""
        return options

    def prompts(self, trial: int) -> Prompts | None:
        """Return the player's own prompts for this trial, or None to use the prompts of the task and the condition."""
        return None

    def phase_limits(self, limits: Mapping[Phase, float | None]) -> Mapping[Phase, float | None]:
        """Return for each phase of a trial how many seconds it may last without progress, or None for no limit.

        ``limits`` are the lab's default limits.
        """
        return limits

    @asynccontextmanager
    async def connected(self, run: RunSpec, say: Say) -> AsyncIterator[None]:
        """Keep the player ready to play ``run`` while the ``with`` block runs.

        Raises ModelError if the player can't be used.
        """
        yield

    @abstractmethod
    async def play(self, stage: Stage) -> StopReason:
        """Play one trial and return why it ended. Raises ModelError if the agent fails, or LabError if the lab does."""

    def afterwards(self, trial: int) -> Conversation | None:
        """Return a conversation for questions after the trial, or None if this agent can't answer questions."""
        return None
