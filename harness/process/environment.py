"""The environment variables passed to the lab's child processes: those of the user, without possible secrets."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|HEADERS", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s]*@")


def without_keys() -> dict[str, str]:
    """Return the environment without variables named like a secret or whose value is a URL with a password."""
    pairs = os.environ.items()
    return {name: value for name, value in pairs if not (_SECRET.search(name) or _PASSWORD.search(value))}


def proxies() -> dict[str, str]:
    """Return the proxy variables, for child processes that download packages; they may contain a password."""
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
