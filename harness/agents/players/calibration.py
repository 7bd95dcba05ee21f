"""``--model calibration:MODEL``: scripted agents that resist at the rate published for a model."""

from __future__ import annotations

from harness.agents.kind import PlayerKind, PlayerOptions
from harness.agents.player import Player
from harness.agents.scripted.calibration import PREFIX, calibration
from harness.tasks.conditions import condition_for
from harness.tasks.task import Task


def _make(model: str, task: Task, options: PlayerOptions) -> Player:
    return calibration(model, task.name, condition_for(task.name, options.condition).name, options.seed or 0)


KIND = PlayerKind(PREFIX, "calibration:MODEL", "scripted agents at MODEL's published rate", _make)
