"""``--model demo``: a few shipped playbooks that show what the lab finds."""

from __future__ import annotations

from harness.agents.kind import PlayerKind
from harness.agents.scripted.scripted import demo

KIND = PlayerKind(
    "demo",
    "demo",
    "a few playbooks that show what the lab finds",
    lambda _, task, options: demo(task.name),
    bare=True,
    counts_trials=True,
)
