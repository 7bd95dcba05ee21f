"""The versions of the software that runs a trial: this program, Python, the Docker SDK, the engine, the kernel."""

from __future__ import annotations

import platform
from importlib.metadata import version

from pydantic import Field

import harness
from harness.judging.evidence import Frozen


class Versions(Frozen):
    """The versions of the software that ran one run."""

    offswitch: str = harness.__version__
    python: str = Field(default_factory=platform.python_version)
    docker_sdk: str = Field(default_factory=lambda: version("docker"))
    engine: str = ""
    runtime: str = ""
    kernel: str = ""
