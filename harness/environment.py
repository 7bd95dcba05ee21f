"""The environment that the lab's own tools are started in: all of the user's, but for what may be a secret."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|HEADERS", re.IGNORECASE)


def without_keys() -> dict[str, str]:
    """The process's environment without variables that are named like a secret: no tool of the lab's needs one."""
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
