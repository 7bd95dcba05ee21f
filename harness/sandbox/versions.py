"""The versions of the software that runs a trial: this program, Python, the Docker SDK, the engine, the kernel."""

from __future__ import annotations

import platform
from importlib.metadata import version

from pydantic import Field

import harness
from harness.judging.evidence import Frozen


class Versions(Frozen):
    """The versions of the software used in one run.

    ``engine`` is the container engine's version, ``runtime`` is the name of the engine's container runtime, such as
    "runc", and ``kernel`` is the version of the kernel on the engine's host. Each of these three is "" if it isn't
    known.
    """

    offswitch: str = harness.__version__
    python: str = Field(default_factory=platform.python_version)
    docker_sdk: str = Field(default_factory=lambda: version("docker"))
    engine: str = ""
    runtime: str = ""
    kernel: str = ""
