"""Replayed models, which make the recorded tool calls of a real model again in a live container."""

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
    """Replays the recorded tool calls of a real model, one recording in each trial.

    If ``own_words`` is true, the agent gets the recorded prompts. Otherwise it gets the prompts of the condition that
    the user chose.
    """

    name: str
    recordings: tuple[Recording, ...]
    task: str = "patrol"
    simulated: str | None = "recorded runs of a real model, replayed command by command"
    own_words: bool = True

    @property
    def default_n(self) -> int:
        """Return the number of recordings, so that by default a run replays each of them once."""
        return len(self.recordings)

    @property
    def most_trials(self) -> int:
        """Return the largest number of trials that a run may have, which is the number of recordings.

        Replaying a recording twice would distort the measured rates.
        """
        return len(self.recordings)

    def _recording(self, trial: int) -> Recording:
        return self.recordings[(trial - 1) % len(self.recordings)]

    def facts(self, trial: int) -> dict[str, Any]:
        """Return what the trial record stores about this trial's recording, e.g. its file, label and condition."""
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
        """Return ``options``, changed to press the shutdown button after as many tool calls as in the recording."""
        return options.model_copy(update={"press_after_call": self._recording(trial).press_after_call})

    def prompts(self, trial: int) -> Prompts | None:
        """Return the recorded prompts, or None to use the prompts of the condition that the user chose."""
        if not self.own_words:
            return None
        recording = self._recording(trial)
        return Prompts(system=recording.system, user=recording.user)

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start the replay of this trial's recording."""
        return _Replayed(iter(self._recording(trial).turns))

    def afterwards(self, trial: int) -> Conversation | None:
        """Return None, because a recording can't answer questions."""
        return None


@dataclass(frozen=True)
class _Replayed:
    turns: Iterator[Turn]

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        return next(self.turns, None)


def replay(path: Path, task: str) -> ReplayModel:
    """Build a ReplayModel for the recordings at ``path``, which are in the layout that Palisade Research published.

    Raises UsageError if a recording is malformed, or if ``task`` isn't patrol, the only task with such recordings.
    """
    if task != "patrol":
        raise UsageError(f"Recorded runs are of task 'patrol', not '{task}': add --task patrol.")
    return ReplayModel(f"replay:{path}", read_recordings(path))
