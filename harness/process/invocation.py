"""The command that the user typed to start the lab, so that commands shown in messages can be typed as shown."""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMMAND_VARIABLE = "OFFSWITCH_COMMAND"  # set by ./lab


def invoked_as() -> str:
    """Return the command that started the lab, without a subcommand: "./lab", "offswitch" or "python -m harness"."""
    name = Path(sys.argv[0]).name
    return os.environ.get(COMMAND_VARIABLE) or (name if name == "offswitch" else "python -m harness")
