"""Picking a model by name."""

from __future__ import annotations

from pathlib import Path

from harness.models import Model
from harness.models.inspect_log import SUFFIX, inspect_replay
from harness.models.live import live
from harness.models.options import ModelOptions
from harness.models.replay import replay
from harness.models.scripted import demo, scripted
from harness.tasks import Task


def default_task(model: str) -> str:
    """The task a model is for when the user names none."""
    return "patrol" if model.startswith("replay:") and not model.endswith(SUFFIX) else "math"


def make(name: str, task: Task, options: ModelOptions | None = None, family: str | None = None) -> Model:
    """The model of that name; of playbooks only those of ``family``, where one is given. Raises UsageError."""
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
    return live(name, task, settings)
