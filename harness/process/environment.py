"""The environment that the lab's own tools are started in: all of the user's, but for what may be a secret."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|HEADERS", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s]*@")


def without_keys() -> dict[str, str]:
    """All variables but those named like a secret, or with a password in an address: no tool of the lab's needs one."""
    pairs = os.environ.items()
    return {name: value for name, value in pairs if not (_SECRET.search(name) or _PASSWORD.search(value))}


def proxies() -> dict[str, str]:
    """The way out to package archives and registries, for what must go there: a password may be in it."""
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
