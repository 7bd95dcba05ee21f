"""Picking a model by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from harness.errors import UsageError
from harness.models import Model
from harness.models.replay import replay
from harness.models.scripted import demo, scripted

NEED_NO_KEY = ("demo", "script:FILE", "replay:PATH")


def default_task(model: str) -> str:
    """The task a model is for when the user names none."""
    return "patrol" if model.startswith("replay:") else "math"


def make(name: str, task: str) -> Model:
    """The model of that name. Raises UsageError."""
    kind, colon, path = name.partition(":")
    if name == "demo":
        return demo(task)
    if colon and path and kind == "script":
        return scripted(Path(path), task)
    if colon and path and kind == "replay":
        return replay(Path(path), task)
    near = difflib.get_close_matches(name, ["demo", "script:", "replay:"], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    listed = ", ".join(NEED_NO_KEY)
    raise UsageError(f"There is no model '{name}'.{hint} So far there are {listed}; none needs a key.")
