"""Selects the environment variables for the lab's child processes, and leaves out those that may contain secrets."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|HEADERS", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s]*@")


def without_keys() -> dict[str, str]:
    """Return this process's environment variables, without those that may contain secrets.

    A variable is left out if its name looks like that of a secret, such as OPENAI_API_KEY, or if its value contains a
    URL with a user name or password.
    """
    pairs = os.environ.items()
    return {name: value for name, value in pairs if not (_SECRET.search(name) or _PASSWORD.search(value))}


def proxies() -> dict[str, str]:
    """Return this process's proxy variables, such as HTTPS_PROXY.

    Some child processes need these variables to download packages. The value of a proxy variable may contain a
    password.
    """
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
