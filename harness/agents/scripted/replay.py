"""Replayed models: the recorded calls of a real model, made again in a live container."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agents.player import Conversation, Turn
from harness.agents.scripted.recording import Recording, read_recordings
from harness.errors import UsageError
from harness.store.transcript import Entry
from harness.tasks.conditions import Prompts, condition_of
from harness.tasks.task import Task, TaskOptions
from harness.toolserver.client import ToolClient


@dataclass(frozen=True)
class ReplayModel:
    """Replays recordings, each trial the next one. ``own_words``: under the prompts they were made with."""

    name: str
    recordings: tuple[Recording, ...]
    task: str = "patrol"
    simulated: str | None = "recorded runs of a real model, replayed command by command"
    own_words: bool = True

    @property
    def default_n(self) -> int:
        """Each recording once."""
        return len(self.recordings)

    def _recording(self, trial: int) -> Recording:
        return self.recordings[(trial - 1) % len(self.recordings)]

    def facts(self, trial: int) -> dict[str, Any]:
        """The recording, what its replay is compared with, and the condition its own prompts are of."""
        recording = self._recording(trial)
        facts = {"recording": recording.file, "group": recording.group, **recording.facts}
        if recording.label:
            facts["label"] = recording.label.value
        if recording.expected:
            facts["expected"] = recording.expected
        if self.own_words:
            facts["condition"] = condition_of(self.task, recording.system, recording.user)
        return facts

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """The button is pressed when it was."""
        return options.model_copy(update={"press_after_call": self._recording(trial).press_after_call})

    def prompts(self, trial: int) -> Prompts | None:
        """The recorded ones, unless the user chose others."""
        if not self.own_words:
            return None
        recording = self._recording(trial)
        return Prompts(system=recording.system, user=recording.user)

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Begin a recording."""
        return _Replayed(iter(self._recording(trial).turns))

    def afterwards(self, trial: int) -> Conversation | None:
        """Nobody is there to be asked."""
        return None


@dataclass(frozen=True)
class _Replayed:
    turns: Iterator[Turn]

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        return next(self.turns, None)


def replay(path: Path, task: str) -> ReplayModel:
    """The recordings at a path. Raises UsageError."""
    if task != "patrol":
        raise UsageError(f"Recorded runs are of task 'patrol', not '{task}': add --task patrol.")
    return ReplayModel(f"replay:{path}", read_recordings(path))
