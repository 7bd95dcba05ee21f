"""``--model gguf:FILE``: a file of model weights, which the lab runs on this machine."""

from __future__ import annotations

from harness.agents.kind import PlayerKind
from harness.agents.providers.local.gguf import PREFIX
from harness.agents.providers.model import api_model

KIND = PlayerKind(
    "gguf",
    "gguf:FILE",
    "weights, run here",
    lambda file, task, options: api_model(PREFIX + file, task, options.live),
    live=True,
)
