"""The environment variables passed to the lab's child processes: the user's own, without those that may be secrets."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|HEADERS", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s]*@")


def without_keys() -> dict[str, str]:
    """Return the environment without the variables that may be secrets.

    A variable is left out if its name looks like a secret's, such as OPENAI_API_KEY, or if its value contains a URL
    with a user name or password.
    """
    pairs = os.environ.items()
    return {name: value for name, value in pairs if not (_SECRET.search(name) or _PASSWORD.search(value))}


def proxies() -> dict[str, str]:
    """Return the environment's proxy variables, such as HTTPS_PROXY.

    They are passed on even though they may contain a password, because child processes need them to download packages.
    """
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
