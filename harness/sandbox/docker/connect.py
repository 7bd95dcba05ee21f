"""Finds the Docker engine that the lab uses, and connects to it."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.context import ContextAPI
from docker.errors import DockerException

from harness.errors import EngineError

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
PING_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class EnginePaths:
    """The folders of a Docker engine that the lab starts itself. No other engine on the host uses them.

    ``run`` holds data on running containers and the engine's socket, pid file and log. ``data`` holds images and
    containers.
    """

    run: Path = Path("/run/offswitch")
    data: Path = Path("/var/lib/offswitch/docker")

    @property
    def address(self) -> str:
        """The address of the engine's Unix socket, as a URL."""
        return f"unix://{self.run / 'docker.sock'}"

    @property
    def exec_root(self) -> Path:
        """The folder in which the engine keeps data on running containers.

        The command line of each of the engine's processes contains this folder's path.
        """
        return self.run / "exec"

    @property
    def pidfile(self) -> Path:
        """The engine's pid file. A killed engine leaves this file behind, and the file can prevent the next start."""
        return self.run / "docker.pid"

    @property
    def log(self) -> Path:
        """The engine's log file."""
        return self.run / "dockerd.log"


OWN_ENGINE = EnginePaths()


def addresses(environment: Mapping[str, str], context_host: str | None) -> list[str]:
    """Return the addresses at which to look for a Docker engine, in the order in which to try them.

    If ``environment`` sets DOCKER_HOST, its value is the only address. ``context_host`` is the address in the current
    Docker context; it is None if there is no usable context.
    """
    if chosen := environment.get("DOCKER_HOST"):
        return [chosen]
    return list(dict.fromkeys([context_host or DEFAULT_ADDRESS, DEFAULT_ADDRESS, OWN_ENGINE.address]))


def connect() -> docker.DockerClient:
    """Return a client of the first Docker engine that answers. The caller must close the client.

    Raises EngineError if no engine answers.
    """
    failures = []
    for address in addresses(os.environ, _context_host()):
        try:
            return reach(address)
        except EngineError as error:
            failures.append(str(error))
    way_out = (
        "start that engine, or unset DOCKER_HOST to use another"
        if os.environ.get("DOCKER_HOST")
        else "run ./lab setup as root on Debian or Ubuntu, start Docker, or set DOCKER_HOST"
    )
    raise EngineError(f"No Docker engine answers ({'; '.join(failures)}): {way_out}.")


def reach(address: str) -> docker.DockerClient:
    """Return a client of the engine at ``address``.

    Raises EngineError with a short reason if the engine can't be reached.
    """
    if address.startswith("ssh:"):
        raise EngineError(f"{address}: ssh isn't supported, so forward its socket with ssh -L")
    try:
        _try_socket(address)
        client = docker.from_env(environment={**os.environ, "DOCKER_HOST": address}, timeout=PING_TIMEOUT_S)
        client.ping()
    except (DockerException, OSError) as error:
        raise EngineError(f"{address}: {_short_reason(error)}") from error
    client.api.timeout = REQUEST_TIMEOUT_S
    return client


def answers(address: str) -> bool:
    """Whether a Docker engine answers at ``address``."""
    try:
        reach(address).close()
    except EngineError:
        return False
    return True


def _context_host() -> str | None:
    """Return the engine's address in the current Docker context; None if there is no usable context."""
    try:
        return ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT")).Host
    except (AttributeError, DockerException, OSError, ValueError):  # no such context, or a broken one
        return None


def _try_socket(address: str) -> None:
    """Connect to the engine's Unix socket once without the Docker SDK, and do nothing for other kinds of address.

    A failure here has a clearer error than one in the SDK.
    """
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(PING_TIMEOUT_S)
            plain.connect(address.removeprefix("unix://"))


def _short_reason(error: Exception) -> str:
    """Return the cause of a connection error, without what HTTP libraries add to its message."""
    text = str(error)
    if "timed out" in text:
        return "no answer in time"
    number = re.search(r"\[Errno -?\d+\] ([\w ]+)", text)
    return number[1].lower() if number else text.removesuffix(".")
