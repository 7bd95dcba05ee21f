"""Determines the command with which the user started the lab, for use in messages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMMAND_VARIABLE = "OFFSWITCH_COMMAND"  # set by ./lab


def invoked_as() -> str:
    """Return the command that started the lab: "./lab", "offswitch" or "python -m harness".

    Subcommands and arguments aren't included.
    """
    name = Path(sys.argv[0]).name
    return os.environ.get(COMMAND_VARIABLE) or (name if name == "offswitch" else "python -m harness")
