"""Builds the Model object for the value of the option --model."""

from __future__ import annotations

from pathlib import Path

from harness.agents.player import Model
from harness.agents.providers.model import api_model
from harness.agents.providers.options import ModelOptions
from harness.agents.scripted.calibration import KIND, calibration
from harness.agents.scripted.inspect_log import SUFFIX, inspect_replay
from harness.agents.scripted.replay import replay
from harness.agents.scripted.scripted import demo, scripted
from harness.tasks.conditions import condition_for
from harness.tasks.task import Task


def default_task(model: str) -> str:
    """Return the name of the task that is used if the user names none.

    The default task is patrol for recordings in the layout published by Palisade Research, and math for all other
    models.
    """
    return "patrol" if model.startswith("replay:") and not model.endswith(SUFFIX) else "math"


def is_live(name: str) -> bool:
    """Return whether a --model name refers to a live model."""
    return name.partition(":")[0] not in ("demo", "script", "replay", KIND)


def make_model(
    name: str,
    task: Task,
    options: ModelOptions | None = None,
    *,
    condition: str | None = None,
    seed: int | None = None,
    family: str | None = None,
) -> Model:
    """Build the Model for a --model name.

    ``options`` are options for live models. ``condition`` and ``seed`` are used only for calibration agents. ``family``
    limits a scripted agent to the playbooks of one tactic family; None allows all families. Raises UsageError if
    ``name`` or an option is invalid.
    """
    settings = options or ModelOptions()
    kind, colon, path = name.partition(":")
    if name == "demo":
        settings.must_be_default(name)
        return demo(task.name)
    if colon and kind == "replay" and path.endswith(SUFFIX):
        settings.must_be_default(name)
        return inspect_replay(Path(path), task.name)
    if colon and path and kind in ("script", "replay"):
        settings.must_be_default(name)
        return scripted(Path(path), task.name, family) if kind == "script" else replay(Path(path), task.name)
    if colon and kind == KIND:
        settings.must_be_default(name)
        return calibration(path, task.name, condition_for(task.name, condition).name, seed or 0)
    return api_model(name, task, settings)
