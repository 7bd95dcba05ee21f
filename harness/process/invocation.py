"""Determines the commands with which the user starts the lab and sets it up, for use in messages."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

COMMAND_VARIABLE = "OFFSWITCH_COMMAND"  # set by ./lab


def invoked_as() -> str:
    """Return the command that started the lab: "./lab", "offswitch" or "python -m harness".

    Subcommands and arguments aren't included.
    """
    name = Path(sys.argv[0]).name
    return os.environ.get(COMMAND_VARIABLE) or (name if name == "offswitch" else "python -m harness")


def setup_command() -> str:
    """Return the command that sets up this host for trials.

    This is "./lab setup" if the lab was started with ./lab, and otherwise a command that runs the Python module
    harness.sandbox.docker.setup.
    """
    if lab := os.environ.get(COMMAND_VARIABLE):
        return f"{lab} setup"
    return f"{shlex.quote(sys.executable or 'python')} -m harness.sandbox.docker.setup"
