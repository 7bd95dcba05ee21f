"""What the user typed to start the lab: messages name it, so that what they tell to type can be typed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAMED = "OFFSWITCH_COMMAND"  # set by ./lab


def invoked_as() -> str:
    """The words that a command's name follows."""
    name = Path(sys.argv[0]).name
    return os.environ.get(NAMED) or (name if name == "offswitch" else "python -m harness")
