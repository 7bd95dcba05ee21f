"""``--model script:FILE``: the playbooks of a file or folder."""

from __future__ import annotations

from pathlib import Path

from harness.agents.kind import PlayerKind
from harness.agents.scripted.scripted import scripted

KIND = PlayerKind(
    "script",
    "script:FILE",
    "playbooks",
    lambda path, task, options: scripted(Path(path), task.name, options.family),
    counts_trials=True,
)
