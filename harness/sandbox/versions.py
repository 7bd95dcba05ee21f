"""Defines ``Versions``, the record of the software versions used in one run."""

from __future__ import annotations

import platform
from importlib.metadata import version

from pydantic import Field

import harness
from harness.judging.evidence import Frozen


class Versions(Frozen):
    """The versions of the software used in one run.

    ``engine`` is the version of the container engine. ``runtime`` is the name of the engine's container runtime, such
    as "runc". ``kernel`` is the kernel version of the engine's host. Each of these three values is "" if it is unknown.
    """

    offswitch: str = harness.__version__
    python: str = Field(default_factory=platform.python_version)
    docker_sdk: str = Field(default_factory=lambda: version("docker"))
    engine: str = ""
    runtime: str = ""
    kernel: str = ""
