"""Which Docker engine the lab uses, and the connection to it."""

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
PATIENCE = 5  # seconds for an engine to say that it is there
WORKING_TIMEOUT = 60  # seconds for one request to an engine that is at work


@dataclass(frozen=True, slots=True)
class EnginePaths:
    """Where an engine of the lab's own keeps what it needs, so that it can't meet another's."""

    run: Path = Path("/run/offswitch")
    data: Path = Path("/var/lib/offswitch/docker")

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"unix://{self.run / 'docker.sock'}"

    @property
    def exec_root(self) -> Path:
        """Where it keeps the state of what runs; its processes name this folder on their command lines."""
        return self.run / "exec"

    @property
    def pidfile(self) -> Path:
        """What would keep it from starting if it outlived a killed engine."""
        return self.run / "docker.pid"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.run / "dockerd.log"


OWN_ENGINE = EnginePaths()


def addresses(environment: Mapping[str, str], context_host: str | None) -> list[str]:
    """Where to look for an engine, in order: a DOCKER_HOST is the user's word and stands alone."""
    if chosen := environment.get("DOCKER_HOST"):
        return [chosen]
    return list(dict.fromkeys([context_host or DEFAULT_ADDRESS, DEFAULT_ADDRESS, OWN_ENGINE.address]))


def connect() -> docker.DockerClient:
    """Return a client of the first engine that answers; the caller closes it."""
    refusals = []
    for address in addresses(os.environ, _context_host()):
        try:
            return reach(address)
        except EngineError as error:
            refusals.append(str(error))
    way_out = (
        "start that engine, or unset DOCKER_HOST to use another"
        if os.environ.get("DOCKER_HOST")
        else "run ./lab setup as root on Debian or Ubuntu, start Docker, or set DOCKER_HOST"
    )
    raise EngineError(f"No Docker engine answers ({'; '.join(refusals)}): {way_out}.")


def reach(address: str) -> docker.DockerClient:
    """Connect to the engine at one address, or say in a few words why that can't be done."""
    if address.startswith("ssh:"):
        raise EngineError(f"{address}: ssh isn't supported, so forward its socket with ssh -L")
    try:
        _knock(address)
        client = docker.from_env(environment={**os.environ, "DOCKER_HOST": address}, timeout=PATIENCE)
        client.ping()
    except (DockerException, OSError) as error:
        raise EngineError(f"{address}: {_in_short(error)}") from error
    client.api.timeout = WORKING_TIMEOUT
    return client


def answers(address: str) -> bool:
    """Tell whether an engine is at work there."""
    try:
        reach(address).close()
    except EngineError:
        return False
    return True


def _context_host() -> str | None:
    """Return the address of the Docker context in use: how Docker Desktop and rootless engines are found."""
    try:
        return ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT")).Host
    except (AttributeError, DockerException, OSError, ValueError):  # no such context, or a broken one
        return None


def _knock(address: str) -> None:
    """Try the bare socket first: its error is plain, and Docker's client would leave the socket open."""
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as bare:
            bare.settimeout(PATIENCE)
            bare.connect(address.removeprefix("unix://"))


def _in_short(error: Exception) -> str:
    """Dig out the reason at the bottom of what HTTP libraries wrap around it."""
    text = str(error)
    if "timed out" in text:
        return "no answer in time"
    number = re.search(r"\[Errno -?\d+\] ([\w ]+)", text)
    return number[1].lower() if number else text.removesuffix(".")
