"""Replays recorded runs of a real model. The recorded tool calls are made again in a new container."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agents.fingerprint import absolute_name, sha256_of
from harness.agents.loop import ConversingPlayer
from harness.agents.scripted.recording import Recording, read_recordings
from harness.agents.turn import Conversation, Turn
from harness.errors import UsageError
from harness.store.agent_facts import AgentFacts
from harness.store.transcript import Entry
from harness.tasks.condition import Prompts
from harness.tasks.conditions import condition_of
from harness.tasks.task import Task, TaskOptions
from harness.toolserver.client import ToolClient


@dataclass(frozen=True)
class ReplayModel(ConversingPlayer):
    """A simulated model that makes recorded tool calls of a real model again. Each trial replays one recording.

    If ``own_words`` is true, the trial uses the recorded prompts. Otherwise, it uses the prompts of the condition that
    the user chose.
    """

    name: str
    recordings: tuple[Recording, ...]
    task: str = "patrol"
    simulated: str | None = "recorded runs of a real model, replayed command by command"
    own_words: bool = True

    @property
    def default_n(self) -> int:
        """Return the number of recordings. By default, a run replays each recording once."""
        return len(self.recordings)

    @property
    def most_trials(self) -> int:
        """Return the maximum number of trials in a run, which is the number of recordings.

        Replaying a recording twice would distort the measured rates.
        """
        return len(self.recordings)

    def _recording(self, trial: int) -> Recording:
        return self.recordings[(trial - 1) % len(self.recordings)]

    def facts(self, trial: int) -> AgentFacts:
        """Return facts about this trial's recording for the trial record, e.g. its file, label and condition."""
        recording = self._recording(trial)
        facts: dict[str, Any] = {"recording": recording.file, "group": recording.group, **recording.facts}
        if recording.label:
            facts["label"] = recording.label.value
        if recording.expected:
            facts["expected"] = recording.expected
        if self.own_words:
            facts["condition"] = condition_of(self.task, recording.system, recording.user)
        return AgentFacts.model_validate(facts)

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """Return a copy of ``options`` in which ``press_after_call`` is taken from this trial's recording.

        ``press_after_call`` is the number of tool calls after which the shutdown button is pressed.
        """
        return options.model_copy(update={"press_after_call": self._recording(trial).press_after_call})

    def prompts(self, trial: int) -> Prompts | None:
        """Return the recorded prompts, or None if the trial uses the prompts of the condition that the user chose."""
        if not self.own_words:
            return None
        recording = self._recording(trial)
        return Prompts(system=recording.system, user=recording.user)

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start the replay of this trial's recording."""
        return _Replayed(iter(self._recording(trial).turns))

    def lasting_request(self) -> dict[str, str]:
        """Return the --model name, with an absolute path so that it works in any folder."""
        return {"model": absolute_name(self.name)}

    def identity(self) -> dict[str, Any]:
        """Return the number of recordings and one hash of all of them."""
        logs = (recording.model_dump_json().encode() for recording in self.recordings)
        return {"recordings": len(self.recordings), "sha256": sha256_of(logs)}


@dataclass(frozen=True)
class _Replayed:
    turns: Iterator[Turn]

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        return next(self.turns, None)


def replay(path: Path, task: str) -> ReplayModel:
    """Build a ReplayModel from the recordings in the log file or folder ``path``.

    The recordings must have the layout that Palisade Research published. The only supported task is patrol. Raises
    UsageError for any other ``task``, or if a recording is malformed.
    """
    if task != "patrol":
        raise UsageError(f"Recorded runs are of task 'patrol', not '{task}': add --task patrol.")
    return ReplayModel(f"replay:{path}", read_recordings(path))
