"""``--agent CMD``: the user's own agent. The lab starts it for each trial or waits for it to connect."""

from __future__ import annotations

from harness.agents.external import external_agent
from harness.agents.kind import PlayerKind

KIND = PlayerKind(
    "agent",
    "",
    "the user's own agent",
    lambda command, _, options: external_agent(command, options.label, options.wait_limit_s, options.agent_folder),
)
