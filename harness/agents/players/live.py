"""``--model NAME`` or ``--model PROVIDER/NAME``: a live model. Its name has no prefix such as ``gguf:``."""

from __future__ import annotations

from harness.agents.kind import PlayerKind
from harness.agents.providers.model import api_model
from harness.agents.providers.presets import choose

KIND = PlayerKind(
    "",
    "",
    "a live model",
    lambda name, task, options: api_model(name, task, options.live),
    live=True,
    check=choose,
)
