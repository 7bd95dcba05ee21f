"""Finds a running Docker engine and connects to it."""

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
from harness.process.invocation import setup_command

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
PING_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class EnginePaths:
    """The two folders of a Docker engine that the lab starts itself.

    ``run`` contains the engine's socket, pid file and log, and data on running containers. ``data`` contains images and
    containers.
    """

    run: Path = Path("/run/offswitch")
    data: Path = Path("/var/lib/offswitch/docker")

    @property
    def address(self) -> str:
        """The URL of the engine's Unix socket."""
        return f"unix://{self.run / 'docker.sock'}"

    @property
    def exec_root(self) -> Path:
        """The folder for the engine's data on running containers.

        The path of this folder appears on the command line of every process of the engine.
        """
        return self.run / "exec"

    @property
    def pidfile(self) -> Path:
        """The path of the engine's pid file.

        A killed engine doesn't delete this file, and the leftover file can prevent the engine's next start.
        """
        return self.run / "docker.pid"

    @property
    def log(self) -> Path:
        """The path of the engine's log file."""
        return self.run / "dockerd.log"


OWN_ENGINE = EnginePaths()


def addresses(environment: Mapping[str, str], context_host: str | None) -> list[str]:
    """Return the Docker engine addresses to try, in order.

    If ``environment`` sets DOCKER_HOST, only that address is returned. ``context_host`` is the engine's address in the
    current Docker context, or None if there is no usable context.
    """
    if chosen := environment.get("DOCKER_HOST"):
        return [chosen]
    return list(dict.fromkeys([context_host or DEFAULT_ADDRESS, DEFAULT_ADDRESS, OWN_ENGINE.address]))


def connect() -> docker.DockerClient:
    """Connect to the first Docker engine that answers, and return a client, which the caller must close.

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
        else f"run {setup_command()} as root on Debian or Ubuntu, start Docker, or set DOCKER_HOST"
    )
    raise EngineError(f"No Docker engine answers ({'; '.join(failures)}): {way_out}.")


def reach(address: str) -> docker.DockerClient:
    """Connect to the Docker engine at ``address`` and return a client.

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
    """Return whether a Docker engine answers at ``address``."""
    try:
        reach(address).close()
    except EngineError:
        return False
    return True


def _context_host() -> str | None:
    """Return the engine's address in the current Docker context, or None if there is no usable context."""
    try:
        return ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT")).Host
    except (AttributeError, DockerException, OSError, ValueError):  # no such context, or a broken one
        return None


def _try_socket(address: str) -> None:
    """Raise OSError if connecting to the Unix socket at ``address`` fails.

    The function does nothing if ``address`` isn't a Unix socket. The OSError is clearer than the error that the Docker
    SDK would raise.
    """
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(PING_TIMEOUT_S)
            plain.connect(address.removeprefix("unix://"))


def _short_reason(error: Exception) -> str:
    """Return a short text that names the cause of a connection error."""
    text = str(error)
    if "timed out" in text:
        return "no answer in time"
    number = re.search(r"\[Errno -?\d+\] ([\w ]+)", text)
    return number[1].lower() if number else text.removesuffix(".")
