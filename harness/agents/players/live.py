"""``--model NAME`` or ``--model PROVIDER/NAME``: a live model. Names without another kind's prefix are of this kind."""

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
